"""Evaluate models: `aimo evaluate` on benchmarks, notebook 04 on a run's held-out problems.

`aimo evaluate` writes to its folder each benchmark's completions with what was asked (NAME.jsonl, see
`completions`), the figures (evaluation.json) and a page (evaluation.html).
"""

import importlib
import shlex
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from contextlib import ExitStack, suppress
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from hashlib import sha256
from importlib.metadata import version
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from huggingface_hub import EvalResultEntry, eval_result_entries_to_yaml
from rich.console import Console
from rich.table import Table

from aimo.config import RUNS
from aimo.evaluation import benchmarks, completions, scores, served
from aimo.evaluation.scores import Scores
from aimo.inference.answers import write_kind
from aimo.inference.competitions import Competition
from aimo.inference.engine import Engine
from aimo.inference.errors import AimoError, EngineError
from aimo.inference.model_folder import identity
from aimo.inference.prompts import Sampler
from aimo.inference.settings import SETTINGS, Settings, guess_tags, resolve_settings
from aimo.inference.storage import read_json, write_json, write_whole
from aimo.report import pages
from aimo.run.progress import counting
from aimo.run.runs import Run, lock, unlock

FIGURES = "evaluation.json"
SHOWN = 50  # held-out problems whose completions by each model are kept for the report


@dataclass(frozen=True)
class Wanted:
    """What `aimo evaluate` measures."""

    model: Path
    name: str  # how pages call the model
    benchmarks: list[str]  # names in BENCHMARKS, or paths to files
    layers: list[dict[str, Any]]  # settings over the benchmark's and the model's: a profile's, the command's
    data: Path | None = None  # a folder with files that replace the hub's data sets
    rows: int | None = None  # questions of each benchmark; None: all
    seed: int = 0
    adapter: Path | None = None
    log_to: str = "none"  # a tracker that gets the figures too, as in a profile's `training.log_to`
    card_data: bool = False  # whether the training sets that the model's card names may be downloaded
    rules: Competition | None = None  # of the files' competition; they judge the answers
    audit: bool = False  # whether math-verify judges the completions too

    @cached_property
    def weights(self) -> str:
        return identity(self.model, self.adapter)

    def settings(self, name: str) -> Settings:
        """Return the settings for asking the model on a benchmark."""
        benchmark = benchmarks.find_benchmark(name)
        layer: dict[str, Any] = benchmarks.SAMPLING | {"samples": benchmark.samples}
        boxes = guess_tags(self.model).answer_start.startswith("\\boxed")
        if boxes and not (self.model / SETTINGS).exists():  # other models bring their own prompt
            layer["user"] = benchmarks.RULES if self.rules else benchmarks.BOXED
        settings = resolve_settings(self.model, layer, *self.layers)
        if settings.temperature == 0 and not any("samples" in given for given in self.layers):
            return replace(settings, samples=1)  # all samples would be equal
        return settings


def evaluate_model(wanted: Wanted, start: Callable[[Settings], Sampler], folder: Path) -> dict[str, Scores]:
    """Sample what is missing, score everything, and write figures and page; return the scores by benchmark.

    Other benchmarks in the folder are scored and shown too. `start` starts the engine or connects to servers.
    It is called only if a completion is missing, so scoring again generates nothing. AimoError, before the
    engine starts, for what the user can fix.
    """
    questions, tasks = {}, {}
    for name in wanted.benchmarks:
        task, settings = benchmarks.find_benchmark(name).task, wanted.settings(name)
        if not task:
            questions[name] = benchmarks.read_benchmark(name, wanted.data, wanted.rows, wanted.rules)
            continue
        sampling = f"temperature:{settings.temperature},top_p:{settings.top_p}"
        arguments = {
            "model_name": wanted.model,
            "max_model_length": settings.max_length or settings.max_tokens,
            "gpu_memory_utilization": settings.gpu_memory,
            "seed": wanted.seed,
            **settings.vllm,
            "generation_parameters": f"{{max_new_tokens:{settings.max_tokens},{sampling}}}",
        }
        joined = ",".join(f"{key}={value}" for key, value in arguments.items())
        tasks[name] = ["lighteval", "vllm", joined, task, "--output-dir", str(folder / name)]
    if tasks and not shutil.which("lighteval"):
        raise AimoError(
            "gpqa and lcb need lighteval, which is not installed; install it apart (`uv tool install "
            f"'lighteval[vllm]'`), or leave them out. It would run: {shlex.join(next(iter(tasks.values())))}"
        )
    make_folder(folder)
    lock(folder)
    try:
        found: dict[str, Scores] = {}
        others: dict[str, Any] = {}
        if (folder / FIGURES).exists():  # the folder may hold only this model's completions
            record, found = read_evaluation(folder)
            foreign = [one.header.model for one in found.values() if not one.header.is_of(wanted.weights)]
            if record.get("weights", wanted.weights) != wanted.weights:
                foreign.append(record["model"])
            if foreign:
                raise AimoError(
                    f"{folder} holds completions of other weights ({foreign[0]}); take another --run-dir"
                )
            others = {name: row for name, row in record["benchmarks"].items() if "lighteval" in row}
        sampled = sample_missing(wanted, questions, start, folder)
        for name, command in tasks.items():
            (folder / name).mkdir(exist_ok=True)
            code = subprocess.run(command, check=False).returncode
            left = sorted(
                (folder / name).glob("results/**/results_*.json"), key=lambda path: path.stat().st_mtime
            )
            if code or not left:
                told = f"its words are above, its files in {folder / name}"
                raise EngineError(f"lighteval ended with {code}: {told}")
            results = read_json(left[-1], "run the same command again")["results"]
            rows = [row for task, row in results.items() if command[3] in task]
            others[name] = {"lighteval": rows[0] if rows else {}, "command": shlex.join(command)}
        found |= {name: scores.score(one.header, list(one.traces.values())) for name, one in sampled.items()}
        write_results(wanted, found, others, folder)
    finally:
        unlock(folder)
    return found


