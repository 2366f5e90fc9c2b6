"""What each page says: of a run, its notebooks, an evaluation, a comparison, a distillation, and their list.

Out of scope: where the figures come from, and how a page looks (`page`).
"""

import fcntl
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import date, datetime
from pathlib import Path
from typing import Any

from aimo.config import RUNS
from aimo.config.stages import STAGES, TRAINED
from aimo.errors import AimoError
from aimo.inference.storage import read_json, read_lines, write_json
from aimo.report import mathematics, page, plots, tables
from aimo.report.page import Html, Section
from aimo.run import machine
from aimo.run.runs import figures as figures_of

KINDS = {
    "report.html": "run",
    "evaluation.html": "evaluation",
    "comparison.html": "comparison",
    "distillation.html": "distillation",
    "rehearsal.html": "rehearsal",
    "gpu-check.html": "GPU check",
}
"""What a folder's page is named, and what kind it is then."""
RECORD = (
    "seconds",
    "steps",
    "mean_loss",
    "train_seconds",
    "samples_per_second",
    "steps_per_second",
    "total_flos",
)
"""What a run's page shows of the record of each stage."""
SHOWN = 6000  # characters of a completion
SHOWN_PROBLEMS = 50  # of a distillation
COLOURS = {"measured": plots.RIGHT, "published": "#3b76b0", "not run": plots.GREY}
MEANINGS = {
    "measured": "measured here",
    "published": "published by others, with their own settings",
    "not run": "not run here",
}


@contextmanager
def reading(path: Path, kind: type = dict) -> Iterator[Any]:
    """Read a JSON file that aimo wrote, or JSON lines; None where there is none.

    What fails in the context because the file holds something else becomes an AimoError that names it.
    """
    remedy = "remove it, and do what made it again"
    lines = path.suffix == ".jsonl"
    try:
        yield read_lines(path, remedy) if lines else read_json(path, remedy, kind) if path.exists() else None
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as e:
        what = f"{type(e).__name__}: {e}"[:100]
        raise AimoError(f"{path}: it does not hold what aimo wrote there ({what}); {remedy}") from None


# A run


def write_run(folder: Path) -> Path:
    """Write `report.html` of a run's folder from what lies there, and return its path.

    What the run has not made is left out. AimoError for a file that is cut off or holds something else.
    """
    with reading(folder / "metrics.json") as metrics:
        stages = metrics["stages"]
        sections = [
            *held_out(folder, stages),
            *training(folder),
            *inference(folder, stages),
            *record(folder, stages),
        ]
        lead = f"{date.today()}, seed {metrics['seed']}, {machine.device()}"
        return page.write_page(folder / "report.html", f"aimo: {metrics['profile']}", lead, sections)


def held_out(folder: Path, stages: dict[str, Any]) -> Iterator[Section]:
    """The held-out figures of each model, and completions of each for the same problems."""
    models = stages.get("inference", {}).get("models")
    if not models:
        return
    figures = {
        name: measured | {"seconds": stages.get(name, {}).get("seconds", "")}
        for name, measured in models.items()
    }
    lead = "Shares of well-formed completions (format), right ones (pass@1) and right votes of k (maj@k)."
    yield Section(tables.evaluation(figures), "Held-out problems", lead)
    with reading(folder / "inference/majority.json") as majority:
        if majority:
            yield Section(plots.accuracy(models, majority))
    with reading(folder / "inference/samples.json") as samples:
        if samples:
            view = tables.completions(samples["rows"], **samples["texts"])
            yield Section(view, "Completions", "One completion of each model for the same held-out problems.")


def training(folder: Path) -> Iterator[Section]:
    """The log of each stage that trains, the last stage first."""
    for name in reversed(TRAINED):
        with reading(folder / name / "log.jsonl") as log:
            if log:
                yield Section(plots.training(log), f"Training: {name}", mismatch(log))


def mismatch(log: list[dict[str, Any]]) -> str:
    """The steps at which vLLM may have had other weights than the trainer; "" for none."""
    mean, bound = f"{plots.MISMATCH}/mean", f"{plots.MISMATCH}/bound"
    steps = [str(record["step"]) for record in log if mean in record and record[mean] > record[bound]]
    if not steps:
        return ""
    return (
        f"vLLM may have had the weights of an earlier step at: {', '.join(steps)} (docs/troubleshooting.md)."
    )


