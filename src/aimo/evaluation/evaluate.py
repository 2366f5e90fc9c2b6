"""`aimo evaluate`: a model on benchmarks, from the questions to a folder with completions, figures and page.

    RUN/NAME.jsonl        the completions of a benchmark, with all that was asked (`completions`)
    RUN/evaluation.json   the figures
    RUN/evaluation.html   the page

Out of scope: comparing two of these folders (`compare`).
"""

import functools
import tempfile
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from aimo.config import RUNS
from aimo.errors import AimoError
from aimo.evaluation import audit, benchmarks, completions, leakage, lighteval, published, scores, tracking
from aimo.evaluation.benchmarks import Question
from aimo.evaluation.scores import Scores
from aimo.inference.model_folder import identity
from aimo.inference.sampling import Sampler
from aimo.inference.settings import SETTINGS, Settings, guess_tags, resolve
from aimo.inference.storage import KEPT, read_json, write_json
from aimo.report import pages
from aimo.run.progress import counting
from aimo.run.runs import lock, unlock

FIGURES = "evaluation.json"
Start = Callable[[Settings], Sampler]
"""Starts an engine, or connects to servers."""


@dataclass(frozen=True)
class Wanted:
    """What is to be measured."""

    model: Path
    name: str
    """How the model is called on pages."""
    benchmarks: list[str]
    """Names of the table, or paths to files."""
    layers: list[dict[str, Any]]
    """What goes over the benchmark's and the model's settings: a profile's, then the command line's."""
    data: Path | None = None
    """A folder with files in place of the hub's data sets."""
    rows: int | None = None
    """Only so many questions of each."""
    seed: int = 0
    adapter: Path | None = None
    log_to: str = "none"
    """A tracker that gets the figures too, as in a profile's `training.log_to`."""
    card_data: bool = False
    """Whether the training sets that the model's card names may be downloaded, to look for leakage."""

    @functools.cached_property
    def weights(self) -> str:
        """The model's identity, with its adapter's."""
        return identity(self.model, self.adapter)

    def settings(self, name: str) -> Settings:
        """The settings that the model is asked with on a benchmark.

        A model without settings of its own (aimo.json) that boxes its answers is asked with the benchmark's
        prompt.
        """
        benchmark = benchmarks.named(name)
        layer = benchmark.sampling | {"samples": benchmark.samples}
        boxes = guess_tags(self.model).answer_start.startswith("\\boxed")
        if boxes and not (self.model / SETTINGS).exists():
            layer["user"] = benchmark.prompt
        settings = resolve(self.model, layer, *self.layers)
        if settings.temperature == 0 and not any("samples" in given for given in self.layers):
            return replace(settings, samples=1)  # all would be equal
        return settings


def evaluate(wanted: Wanted, start: Start, folder: Path, with_audit: bool = False) -> dict[str, Scores]:
    """Sample what is missing, score everything, and write figures and page; returns the scores by benchmark.

    What the folder already has of other benchmarks is scored and shown too. The engine starts only if a
    completion is missing, so that scoring again costs no generation. AimoError for what the user can fix,
    before the engine starts.
    """
    names = [name for name in wanted.benchmarks if not benchmarks.named(name).task]
    questions = {name: benchmarks.read(name, wanted.data, wanted.rows) for name in names}
    tasks = {
        name: lighteval.command(
            wanted.model, benchmarks.named(name), wanted.settings(name), folder / name, wanted.seed
        )
        for name in wanted.benchmarks
        if name not in names
    }
    lighteval.require(list(tasks.values()))
    make(folder)
    lock(folder)
    try:
        found, known = earlier(wanted, folder)
        with ExitStack() as stack:
            files = sample(wanted, questions, start, folder, stack)
        others = {name: lighteval.run(command, folder / name) for name, command in tasks.items()}
        found |= {
            short(name): scores.score(file.header, list(file.traces.values())) for name, file in files.items()
        }
        write(wanted, found, known | others, folder, with_audit)
    except OSError as e:
        raise AimoError(f"{folder}: {e.strerror}; {KEPT}") from None
    finally:
        unlock(folder)
    return found


def earlier(wanted: Wanted, folder: Path) -> tuple[dict[str, Scores], dict[str, Any]]:
    """The scores that the folder already has, and lighteval's figures. AimoError for another model's."""
    if not (folder / FIGURES).exists():
        return {}, {}
    record, found = figures_of(folder), read(folder)
    others = [one.header.model for one in found.values() if not one.header.is_of(wanted.weights)]
    if record.get("weights", wanted.weights) != wanted.weights:
        others.append(record["model"])
    if others:
        raise AimoError(f"{folder} holds completions of other weights ({others[0]}); take another --run-dir")
    return found, {name: row for name, row in record["benchmarks"].items() if "lighteval" in row}


def make(folder: Path) -> None:
    """Make the folder. AimoError when it cannot be, or cannot be written to."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as e:
        raise AimoError(f"--run-dir {folder}: {e.strerror}; take another") from None


def sample(
    wanted: Wanted, questions: dict[str, list[Question]], start: Start, folder: Path, stack: ExitStack
) -> dict[str, completions.File]:
    """The benchmarks' completions, with those that were missing; `stack` closes the engine if one started."""
    sampler = None
    files = {}
    for name, asked in questions.items():
        settings = wanted.settings(name)
        header = completions.header_of(wanted.name, wanted.weights, short(name), asked, settings, wanted.seed)
        path = folder / f"{short(name)}.jsonl"
        if path.exists():
            with completions.File(path, header) as kept:
                if not kept.missing(settings.samples):
                    files[name] = kept
                    continue
        if sampler is None:
            sampler = start(settings)
            stack.callback(sampler.close)
        sampler.settings = settings
        served = "" if isinstance(sampler.model, Path) else sampler.model
        header = replace(header, context=sampler.max_length, served=served)
        total = settings.samples * len(asked)
        with (
            completions.File(path, header) as file,
            counting(short(name), total, total - len(file.missing(settings.samples))) as step,
        ):
            completions.sample(sampler, file, settings.samples, step)
        files[name] = file
    return files