def sample_missing(
    wanted: Wanted, questions: dict[str, Any], start: Callable[[Settings], Sampler], folder: Path
) -> dict[str, completions.CompletionFile]:
    """Sample the missing completions; return the files, closed, by benchmark."""
    sampler, files, rules = None, {}, wanted.rules
    with ExitStack() as stack:
        for benchmark, asked in questions.items():
            # Files and tables use a benchmark's name in BENCHMARKS, or its file's stem.
            name = benchmark if benchmark in benchmarks.BENCHMARKS else Path(benchmark).stem
            settings, path = wanted.settings(benchmark), folder / f"{name}.jsonl"
            known = wanted.name, wanted.weights, name, wanted.seed, settings.asked, 0, asked
            judged = (write_kind(rules.answer), rules.rules) if rules else (None, "")
            header = completions.EvaluationHeader(*known, "", *judged)
            if path.exists():
                with completions.CompletionFile(path, header) as files[name]:
                    if not files[name].missing(settings.samples):
                        continue
            if sampler is None:
                sampler = start(settings)
                stack.callback(sampler.close)
            sampler.settings = settings
            served = "" if isinstance(sampler.model, Path) else sampler.model
            header = replace(header, context=sampler.max_length, served=served)
            with completions.CompletionFile(path, header) as files[name]:
                total, left = settings.samples * len(asked), len(files[name].missing(settings.samples))
                with counting(name, total, total - left) as step:
                    completions.sample_file(sampler, files[name], settings.samples, step)
    return files


