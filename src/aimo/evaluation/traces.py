"""Read recorded samples, from journals or public traces, as rules of voting and stopping see them.

The keys of a file's first line show its format. All are JSON lines, the last two with a question per line:
- a journal of the solver (`aimo.inference.journal`): a sample per line; files of one model are pooled;
- `samples`, each with `text`: whole completions, as lm-evaluation harnesses keep them;
- `attempts`, each with `tokens` and `answer`: the logs of a competition notebook.
"""

import json
import re
import shlex
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, TypeAdapter, ValidationError

from aimo.inference import answers, files, journal, voting
from aimo.inference.answers import INTEGER, LONGEST_TEXT, AnswerKind, Proof
from aimo.inference.competitions import Competition
from aimo.inference.errors import AimoError, explain
from aimo.inference.sample import COUNT_EVERY, End, Sample

CHARACTERS = 3.2  # per token, if a trace has only texts
CHECK = 256  # characters between two checks for repetition
Vote = int | float | str | None
REMEDY = "give a journal of the solver, or traces with `samples` or `attempts` a line"


@dataclass(frozen=True)
class RecordedText:
    """A sample of public traces, kept whole."""

    text: str


@dataclass(frozen=True)
class RecordedSample:
    """A recorded sample as a rule sees it."""

    tokens: Annotated[float, Field(ge=0, le=1e9)]  # until it ends
    answer: Vote
    pace: Annotated[float, Field(gt=0)] = 1.0  # tokens per unit of wall time; 1 if no time was recorded
    printed: tuple[Vote, ...] = ()  # the answers that its programs printed
    logprob: float | None = None  # these four as in `aimo.inference.sample.Sample`
    tail_logprob: float | None = None
    entropy: float | None = None
    tail_entropy: float | None = None


# What a line of public traces holds, by its key.
KINDS: dict[str, TypeAdapter[Any]] = {
    "samples": TypeAdapter(Annotated[list[RecordedText], Field(min_length=1)]),
    "attempts": TypeAdapter(Annotated[list[RecordedSample], Field(min_length=1)]),
}


@dataclass(frozen=True)
class RecordedQuestion:
    """A question's recorded samples in one order, as the peers' rules read them and as ours do."""

    gold: Any
    peer: Sequence[RecordedSample]  # read to their end
    ours: Sequence[RecordedSample]  # until their first final answer or degenerate repetition
    id: str = ""
    kind: AnswerKind = INTEGER


@dataclass(frozen=True)
class Traces:
    """The questions of one file, or of the journals of one model."""

    name: str
    questions: list[RecordedQuestion]
    unit: str = "tokens"  # of wall time: tokens of one sample, or seconds if they were recorded
    stopped: int = 0  # samples stopped before they ended: no vote, only the tokens written so far


def first_equal(vote: Any, known: list[Any], kind: AnswerKind) -> Any:
    """Return the first of the `known` votes that equals this one by the kind's rule; append a new one."""
    first = vote if vote is None else kind.group(vote, known)
    if first is not None and first not in known:
        known.append(first)
    return first


def read_traces(
    paths: Sequence[Path], golds: Mapping[str, int | str] | None = None, kind: AnswerKind = INTEGER
) -> list[Traces]:
    """Return the traces in the files. `golds`, by question, override the files' own. `kind` is that of the
    answers in public traces; a journal names its own. AimoError for a line that is broken or of another
    model."""
    traces, journals = [], []
    for path in paths:
        first = next(lines(path), (0, {}))[1]
        if "samples" in first or "attempts" in first:
            traces.append(Traces(path.stem, list(public(path, golds or {}, kind))))
        elif "key" in first or "journal" in first:
            journals.append(path)
        else:
            raise AimoError(f"{path}: not a file of samples; {REMEDY}")
    return [*([pool_journals(journals, golds or {})] if journals else []), *traces]