def inference(folder: Path, stages: dict[str, Any]) -> Iterator[Section]:
    """The answers to the test file, their votes, and the settings that they were sampled with."""
    with reading(folder / "inference/solutions.json", list) as solutions:
        if not solutions:
            return
        score = stages["inference"]
        known = f"{score['correct']} of {score['known']} known answers right, " if score["known"] else ""
        lead = f"{score['questions']} questions: {known}{score['fallbacks']} answered with the fallback."
        yield Section(plots.votes(solutions), "The test file", lead)
        yield Section(tables.answers(solutions))
        yield Section(plots.timelines(solutions), lead="The samples of each question, with their answers.")
        yield Section(plots.cost(solutions))
        yield Section(tables.closest_votes(solutions), lead="Completions of the closest votes.")
    with reading(folder / "submission.settings.json") as settings:
        if settings:
            yield Section(page.text(as_json(settings)), "Inference settings")


def record(folder: Path, stages: dict[str, Any]) -> Iterator[Section]:
    """What each stage took, the versions of the packages, and the profile."""
    times = [
        {"stage": name} | {key: stages[name].get(key, "") for key in RECORD}
        for name in STAGES
        if name in stages
    ]
    yield Section(tables.table(times), "Time and training")
    versions = [{"package": name, "version": version} for name, version in machine.versions().items()]
    yield Section(tables.table(versions), "Versions")
    yield Section(page.text((folder / "profile.yaml").read_text(errors="replace")), "Settings")


def today() -> str:
    """The day and the machine."""
    return f"{date.today()}, {machine.device()}"


def as_json(value: Any) -> str:
    """Settings as a reader sees them."""
    return json.dumps(value, indent=2, ensure_ascii=False)


def write_notebook(executed: Path) -> Path:
    """Write an executed notebook, with its tables and pictures, as a page beside it; return its path."""
    import nbformat
    from nbconvert import HTMLExporter

    notebook = nbformat.read(executed, 4)
    for output in (output for cell in notebook.cells for output in cell.get("outputs", [])):
        if "data" in output:  # no script, no widget
            shown = ("text/html", "image/png", "text/plain")
            kept = {kind: output.data[kind] for kind in shown if kind in output.data}
            output.data = {"text/plain": ""} | kept
    exporter = HTMLExporter(
        template_name="basic",  # the others load scripts from elsewhere
        exclude_anchor_links=True,
        exclude_input_prompt=True,
        exclude_output_prompt=True,
    )
    view = Html(exporter.from_notebook_node(notebook)[0])
    lead = f"Executed {date.today()}."
    title = f"{executed.parents[1].name}: {executed.stem}"
    return page.write_page(executed.with_suffix(".html"), title, lead, [Section(view)])


# An evaluation


def write_evaluation(folder: Path, found: dict[str, Any]) -> Path:
    """Write `evaluation.html` into an evaluation's folder and return its path.

    `found` is evaluation.json's object with `questions`, `curves`, `settings` and `published` rows.
    """
    sections = [
        *benchmarks(found),
        *beside(*found["published"]),
        *groups(found["benchmarks"]),
        *leakage(found["leakage"]),
        *audit(found.get("audit", {})),
        *questions(found["questions"]),
        Section(page.text(as_json(found["settings"])), "Settings"),
    ]
    return page.write_page(folder / "evaluation.html", f"Evaluation: {found['model']}", today(), sections)


def benchmarks(found: dict[str, Any]) -> Iterator[Section]:
    """The figures of each benchmark, and how they grow with the number of completions."""
    rows = []
    for name, figures in found["benchmarks"].items():
        row: dict[str, Any] = {"benchmark": name}
        for key, value in figures.items():
            if isinstance(value, list) and "@" in key:
                row[f"{key.partition('@')[0]}@{'1' if key == 'pass@1' else 'k'}, %"] = percent(value)
            elif key in ("questions", "samples", "seconds"):
                row[{"samples": "k"}.get(key, key)] = value
            elif key == "mean_tokens":
                row["tokens"] = f"{value[0]:,.0f}"
            elif key in ("cut_off", "no_answer"):
                row[f"{key.replace('_', ' ')}, %"] = f"{100 * value:.1f}"
            elif key == "lighteval":
                row |= {metric: float(share) for metric, share in value.items()}
        rows.append(row)
    lead = (
        "pass@1 is the mean over all completions, pass@k the chance that one of k is right, maj@k that their "
        "vote is. In brackets the 95 % interval over questions."
    )
    yield Section(tables.table(rows), "Figures", lead)
    if any(len(curve) > 1 for curves in found["curves"].values() for curve in curves.values()):
        yield Section(plots.by_samples(found["curves"]))


def percent(figure: list[float]) -> str:
    """A share with its interval, in percent."""
    value, low, high = (100 * number for number in figure)
    return f"{value:.1f} ({low:.1f} to {high:.1f})"