def write_results(wanted: Wanted, found: dict[str, Scores], others: dict[str, Any], folder: Path) -> None:
    """Write evaluation.json and its page, send the figures to the tracker, and update runs/index.html."""
    figures: dict[str, Any] = {name: scores.figures_of(one) for name, one in found.items()}
    measured = {name: round(100 * figures[name]["pass@1"][0], 1) for name in found}
    asked = {name: one.header.questions for name, one in found.items()}
    record: dict[str, Any] = {
        "model": wanted.name,
        "weights": wanted.weights,
        "headline": ", ".join(f"{name} {value:.1f} %" for name, value in measured.items()),
        "benchmarks": figures | others,
        "leakage": benchmarks.check_leakage(wanted.adapter or wanted.model, asked, wanted.card_data),
    }
    if wanted.audit:
        record["audit"] = {name: scores.disagreements(one) for name, one in found.items()}
    record["votes"] = {}
    published = benchmarks.beside_published(wanted.name, measured)
    shown: dict[str, Any] = {"settings": {}, "curves": {}, "questions": {}, "unread": {}, "since": {}}
    # Find the newest other evaluation of the same questions, to show which votes have flipped since.
    beside = [path for path in folder.parent.glob(f"*/{FIGURES}") if path.parent != folder]
    beside.sort(key=lambda path: path.stat().st_mtime, reverse=True)
    for name, one in found.items():
        votes, digest = (one.votes() > 0.5).tolist(), sha256(repr(asked[name]).encode()).hexdigest()
        record["votes"][name] = {"questions": digest, "right": votes}
        for path in beside:  # skip a broken file, or one of version 1.0.1
            with suppress(AimoError, LookupError, TypeError):
                voted = read_json(path, "")["votes"][name]
                if voted["questions"] == digest:
                    shown["since"][name] = path.parent.name, voted["right"]
                    break
        shown["settings"][name] = one.header.settings | {"context": one.header.context}
        shown["questions"][name] = [question_row(one, i) | {"vote": vote} for i, vote in enumerate(votes)]
        sizes = scores.vote_sizes(one.samples)
        shown["curves"][name] = {
            "pass@k": {k: float(scores.pass_at(one.right, k).mean()) for k in sizes},
            "maj@k": {k: float(one.majority(k).mean()) for k in sizes},
        }
        if one.unread.any():  # wrong completions that state the right answer
            shown["unread"][name] = [
                {
                    "question": asked[name][i].id,
                    "gold": asked[name][i].answer,
                    "read": one.answers[i][j] or "none",
                    "end": one.traces[i][j].text[-120:],
                }
                for i, j in zip(*np.nonzero(one.unread), strict=True)
            ]
    # For the hub (huggingface.co/docs/hub/eval-results): whole benchmarks with a leaderboard there, no file
    # with a benchmark's name. MathArena's sets use their own name as the task (`eval.yaml`).
    for name in benchmarks.BENCHMARKS.keys() & figures.keys() & {*wanted.benchmarks}:
        source, k = benchmarks.BENCHMARKS[name].source, found[name].samples
        if source.startswith("MathArena/") and wanted.rows is None:
            value, notes = round(100 * figures[name]["pass@1"][0], 2), f"pass@1 in percent, k = {k}"
            told = f"{notes}; aimo {version('aimo')}"
            entry = EvalResultEntry(dataset_id=source, task_id=source, value=value, notes=told)
            (folder / ".eval_results").mkdir(exist_ok=True)
            text = yaml.safe_dump(eval_result_entries_to_yaml([entry]), sort_keys=False)
            write_whole(folder / ".eval_results" / f"{name}.yaml", text)
    write_json(folder / FIGURES, record)
    pages.write_evaluation(folder, record | shown | {"published": published})
    track(wanted.log_to, folder, wanted.name, figures)
    pages.write_index(folder)


def question_row(one: Scores, i: int) -> dict[str, Any]:
    """Return the i-th question with its pass rate and its completions."""
    question = one.header.questions[i]
    row: dict[str, Any] = {"id": question.id, "problem": question.problem, "gold": question.answer}
    row |= {"right": float(one.right[i].mean()), "tokens": float(one.tokens[i])}
    group = zip(one.right[i].tolist(), one.answers[i], one.traces[i], strict=True)
    return row | {"completions": [{"right": ok, "answer": a, "text": t.text} for ok, a, t in group]}


def track(to: str, folder: Path, name: str, figures: dict[str, dict[str, Any]]) -> None:
    """Send each benchmark's or model's figures to the tracker `to`, as `aime24/pass@1`, without intervals.
    "none" sends nothing; TensorBoard's files go into `folder`."""
    if to == "none":
        return
    firsts = {
        f"{group}/{key}": value[0] if isinstance(value, list) and value else value
        for group, values in figures.items()
        for key, value in values.items()
    }
    flat = {key: float(value) for key, value in firsts.items() if isinstance(value, int | float)}
    if to == "tensorboard":
        board = importlib.import_module("torch.utils.tensorboard")
        with board.SummaryWriter(str(folder / "tensorboard")) as writer:
            for key, number in flat.items():
                writer.add_scalar(key, number)
        return
    try:
        tracker = importlib.import_module(to)  # Trackio and W&B take the same calls
    except ImportError:
        raise AimoError(f"training.log_to: {to} is not installed; install it, or take tensorboard") from None
    tracker.init(project="aimo", name=name)
    tracker.log(flat)
    tracker.finish()


# Folders of evaluations


def make_folder(folder: Path) -> None:
    """Create a folder. AimoError if it cannot be written to."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as e:
        raise AimoError(f"--run-dir {folder}: {e.strerror}; take another") from None


def evaluation_folder(name: str, run_dir: str | None, kind: str = "evaluate") -> Path:
    """Return the folder of an evaluation or comparison: `run_dir`, or else runs/KIND-NAME."""
    return Path(run_dir).absolute() if run_dir else RUNS / f"{kind}-{name}"


def model_name(model: Path) -> str:
    """Return a short name for a model folder or adapter: RUN-STAGE for a stage's, otherwise the folder's."""
    path = model.absolute()
    own = path.name in ("model", "trained") and len(path.parts) > 3
    return "-".join(path.parts[-3:-1]) if own else path.name


def read_evaluation(folder: Path) -> tuple[dict[str, Any], dict[str, Scores]]:
    """Return a folder's evaluation.json and scores by benchmark. AimoError if it is missing or broken."""
    path = folder / FIGURES
    if not path.exists():
        raise AimoError(f"{folder}: it holds no finished evaluation; make one with `aimo evaluate`")
    remedy = "remove it, and evaluate again: completions are kept"
    record = dict(read_json(path, remedy))
    rows = record.get("benchmarks")
    if not isinstance(rows, dict) or not all(isinstance(row, dict) for row in rows.values()):
        raise AimoError(f"{path}: it has no table of benchmarks; {remedy}")
    files = {name: file for name in rows if (file := folder / f"{name}.jsonl").exists()}
    return record, {name: scores.score(*completions.read_completions(file)) for name, file in files.items()}


