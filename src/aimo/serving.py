"""`aimo serve`: a model behind vLLM's OpenAI-compatible server, with a profile's settings, until it is ended.

Out of scope: GRPO's server, which takes new weights (`aimo.train.launch`); several machines.
"""

import contextlib
import json
import re
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

from aimo.errors import AimoError, EngineError, explain_exit
from aimo.inference.engine import engine_arguments, set_environment
from aimo.inference.errors import redact
from aimo.inference.model_folder import check_model_folder
from aimo.inference.processes import running, stderr_to
from aimo.inference.settings import Settings


def command(model: Path, settings: Settings, seed: int, host: str, port: int) -> list[str]:
    """The command of the server, with the arguments that the engine in this process would get.

    The CPU build lacks the metadata that `vllm serve` asks for; its server's module is started there.
    """
    import torch

    arguments = engine_arguments(model, settings, seed) | {"host": host, "port": port}
    arguments |= {"served_model_name": model.name}
    del arguments["model"], arguments["disable_log_stats"]
    vllm = shutil.which("vllm", path=str(Path(sys.executable).parent)) if torch.cuda.is_available() else None
    start = [vllm, "serve"] if vllm else [sys.executable, "-m", "vllm.entrypoints.openai.api_server"]
    named = [str(model)] if vllm else [f"--model={model}"]
    return start + named + [option(key, value) for key, value in arguments.items() if value is not None]


def option(key: str, value: Any) -> str:
    """An engine argument as an option of vLLM's command line."""
    name = key.replace("_", "-")
    if isinstance(value, bool):
        return f"--{name}" if value else f"--no-{name}"
    return f"--{name}={json.dumps(value) if isinstance(value, dict | list) else value}"


@contextlib.contextmanager
def serving(
    model: Path, settings: Settings, seed: int = 0, *, host: str = "127.0.0.1", port: int = 0, log: Path
) -> Iterator[tuple[str, "subprocess.Popen[bytes]"]]:
    """Its address, as soon as the server answers, and its process; it ends with the block.

    `port` 0 takes a free one; what vLLM writes goes to `log`. AimoError when the port is taken; EngineError
    when the server ends before it answers, with the first error that it wrote.
    """
    check_model_folder(model)
    port = free_port(host, port)
    set_environment()
    log.unlink(missing_ok=True)
    with stderr_to(log):  # what torch and vLLM say as they are imported
        serve = command(model.absolute(), settings, seed, host, port)
    url = f"http://{host}:{port}"
    with answering(serve, f"{url}/health", log, str(model)) as process:
        yield url, process


@contextlib.contextmanager
def answering(
    command: list[str], health: str, log: Path, model: str, keep: Collection[int] = ()
) -> Iterator["subprocess.Popen[bytes]"]:
    """Run a server of a model while the block does, which begins when the address `health` answers.

    What it writes is appended to `log`; `keep` as in `running`. EngineError when the server ends before it
    answers, with the first error that it wrote.
    """
    with log.open("a") as output, running(command, output, keep) as process:
        while not is_up(health):
            if process.poll() is not None:
                causes = re.findall(r"\b\w+Error: .+|error: .+", log.read_text(errors="replace"))
                reason = redact(" ".join(causes[0].split())) if causes else explain_exit(process.returncode)
                raise EngineError(
                    f"vLLM did not serve {model}: {reason[:300]}; all that it wrote is in {log}"
                )
            time.sleep(0.2)
        yield process


def free_port(host: str, port: int) -> int:
    """The port if it is free, for 0 any that is. AimoError when it is taken."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as e:
            raise AimoError(f"--port {port} of {host}: {e.strerror}; take another, or 0 for any") from None
        return int(probe.getsockname()[1])


def is_up(url: str) -> bool:
    """Whether a server answers at an address."""
    try:
        with urllib.request.urlopen(url, timeout=2) as response:
            return bool(response.status == 200)
    except OSError:
        return False