def lines(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield the lines of a JSON-lines file with their numbers. AimoError for one that is broken."""
    try:
        with path.open("rb") as file:
            for number, line in enumerate(file, 1):
                if line.strip():
                    row = json.loads(line)
                    if not isinstance(row, dict):
                        raise AimoError(f"{path}, line {number}: not an object; {REMEDY}")
                    yield number, row
    except OSError as e:
        raise AimoError(f"{path}: {e.strerror}; {REMEDY}") from None
    except (ValueError, RecursionError):
        remedy = f"delete the line: sed -i {number}d {shlex.quote(str(path))}"
        raise AimoError(f"{path}, line {number}: cut off; {remedy}") from None


def public(path: Path, golds: Mapping[str, int | str], kind: AnswerKind) -> Iterator[RecordedQuestion]:
    is_integer = kind.type is int  # of any size
    read, find = (answers.to_integer, answers.extract) if is_integer else (kind.read, kind.find)
    for number, row in lines(path):
        name, where = str(row.get("id", number)), f"{path}, line {number}"
        given = str(golds.get(name, row.get("answer")))
        gold = answers.to_integer(given) if is_integer else kind.gold(given)
        if gold is None:
            noun = "integer" if is_integer else kind.noun
            raise AimoError(f"{where}: question {name} has no {noun} as its answer; correct it")
        key = "attempts" if "attempts" in row and "samples" not in row else "samples"
        try:
            samples = KINDS[key].validate_python(row.get(key))
        except ValidationError as e:
            raise AimoError(f"{where}: {key}.{explain(e.errors()[0])}; {REMEDY}") from None
        known = [gold]
        if key == "attempts":
            ours = [replace(one, answer=first_equal(read(str(one.answer)), known, kind)) for one in samples]
            yield RecordedQuestion(gold, samples if is_integer else ours, ours, name, kind)
            continue
        peers = []
        for text in (sample.text for sample in samples):
            if (found := find(text)) is None:  # the traces were labelled by the last number near the end
                found = (re.findall(r"-?\d+(?:\.\d+)?", text[-200:]) or [None])[-1]
            value = first_equal(read(found), known, kind)
            peers.append(RecordedSample(len(text) / CHARACTERS, found if value is None else value))

        def vote(part: str, known: list[Any] = known) -> Any:
            return first_equal(read(find(part)), known, kind)

        ours = [until_final(sample.text, vote) for sample in samples]
        yield RecordedQuestion(gold, peers, ours, name, kind)


def until_final(text: str, read: Callable[[str], Any]) -> RecordedSample:
    """Return a completion as a sample that ends at its final answer, or where it degenerates."""
    final = voting.AnswerWatch(read).find(text)
    end, answer = final or (len(text), None)
    for place in range(CHECK, end, CHECK):
        before = text[max(0, place - voting.WINDOW) : place]
        if voting.is_repeating(before) or (place % COUNT_EVERY == 0 and voting.is_counting(before)):
            return RecordedSample(place / CHARACTERS, None)
    return RecordedSample(end / CHARACTERS, answer if final else read(text))


def pool_journals(paths: Sequence[Path], golds: Mapping[str, int | str]) -> Traces:
    """Return the samples of journals, by question. All must have the same model and settings."""
    header, stopped = None, 0
    kind: AnswerKind = INTEGER
    by_question: dict[str, list[RecordedSample]] = {}
    known: dict[str, list[Any]] = {}
    for path, (number, row) in ((one, line) for one in paths for line in lines(one)):
        where = f"{path}, line {number}"
        try:
            entry = journal.parse_line(row, kind)
        except ValueError as e:
            remedy = f"another version of aimo wrote it: replay with that, or delete it: sed -i {number}d"
            raise AimoError(f"{where}: {e}; {remedy} {path}") from None
        if isinstance(entry, journal.JournalHeader):
            if header and (difference := entry.differs(header)):
                raise AimoError(f"{where}: {difference}; replay them apart")
            header, kind = entry, entry.kind
            if isinstance(kind, Proof):
                raise AimoError(f"{where}: it has proofs, on which no samples vote; give another journal")
        elif isinstance(one := entry.value, Sample):
            seconds = one.end_s - one.begin_s
            pace = max(1, one.tokens) / seconds if seconds > 0 else 1.0
            # Sessions write equal votes differently: use the first for all, also in what programs printed.
            answer = first_equal(one.answer, known.setdefault(entry.id, []), kind)
            printed = tuple(one.printed)
            for vote in (one.answer, answer) if answer is not None else ():
                printed = tuple(p if p is None else kind.group(p, [vote]) for p in printed)
            confidence = one.logprob, one.tail_logprob, one.entropy, one.tail_entropy
            sample = RecordedSample(one.tokens, answer, pace, printed, *confidence)
            by_question.setdefault(entry.id, []).append(sample)
            stopped += one.end is End.STOPPED
    if not by_question:
        raise AimoError(f"{paths[0]}: no sample has ended in it; give another journal")
    questions = []
    for id_, samples in sorted(by_question.items()):
        if id_ not in golds:
            raise AimoError(f"question {id_} has no answer; give --answers CSV, with its id and answer")
        gold = (answers.to_integer if kind.type is int else kind.gold)(str(golds[id_]))
        if gold is None:
            raise AimoError(f"--answers: the answer of {id_!r} is {golds[id_]!r}; give it {kind}")
        questions.append(RecordedQuestion(gold, samples, samples, id_, kind))
    name = Path(header.model).name if header else ""
    return Traces(name or paths[0].stem, questions, "seconds", stopped)


def read_gold_file(path: Path, rules: Competition | None = None) -> dict[str, int | str]:
    """Return the gold answers of a file with the columns id (or the competition's id column) and answer."""
    table = files.read_texts(path, "--answers ")
    if rules and "id" not in table.columns and rules.inputs.id in table.columns:
        table = table.rename({rules.inputs.id: "id"})
    if missing := [name for name in ("id", "answer") if name not in table.columns]:
        raise AimoError(f"--answers {path} has no column {missing[0]!r}; it needs id and answer")
    golds: dict[str, int | str] = {}
    for name, answer in table.select("id", "answer").iter_rows():
        if not answer or len(answer) > LONGEST_TEXT:
            raise AimoError(f"--answers {path}: the answer of {name!r} is {answer!r}; give it one")
        golds[name] = int(answer) if answer.isdecimal() and str(int(answer)) == answer else answer
    return golds