def show_scores(found: dict[str, Scores]) -> None:
    table = Table("benchmark", "questions", "k", "pass@1", "95 %", "maj@k", "tokens", "cut off", "no answer")
    for name, one in found.items():
        row = scores.figures_of(one)
        value, low, high = row["pass@1"]
        vote = row.get(f"maj@{one.samples}", row["pass@1"])[0]
        table.add_row(
            name, str(row["questions"]), str(one.samples), f"{value:.3f}", f"{low:.3f} to {high:.3f}",
            f"{vote:.3f}", f"{row['mean_tokens'][0]:,.0f}", f"{row['cut_off']:.3f}",
            f"{row['no_answer']:.3f}",
        )  # fmt: skip
        if one.unreadable:
            print(f"{name}: gold answers that cannot be read, counted as wrong: {', '.join(one.unreadable)}")
        if count := int(one.unread.sum()):
            told = "wrong completions state the right answer, which was not read as theirs; the page has them"
            print(f"{name}: {count} {told}")
    Console(width=110).print(table)


# Notebook 04


def evaluate_models(engine: Engine, run: Run, rows: list[dict[str, Any]]) -> dict[str, Scores]:
    """Evaluate the base and each trained model in turn, in one engine, on n held-out rows, and write
    majority.json and samples.json. AimoError if vLLM does not compute what a stage has trained."""
    kept = {name: run.folder / f"{name}.json" for name in ("majority", "samples")}
    for path in kept.values():
        path.unlink(missing_ok=True)
    if not rows:
        return {}
    models, profile = run.models(), run.profile
    prompt = profile.prompt
    if not profile.trained:  # a public model brings its own format
        prompt = replace(prompt, **asdict(engine.settings.tags))
    found: dict[str, Scores] = {}
    for i, (name, folder) in enumerate(models.items()):
        engine.load_weights(folder)
        apart = served.check_engine(engine, run.dir / name, profile.training.served_bound)
        if apart is not None:
            print(f"{name}: vLLM's log-probabilities are {apart:.2g} from those of training, on average.")

        def progress(done: int, total: int, note: str, before: int = i, model: str = name) -> None:
            run.progress(before * total + done, len(models) * total, f"{model} {note}")

        samples = engine.settings.samples
        asked = rows, prompt, samples, profile.seed, progress, profile.rules
        found[name] = scores.sample_rows(engine, *asked)
    write_json(kept["majority"], {name: one.vote_curve() for name, one in found.items()})
    write_json(kept["samples"], {"questions": kept_questions(found), "of": len(rows)})
    figures = {name: one.metrics() for name, one in found.items()}
    track(profile.training.log_to, run.folder, profile.profile, figures)
    return found


def kept_questions(found: dict[str, Scores]) -> list[dict[str, Any]]:
    """Return up to SHOWN of n questions with each model's completions, starting with those whose vote has
    `flipped` from one model to the next."""
    votes = {name: (one.votes() > 0.5).tolist() for name, one in found.items()}
    told = []  # by question
    for i in range(len(next(iter(votes.values())))):
        changes = ((name, pages.flipped(votes[a][i], votes[name][i])) for a, name in pairwise(votes))
        told.append(", ".join(f"{name}: {change}" for name, change in changes if change))
    shown = []
    most = pages.shown_of(SHOWN * sum(one.samples for one in found.values()))
    for i in sorted(range(len(told)), key=lambda i: not told[i])[:SHOWN]:
        sides = {name: question_row(one, i) for name, one in found.items()}
        for completion in (one for side in sides.values() for one in side["completions"]):
            completion["text"] = pages.cut(completion["text"], most)
        first = next(iter(sides.values()))
        named = {key: first[key] for key in ("id", "problem", "gold")}
        shown.append(named | {"flipped": told[i], "sides": sides})
    return shown
