"""One problem that a person asks: the first sample is printed as it is written, and any answer counts.

Out of scope: files of questions (`aimo.inference.gateway`), early stops (`aimo.inference.solver`).
"""

import asyncio
from collections.abc import Iterable

from aimo.inference import answers
from aimo.inference.errors import AimoError, EngineError, one_line
from aimo.inference.judge import are_equal
from aimo.inference.programs import has_sandbox
from aimo.inference.sampling import Sampler
from aimo.inference.solver import cancel
from aimo.inference.stream import Problem, Stream

REFRESH_S = 0.1  # between two looks at what the sample has written


class Question(Problem):
    """A problem whose answer may be anything: a sample goes on until the model ends it."""

    def to_answer(self, text: str | None) -> None:
        """Return None: nothing that is written ends the sample."""

    def has_answer(self, text: str) -> bool:
        """Whether a text holds any answer."""
        return bool(answers.extract(text, self.sampler.settings.tags))


def ask(sampler: Sampler, text: str, seed: int = 0) -> str:
    """Print the first of `settings.samples` samples as it is written, then the vote if there are several.

    Returns the answer that most samples gave, among equals the earliest; all samples run Python if the
    settings give any of them tools. Raises AimoError when the problem cannot be asked, EngineError when the
    engine fails or no sample holds an answer.
    """
    question = Question(sampler, text, seed, 0, 0)
    if fault := question.fault():
        raise AimoError(f"{fault}; ask another")
    try:
        texts = sampler.run(sample(question))
    except Exception as e:  # the engine's own kinds
        raise EngineError(f"the problem could not be answered: {one_line(e)}") from None
    found = [answers.extract(text, sampler.settings.tags) for text in texts]
    groups = vote(answer for answer in found if answer)
    if not groups:
        raise EngineError(f"{len(texts)} samples hold no answer; give more --samples or inference.max_tokens")
    if len(texts) > 1:
        print(*(f"{len(group)} of {len(texts)}: {group[0]}" for group in groups), "", sep="\n")
    return groups[0][0]


async def sample(question: Question) -> list[str]:
    """The texts of all samples; the first is printed as it grows."""
    settings = question.sampler.settings
    tools = settings.tools > 0 and has_sandbox()
    streams = [Stream(question, index, 0.0, tools) for index in range(settings.samples)]
    tasks = [asyncio.create_task(stream.answer()) for stream in streams]
    shown = ""
    try:
        while not tasks[0].done():
            await asyncio.wait(tasks[:1], timeout=REFRESH_S)
            shown = show(shown, streams[0].text)
        if not tasks[0].exception():
            show(shown, f"{tasks[0].result().text}\n\n")
        ended = await asyncio.gather(*tasks, return_exceptions=True)
        faults = [one for one in ended if isinstance(one, BaseException)]
        if len(faults) == len(ended):
            raise faults[0]
        return [one.text for one in ended if not isinstance(one, BaseException)]
    finally:
        await cancel([task for task in tasks if not task.done()])


def show(shown: str, text: str) -> str:
    """Print what `text` has beyond what is shown, and return it. A turn may lose what it wrote last."""
    same = len(shown)
    if not text.startswith(shown):
        same = next(i for i, pair in enumerate(zip(f"{shown}$", text, strict=False)) if len(set(pair)) > 1)
        print()
    print(text[same:], end="", flush=True)
    return text


def vote(found: Iterable[str]) -> list[list[str]]:
    """Group equal answers, such as 1/2 and 0.5: the largest group first, among equals the earliest."""
    groups: list[list[str]] = []
    for answer in found:
        equal = are_equal([answer] * len(groups), [group[0] for group in groups])
        group = next((group for group, same in zip(groups, equal, strict=True) if same), None)
        if group is None:
            groups.append([answer])
        else:
            group.append(answer)
    return sorted(groups, key=len, reverse=True)