def beside(rows: list[dict[str, Any]], sources: list[dict[str, Any]]) -> Iterator[Section]:
    """Our figures and published ones; each cell says by its colour which it is."""
    marked = [
        {
            key: badge(value, row["kind"]) if isinstance(value, float) or value in COLOURS else value
            for key, value in row.items()
        }
        for row in rows
    ]
    legend = ", ".join(f"{kind}: {meaning}" for kind, meaning in MEANINGS.items())
    yield Section(tables.table(marked), "Beside published figures", f"pass@1 in percent. {legend}.")
    yield Section(tables.table(sources))


def badge(value: float | str, kind: str) -> Html:
    """A figure or a word in the colour of its kind."""
    return page.render(
        '<span style="color:{{ colour }};font-weight:600">{{ shown }}</span>',
        colour=COLOURS.get(str(value), COLOURS[kind]),
        shown=f"{value:.1f}" if isinstance(value, float) else value,
    )


def groups(benchmarks: dict[str, dict[str, Any]]) -> Iterator[Section]:
    """pass@1 by subject and level, of the benchmarks that have them."""
    for name, figures in benchmarks.items():
        for by in ("subject", "level"):
            rows = [
                {by: label, "questions": row["questions"], "pass@1, %": percent(row["pass@1"])}
                for label, row in figures.get(f"by_{by}", {}).items()
            ]
            if rows:
                yield Section(tables.table(rows), f"{name} by {by}")


def leakage(checked: dict[str, dict[str, Any]]) -> Iterator[Section]:
    """How much of each benchmark's text stands in the training data."""
    rows = [
        {"benchmark": name, "share of its text, %": "not checked", "why": found["why"]}
        if "why" in found
        else {
            "benchmark": name,
            "share of its text, %": f"{100 * found['share']:.2f}",
            "questions with any": len(found["found"]),
            "training texts": found["texts"],
            "data": found["data"],
        }
        for name, found in checked.items()
    ]
    if rows:
        lead = "Runs of eight words of a question that also stand in the model's training data."
        yield Section(tables.table(rows), "Leakage", lead)


def audit(found: dict[str, list[dict[str, Any]]]) -> Iterator[Section]:
    """The completions on which a second scorer disagrees."""
    for name, rows in found.items():
        view = tables.table(rows) if rows else tables.note("math-verify gives the same verdicts.")
        yield Section(view, f"{name}: verdicts that math-verify does not share")


def questions(benchmarks: dict[str, list[dict[str, Any]]]) -> Iterator[Section]:
    """Each question with the share of its completions that are right, and completions to unfold."""
    for name, rows in benchmarks.items():
        view = tables.table(
            [
                {
                    "id": row["id"],
                    "problem": mathematics.text(row["problem"]),
                    "gold": mathematics.answer(row["gold"]),
                    "right, %": f"{100 * row['right']:.0f}",
                    "tokens": f"{row['tokens']:,.0f}",
                    "completions": page.join(map(completion, row["completions"])),
                }
                for row in rows
            ]
        )
        yield Section(view, f"{name}: questions", "One right and one wrong completion of each unfold.")


