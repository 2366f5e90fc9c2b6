"""Runs the Python programs of a sample in the sandbox.

Out of scope: finding them in its text (`aimo.inference.tools`).
"""

import functools

from aimo.inference import sandbox
from aimo.inference.errors import AimoError


class Programs:
    """The programs of one sample; variables are kept from one to the next.

    A sandbox that fails becomes the program's output, so that it costs the turn and not the sample.
    """

    session: sandbox.Session | None = None

    def run(self, code: str) -> str:
        """Run a program and return what it prints, followed by its error if it raises one."""
        try:
            self.session = self.session or sandbox.Session()
            result = self.session.run(code)
        except AimoError as e:
            return str(e)
        return (result.stdout + result.error).strip()

    def close(self) -> None:
        """End the sandbox's process."""
        if self.session:
            self.session.close()


@functools.cache
def has_sandbox() -> bool:
    """Return whether programs can run here; print once which limits of the sandbox are not enforced."""
    try:
        lacking = [what for what, holds in sandbox.enforced().items() if not holds]
    except AimoError as e:
        print(f"{e}; samples go on without tools")
        return False
    print(f"Sandbox: {'not enforced here: ' + ', '.join(lacking) if lacking else 'every limit is enforced'}.")
    return True