def write(
    wanted: Wanted, found: dict[str, Scores], others: dict[str, Any], folder: Path, with_audit: bool
) -> None:
    """Write evaluation.json and its page, and list it in runs/index.html."""
    figures: dict[str, Any] = {name: scores.figures(one) for name, one in found.items()}
    trained = wanted.adapter or wanted.model
    asked = {name: one.questions for name, one in found.items()}
    checked = leakage.check(trained, asked, wanted.card_data)
    measured = {name: round(100 * figures[name]["pass@1"][0], 1) for name in found}
    headline = ", ".join(f"{name} {value:.1f} %" for name, value in measured.items())
    record: dict[str, Any] = {
        "model": wanted.name,
        "weights": wanted.weights,
        "headline": headline,
        "benchmarks": figures | others,
        "leakage": checked,
    }
    if with_audit:
        record["audit"] = {name: audit.disagreements(one) for name, one in found.items()}
    write_json(folder / FIGURES, record)
    shown = record | {
        "published": published.beside({wanted.name: measured}),
        "questions": {name: [row_of(one, i) for i in range(len(one.right))] for name, one in found.items()},
        "settings": {
            name: one.header.settings | {"context": one.header.context} for name, one in found.items()
        },
        "curves": {name: curves(one) for name, one in found.items()},
    }
    pages.write_evaluation(folder, shown)
    tracking.log(wanted.log_to, folder, wanted.name, tracking.flat(figures))
    pages.write_index(folder)


def curves(one: Scores) -> dict[str, dict[int, float]]:
    """pass@k and maj@k by the number of completions."""
    sizes = scores.powers(one.samples)
    return {
        "pass@k": {k: float(scores.pass_at(one.right, k).mean()) for k in sizes},
        "maj@k": {k: float(one.majority(k).mean()) for k in sizes},
    }


def row_of(one: Scores, i: int) -> dict[str, Any]:
    """The i-th question with its pass rate, and a right and a wrong completion of it where there are such."""
    question, right = one.questions[i], one.right[i].tolist()
    shown = dict(reversed(list(zip(right, zip(one.traces[i], one.answers[i], strict=True), strict=True))))
    return {
        "id": question.id,
        "problem": question.problem,
        "gold": question.answer,
        "right": float(one.right[i].mean()),
        "tokens": float(one.tokens[i]),
        "completions": [
            {"right": ok, "answer": answer, "text": trace.text} for ok, (trace, answer) in shown.items()
        ],
    }


def short(name: str) -> str:
    """A benchmark's name in files and tables: that of the table, or of its file."""
    return Path(name).stem if name not in benchmarks.BENCHMARKS else name


def folder_of(name: str, run_dir: str | None, kind: str = "evaluate") -> Path:
    """Where an evaluation or comparison goes: runs/KIND-NAME if not given."""
    return Path(run_dir).absolute() if run_dir else RUNS / f"{kind}-{name}"


def name_of(model: Path) -> str:
    """A short name of a model folder or an adapter; RUN-STAGE for a stage's own."""
    path = model.absolute()
    own = path.name in ("model", "trained") and len(path.parts) > 3
    return "-".join(path.parts[-3:-1]) if own else path.name


def show(found: dict[str, Scores]) -> None:
    """Print the figures of each benchmark."""
    table = Table("benchmark", "questions", "k", "pass@1", "95 %", "maj@k", "tokens", "cut off", "no answer")
    for name, one in found.items():
        row = scores.figures(one)
        value, low, high = row["pass@1"]
        vote = row.get(f"maj@{one.samples}", row["pass@1"])[0]
        shares = [f"{row[key]:.3f}" for key in ("cut_off", "no_answer")]
        counts = [str(row["questions"]), str(one.samples)]
        table.add_row(
            name, *counts, f"{value:.3f}", f"{low:.3f} to {high:.3f}", f"{vote:.3f}",
            f"{row['mean_tokens'][0]:,.0f}", *shares,
        )  # fmt: skip
        if one.unreadable:
            print(f"{name}: gold answers that cannot be read, counted as wrong: {', '.join(one.unreadable)}")
    Console(width=110).print(table)


def figures_of(folder: Path) -> dict[str, Any]:
    """evaluation.json of a folder. AimoError when it is broken."""
    remedy = "remove it, and evaluate again: completions are kept"
    found = dict(read_json(folder / FIGURES, remedy))
    rows = found.get("benchmarks")
    if not isinstance(rows, dict) or not all(isinstance(row, dict) for row in rows.values()):
        raise AimoError(f"{folder / FIGURES}: it has no table of benchmarks; {remedy}")
    return found


def read(folder: Path) -> dict[str, Scores]:
    """The scores of an evaluation's folder, by benchmark. AimoError when it holds none."""
    if not (folder / FIGURES).exists():
        raise AimoError(f"{folder}: it holds no finished evaluation; make one with `aimo evaluate`")
    files = {name: folder / f"{name}.jsonl" for name in figures_of(folder)["benchmarks"]}
    return {name: scores.score(*completions.read(path)) for name, path in files.items() if path.exists()}