def completion(one: dict[str, Any]) -> Html:
    """A completion to unfold, with its answer as the summary."""
    verdict = "right" if one["right"] else "wrong"
    text = one["text"]
    if len(text) > SHOWN:
        left_out = f"\n\n… {len(text) - SHOWN:,} characters left out …\n\n"
        text = text[: SHOWN // 2] + left_out + text[-SHOWN // 2 :]
    return page.fold(f"{verdict}: {one['answer'] or 'no answer'}", mathematics.text(text))


# A comparison


def write_comparison(folder: Path, found: dict[str, Any]) -> Path:
    """Write `comparison.html` into a comparison's folder and return its path.

    `found` has `title`, `verdicts`, the rows `differences`, and `flips`: by pair, rows with two completions.
    """
    sections = [
        *(Section(None, lead=line) for line in found["verdicts"]),
        Section(
            tables.table(found["differences"]), "Differences", "95 % intervals over questions, in points."
        ),
    ]
    for pair, rows in found["flips"].items():
        lead = "Questions whose vote is right for one and wrong for the other; completions unfold."
        view = tables.table([flip(row) for row in rows]) if rows else tables.note("None.")
        sections.append(Section(view, f"{pair}: {len(rows)} questions flipped", lead))
    return page.write_page(folder / "comparison.html", found["title"], str(date.today()), sections)


def flip(row: dict[str, Any]) -> dict[str, Any]:
    """One question's line: the pass rates and a completion of each model, side by side."""
    shown: dict[str, Any] = {
        "id": row["id"],
        "problem": mathematics.text(row["problem"]),
        "gold": mathematics.answer(row["gold"]),
    }
    for name, side in row["sides"].items():
        shown[f"{name}, %"] = f"{100 * side['right']:.0f}"
        shown[name] = page.join(map(completion, side["completions"]))
    return shown


# A distillation


def write_distillation(path: Path, source: str, found: Any, bounds: tuple[float, float]) -> Path:
    """Write the page, with its headline for the list of runs beside it; returns its path.

    `found` is `aimo.data.rejection.Rejection`; `bounds` are the pass rates that were kept.
    """
    rate = found.problems["pass_rate"]
    headline = f"{len(found.kept):,} completions kept, pass rate {rate.mean():.3f}"
    try:
        write_json(path.with_suffix(".json"), {"headline": headline})
        sections = [*counts(found), *rates(found, bounds), *teacher(found)]
        return page.write_page(path, f"Distillation: {source}", today(), sections)
    except OSError as e:
        raise AimoError(f"--page {path}: {e.strerror}; take a file that can be written") from None


def counts(found: Any) -> Iterator[Section]:
    """What was kept, and what was dropped for which reason."""
    rows: list[dict[str, Any]] = [{"completions": "kept", "": len(found.kept)}]
    rows += [
        {"completions": mathematics.text(f"dropped: {reason}"), "": count}
        for reason, count in found.dropped.items()
    ]
    yield Section(tables.table(rows), "Kept", f"Of {len(found.problems):,} problems.")


def rates(found: Any, bounds: tuple[float, float]) -> Iterator[Section]:
    """How many problems have which share of right completions."""
    lead = "The share of a problem's completions that are right and finished."
    yield Section(plots.pass_rates(found.problems["pass_rate"].to_list(), bounds), "Pass rates", lead)


def teacher(found: Any) -> Iterator[Section]:
    """The first problems, with what is kept of them to unfold."""
    kept = found.kept.group_by("problem").agg("generation")
    texts = dict(kept.iter_rows())
    rows = [
        {
            "problem": mathematics.text(row["problem"]),
            "gold": mathematics.answer(row["answer"] or ""),
            "right, %": f"{100 * row['pass_rate']:.0f}",
            "samples": row["samples"],
            "kept": unfold(texts.get(row["problem"], [])),
        }
        for row in found.problems.head(SHOWN_PROBLEMS).iter_rows(named=True)
    ]
    yield Section(tables.table(rows), "Problems", f"The first {len(rows):,}.")


def unfold(texts: list[str]) -> str:
    """Completions, each behind its length."""
    folds = [page.fold(f"{len(text):,} characters", mathematics.text(text)) for text in texts]
    return page.join(folds) or "none"


# The list


def write_index(folder: Path, runs: Path = RUNS) -> None:
    """Write runs/index.html anew after a page in `folder` was written; nothing to do for a folder elsewhere.

    The newest page comes first. AimoError when it cannot be written.
    """
    if folder.absolute().parent != runs:
        return
    lock = os.open(runs, os.O_RDONLY)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)  # of two runs that end together, the later one sees both pages
        pages = {}
        for path in (path for name in KINDS for path in runs.glob(f"*/{name}")):
            with suppress(FileNotFoundError):  # a folder that is being removed
                pages[path] = path.stat().st_mtime
        rows = [row(path, pages[path], runs) for path in sorted(pages, key=pages.__getitem__, reverse=True)]
        view = tables.table(rows) if rows else tables.note("No run has a page yet.")
        lead = f"{len(rows)} pages, the newest first."
        page.write_page(runs / "index.html", "aimo: runs", lead, [Section(view)])
    finally:
        os.close(lock)


def row(path: Path, written: float, runs: Path) -> dict[str, Any]:
    """One page's line in the list."""
    return {
        "written": f"{datetime.fromtimestamp(written):%Y-%m-%d %H:%M}",
        "page": page.link(path.parent.name, str(path.relative_to(runs))),
        "kind": KINDS[path.name],
        "figures": headline(path),
    }


def headline(path: Path) -> str:
    """The figures of a page in one line, or why there are none."""
    is_run = path.name == "report.html"
    source = path.with_name("metrics.json") if is_run else path.with_suffix(".json")
    try:
        with reading(source) as found:
            if not is_run:
                return str((found or {}).get("headline", ""))
            measured = {
                name: row["pass@1"] for name, row in figures_of(path.parent).items() if "pass@1" in row
            }
            return ", ".join(f"{name} {value:.3f}" for name, value in measured.items())
    except AimoError:
        return f"{source.name} cannot be read"  # another run's broken file does not end this one
