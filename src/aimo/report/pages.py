"""Write the pages of runs, notebooks, evaluations, comparisons and distillations, and the list of them."""

import fcntl
import json
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from datetime import date, datetime
from pathlib import Path
from typing import Any

import nbformat

from aimo.config import RUNS
from aimo.config.profile import STAGES, TRAINED
from aimo.inference.errors import AimoError
from aimo.inference.storage import read_json, read_lines, write_json
from aimo.report import page, plots, tables
from aimo.report.page import Html, Section, write_page
from aimo.run import machine
from aimo.run.runs import by_hand
from aimo.run.runs import figures as figures_of

# The kind of a page, by its file's name.
KINDS = {f"{kind}.html": kind for kind in ("evaluation", "comparison", "distillation", "rehearsal", "scores")}
KINDS |= {"report.html": "run", "gpu-check.html": "GPU check"}
# The files that a run's page links to, and what it shows of each stage's record.
PARTS = "data/README.md", "distillation.html", "notebooks/*.html"
SPEEDS = ["train_seconds", "samples_per_second", "steps_per_second", "total_flos"]
RECORD = ["seconds", "steps", "mean_loss", *SPEEDS]
SHOWN, LEAST_SHOWN = 6000, 300  # characters of a completion
BUDGET = 2_000_000  # characters of all completions in a page, if that leaves LEAST_SHOWN for each
SHOWN_PROBLEMS = 50  # of a distillation
GRID = (
    '<div class="grid">{% for one in squares %}<details class="{{ one.kind }}">'
    '<summary title="{{ one.told }}">{{ one.mark }}</summary><div>{{ one.text }}</div>'
    "</details>{% endfor %}</div>"
)
QUESTIONS = (
    '{% for one in rows %}<div class="question"><div><span>{{ one.id }}.</span> {{ one.problem }}'
    "<p>answer {{ one.gold }}{% if one.flipped %}; {{ one.flipped }}{% endif %}</p></div><div>"
    '{% for side, squares in one.sides %}<div class="side"><span>{{ side }}</span>{{ squares }}</div>'
    "{% endfor %}</div></div>{% endfor %}"
)
SQUARES = "A square for each completion: green is right, red is wrong, and a click unfolds it."
BADGE = '<span style="color:{{ colour }};font-weight:600">{{ shown }}</span>'
COLOURS = {"measured": plots.RIGHT, "published": "#3b76b0", "not run": plots.GREY}


@contextmanager
def reading(folder: Path) -> Iterator[Callable[..., Any]]:
    """Yield a function that reads JSON and JSON lines files of a folder; for JSON, None if there is no file.

    If a file holds something else, the resulting error in the context becomes an AimoError that names it.
    """
    path, remedy = folder, "remove it, and do what made it again"

    def read(name: str, kind: type = dict) -> Any:
        nonlocal path
        path = folder / name
        if path.suffix == ".jsonl":
            return read_lines(path, remedy)
        return read_json(path, remedy, kind) if path.exists() else None

    try:
        yield read
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as e:
        what = f"{type(e).__name__}: {e}"[:100]
        raise AimoError(f"{path}: it does not hold what aimo wrote there ({what}); {remedy}") from None


def settings_section(settings: Any, title: str) -> Section:
    return Section(page.verbatim(json.dumps(settings, indent=2, ensure_ascii=False)), title)


def write_run(folder: Path) -> Path:
    """Write `report.html` from the files in a run's folder; return its path."""
    sections: list[Section] = []

    def add(view: Html, title: str = "", lead: str = "") -> None:
        sections.append(Section(view, title, lead))

    with reading(folder) as read:
        metrics = read("metrics.json")
        stages, models = metrics["stages"], metrics["stages"].get("inference", {}).get("models", {})
        title, seed = f"aimo: {metrics['profile']}", metrics["seed"]
        rows = {name: stages[name] for name in STAGES if name in stages}
        times = [{"stage": name} | {key: row.get(key, "") for key in RECORD} for name, row in rows.items()]
        if models:
            seconds = {name: {"seconds": rows.get(name, {}).get("seconds", "")} for name in models}
            view = tables.evaluation({name: figures | seconds[name] for name, figures in models.items()})
            shares = "well-formed completions (format), right ones (pass@1) and right votes of k (maj@k)"
            add(view, "Held-out problems", f"Shares of {shares}.")
            if majority := read("inference/majority.json"):
                add(plots.plot_accuracy(models, majority))
        for name in TRAINED:
            if log := read(f"{name}/log.jsonl"):
                mean, bound = f"{plots.MISMATCH}/mean", f"{plots.MISMATCH}/bound"
                apart = ", ".join(str(row["step"]) for row in log if mean in row and row[mean] > row[bound])
                told = f"vLLM may have had an earlier step's weights at: {apart} (docs/troubleshooting.md)."
                add(plots.training(log), f"Training: {name}", told if apart else "")
                probed: dict[str, dict[str, Any]] = {}
                for line in read(f"{name}/probes.jsonl"):
                    row = probed.setdefault(line["problem"], line | {"sides": {"": {"completions": []}}})
                    row["sides"][""]["completions"].append(line)
                if probed:
                    told = f"{len(probed)} problems as training went on: a square has the step"
                    add(page.fold(f"{told} of its completion.", beside([*probed.values()])))
        if solutions := read("inference/solutions.json", list):
            score = stages["inference"]
            known = f"{score['correct']} of {score['known']} known answers right, " if score["known"] else ""
            told = f"{score['questions']} questions: {known}{score['fallbacks']} answered with the fallback."
            add(plots.votes(solutions), "The test file", told)
            add(tables.answers(solutions))
            add(plots.timelines(solutions), lead="The samples of each question, with their answers.")
            add(plots.cost(solutions))
            add(tables.closest_votes(solutions), lead="Completions of the closest votes.")
            if settings := read("submission.settings.json"):
                sections.append(settings_section(settings, "Inference settings"))
        if models and (samples := read("inference/samples.json")):
            if "questions" in samples:
                told = f"{len(samples['questions'])} of {samples['of']} held-out problems, first those whose "
                told += "vote flipped from a model to the next"
                add(page.fold(told, beside(samples["questions"])), "Completions", SQUARES)
            else:  # written by version 1.0.1
                view = tables.completions(samples["rows"], **samples["texts"])
                add(view, "Completions", "One completion of each model for the same held-out problems.")
    parts = sorted(path for part in PARTS for path in folder.glob(part))
    links = [page.link(name, name) for name in (str(path.relative_to(folder)) for path in parts)]
    told = page.render("Of this run: {{ links | join(', ') }}.", links=links) if links else ""
    add(tables.table(times), "Time and training", told)
    add(tables.pairs(machine.versions(), "package", "version"), "Versions")
    add(page.verbatim((folder / "profile.yaml").read_text(errors="replace")), "Settings")
    lead = f"{date.today()}, seed {seed}, {machine.device()}"
    return write_page(folder / "report.html", title, lead, sections, contents=True)


def write_by_hand(folder: Path) -> None:
    """Write and list a run's report if a person runs the notebook."""
    if by_hand():
        print(f"report: {write_run(folder)}")
        write_index(folder)


def write_notebook(executed: Path) -> Path:
    """Write an executed notebook as a page beside it; return its path."""
    from nbconvert import HTMLExporter  # takes half a second; only the pipeline needs it

    notebook = nbformat.read(executed, 4)
    shown = ("text/html", "image/png", "text/plain")  # no script, no widget
    for output in (output for cell in notebook.cells for output in cell.get("outputs", [])):
        if "data" in output:
            kept = {kind: output.data[kind] for kind in shown if kind in output.data}
            output.data = {"text/plain": ""} | kept
    exporter = HTMLExporter(
        template_name="basic",  # the others load scripts from elsewhere
        exclude_anchor_links=True,
        exclude_input_prompt=True,
        exclude_output_prompt=True,
    )
    view = Html(exporter.from_notebook_node(notebook)[0])
    title = f"{executed.parents[1].name}: {executed.stem}"
    return write_page(executed.with_suffix(".html"), title, f"Executed {date.today()}.", [Section(view)])


# Evaluations and comparisons


def percent(figure: list[float]) -> str:  # a share and its interval
    value, low, high = (100 * number for number in figure)
    return f"{value:.1f} ({low:.1f} to {high:.1f})"


def asked(row: dict[str, Any]) -> dict[str, Any]:  # the cells that identify a row's question
    problem, gold = page.as_mathematics(row["problem"]), page.as_answer(row["gold"])
    return {"id": row["id"], "problem": problem, "gold": gold}


def shown_of(completions: int) -> int:
    """Return how many characters of each completion a page shows if it has this many completions."""
    return max(LEAST_SHOWN, min(SHOWN, BUDGET // max(1, completions)))


def cut(text: str, most: int) -> str:
    """Return a text, or the beginning and end of one that is longer than `most` characters."""
    if len(text) <= most:
        return text
    half = most // 2
    return f"{text[:half]}\n\n… {len(text) - 2 * half:,} characters left out …\n\n{text[-half:]}"


def grid(completions: list[dict[str, Any]], most: int = SHOWN) -> Html:
    """Return a square for each completion, green if right and red if wrong, that unfolds its text.

    Formulas are rendered only in the first right and the first wrong text.
    """
    squares, seen = [], set()
    for one in completions:
        text = cut(one["text"], most)
        kind = "right" if one["right"] else "wrong"
        told = f"{kind}: {one['answer'] or 'no answer'}"
        set_as = page.as_mathematics(text) if kind not in seen else text
        seen.add(kind)
        mark = one.get("step", "✓" if one["right"] else "✗")
        squares.append({"kind": kind, "mark": mark, "told": told, "text": page.join([told, "\n\n", set_as])})
    return page.render(GRID, squares=squares)


def beside(rows: list[dict[str, Any]]) -> Html:
    """Return questions, each with the completions of several models (`sides`, by name)."""
    most = shown_of(sum(len(side["completions"]) for row in rows for side in row["sides"].values()))
    shown = []
    for row in rows:
        sides = [
            (
                f"{name} {100 * side['right']:.0f} %" if "right" in side else name,
                grid(side["completions"], most),
            )
            for name, side in row["sides"].items()
        ]
        shown.append(asked(row) | {"flipped": row.get("flipped"), "sides": sides})
    return page.render(QUESTIONS, rows=shown)


def flipped(before: bool, now: bool) -> str:
    return "" if before == now else "now right" if now else "now wrong"


def write_evaluation(folder: Path, found: dict[str, Any]) -> Path:
    """Write `evaluation.html` into an evaluation's folder; return its path.

    `found` is evaluation.json's object plus `questions`, `curves`, `settings`, `published` rows, and `since`,
    which maps a benchmark to the name of the previous evaluation and whether its votes were right.
    """
    rows, groups = [], []
    counts = {"questions": "questions", "samples": "k", "seconds": "seconds"}
    for name, figures in found["benchmarks"].items():
        row: dict[str, Any] = {"benchmark": name}
        for key, value in figures.items():
            if isinstance(value, list) and "@" in key:
                row[f"{key.partition('@')[0]}@{'1' if key == 'pass@1' else 'k'}, %"] = percent(value)
            elif key in counts:
                row[counts[key]] = value
            elif key == "mean_tokens":
                row["tokens"] = f"{value[0]:,.0f}"
            elif key in ("cut_off", "no_answer") or (key == "unread" and value):
                row[f"{key.replace('_', ' ')}, %"] = f"{100 * value:.1f}"
            elif key == "lighteval":
                row |= {metric: float(share) for metric, share in value.items()}
            elif key.startswith("by_") and value:
                by, group = key.removeprefix("by_"), []
                for label, one in value.items():
                    figure = percent(one["pass@1"])
                    group.append({by: label, "questions": one["questions"], "pass@1, %": figure})
                groups.append(Section(tables.table(group), f"{name} by {by}"))
        rows.append(row)
    lead = (
        "pass@1 is the mean over all completions, pass@k the chance that one of k is right, maj@k that their "
        "vote is. In brackets the 95 % interval over questions."
    )
    sections = [Section(tables.table(rows), "Figures", lead)]
    if any(len(curve) > 1 for curves in found["curves"].values() for curve in curves.values()):
        sections.append(Section(plots.by_samples(found["curves"])))
    rows, sources = found["published"]  # empty if nobody else was asked these questions
    for row in rows:
        kind = row["kind"]  # a figure's colour tells whose it is
        for key, value in row.items():
            if isinstance(value, float) or value in COLOURS:
                shown = f"{value:.1f}" if isinstance(value, float) else value
                row[key] = page.render(BADGE, colour=COLOURS.get(str(value), COLOURS[kind]), shown=shown)
    lead = (
        "pass@1 in percent. measured: measured here, published: published by others, with their own "
        "settings, not run: not run here."
    )
    if rows:
        sections.append(Section(tables.table(rows), "Beside published figures", lead))
        sections.append(Section(tables.table(sources)))
    sections += groups
    if found["leakage"]:
        leaks: list[dict[str, Any]] = []
        for name, checked in found["leakage"].items():
            share = "not checked" if "why" in checked else f"{100 * checked['share']:.2f}"
            leaks.append({"benchmark": name, "share of its text, %": share})
            if "why" not in checked:
                leaks[-1]["questions with any"] = len(checked["found"])
            kept = {"texts": "training texts", "data": "data", "why": "why"}
            leaks[-1] |= {shown: checked[key] for key, shown in kept.items() if key in checked}
        lead = "Runs of eight words of a question that also stand in the model's training data."
        sections.append(Section(tables.table(leaks), "Leakage", lead))
    for name, rows in found["unread"].items():
        sections.append(Section(tables.table(rows), f"{name}: right answers that were not read"))
    for name, rows in found.get("audit", {}).items():
        view = tables.table(rows) if rows else tables.note("math-verify gives the same verdicts.")
        sections.append(Section(view, f"{name}: verdicts that math-verify does not share"))
    for name, rows in found["questions"].items():
        most, questions = shown_of(sum(len(row["completions"]) for row in rows)), []
        since, before = found["since"].get(name, ("", []))
        for i, row in enumerate(rows):
            cells = {"right, %": f"{100 * row['right']:.0f}", "tokens": f"{row['tokens']:,.0f}"}
            if since:
                cells[f"since {since}"] = flipped(before[i], row["vote"])
            questions.append(asked(row) | cells | {"completions": grid(row["completions"], most)})
        lead = SQUARES
        if since:
            count = sum(bool(row[f"since {since}"]) for row in questions)
            lead += f" The votes of {count} questions have flipped since {since}, the evaluation before this."
        sections.append(Section(tables.table(questions), f"{name}: questions", lead))
    sections.append(settings_section(found["settings"], "Settings"))
    day = f"{date.today()}, {machine.device()}"
    return write_page(folder / "evaluation.html", f"Evaluation: {found['model']}", day, sections)


def write_comparison(folder: Path, found: dict[str, Any]) -> Path:
    """Write `comparison.html` into a comparison's folder; return its path.

    `found` has `title`, `verdicts`, the rows `differences`, and `flips`, rows with two completions by pair.
    """
    sections = [Section(None, lead=line) for line in found["verdicts"]]
    lead = "95 % intervals over questions, in points."
    sections.append(Section(tables.table(found["differences"]), "Differences", lead))
    lead = "Questions whose vote is right for one and wrong for the other; a click unfolds a completion."
    for pair, flips in found["flips"].items():
        view = beside(flips) if flips else tables.note("None.")
        sections.append(Section(view, f"{pair}: {len(flips)} questions flipped", lead))
    return write_page(folder / "comparison.html", found["title"], str(date.today()), sections)


def write_runs(
    folder: Path, names: Iterable[str], rows: list[dict[str, Any]], logs: dict[str, dict[str, Any]]
) -> Path:
    """Write `comparison.html` of runs from `rows` of their models' figures and `logs` by stage and run."""
    sections = [Section(tables.table(rows), "Figures")]
    sections += [Section(plots.by_step(of_runs), f"Training: {stage}") for stage, of_runs in logs.items()]
    return write_page(folder / "comparison.html", f"Runs: {', '.join(names)}", str(date.today()), sections)


def write_distillation(path: Path, source: str, found: Any, bounds: tuple[float, float]) -> Path:
    """Write the page of an `aimo.data.distil.Rejection`, and beside it a JSON file with its headline for the
    list of runs. Return the page's path. Problems with a pass rate within `bounds` were kept."""
    rates = found.problems["pass_rate"]
    counts = {"kept": len(found.kept)}
    counts |= {page.as_mathematics(f"dropped: {reason}"): count for reason, count in found.dropped.items()}
    texts = dict(found.kept.group_by("problem").agg("generation").iter_rows())
    rows = []
    for row in found.problems.head(SHOWN_PROBLEMS).iter_rows(named=True):
        kept = texts.get(row["problem"], [])
        folded = [page.fold(f"{len(text):,} characters", page.as_mathematics(text)) for text in kept]
        question = {
            "problem": page.as_mathematics(row["problem"]),
            "gold": page.as_answer(row["answer"] or ""),
        }
        figures = {"right, %": f"{100 * row['pass_rate']:.0f}", "samples": row["samples"]}
        rows.append(question | figures | {"kept": page.join(folded) or "none"})
    lead = "The share of a problem's completions that are right and finished."
    sections = [
        Section(tables.pairs(counts, "completions", ""), "Kept", f"Of {len(found.problems):,} problems."),
        Section(plots.pass_rates(rates.to_list(), bounds), "Pass rates", lead),
        Section(tables.table(rows), "Problems", f"The first {len(rows):,}."),
    ]
    headline = f"{len(found.kept):,} completions kept, pass rate {rates.mean():.3f}"
    try:
        write_json(path.with_suffix(".json"), {"headline": headline})
        day = f"{date.today()}, {machine.device()}"
        return write_page(path, f"Distillation: {source}", day, sections)
    except OSError as e:
        raise AimoError(f"--page {path}: {e.strerror}; take a file that can be written") from None


# The list


def write_index(folder: Path, runs: Path = RUNS) -> None:
    """Rewrite `index.html` in `runs` after a page was written in `folder`; ignore a folder elsewhere."""
    if folder.absolute().parent != runs:
        return
    lock = os.open(runs, os.O_RDONLY)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)  # if two runs end together, the later one sees both pages
        written = {}
        for path in (path for name in KINDS for path in runs.glob(f"*/{name}")):
            with suppress(FileNotFoundError):  # a folder that is being removed
                written[path] = path.stat().st_mtime
        rows = []
        for path in sorted(written, key=written.__getitem__, reverse=True):
            day, name = f"{datetime.fromtimestamp(written[path]):%Y-%m-%d %H:%M}", str(path.relative_to(runs))
            row = {"written": day, "page": page.link(path.parent.name, name), "kind": KINDS[path.name]}
            rows.append(row | {"figures": headline(path)})
        view = tables.table(rows) if rows else tables.note("No run has a page yet.")
        lead = f"{len(rows)} pages, the newest first."
        write_page(runs / "index.html", "aimo: runs", lead, [Section(view)])
    finally:
        os.close(lock)


def headline(path: Path) -> str:
    """Return the figures of a page in one line, or why there are none."""
    is_run = path.name == "report.html"
    source = path.with_name("metrics.json") if is_run else path.with_suffix(".json")
    try:
        with reading(path.parent) as read:
            found = read(source.name) or {}
            if not is_run:
                return str(found.get("headline", ""))
            models = figures_of(path.parent).items()
            return ", ".join(f"{name} {row['pass@1']:.3f}" for name, row in models if "pass@1" in row)
    except AimoError:
        return f"{source.name} cannot be read"  # another run's broken file must not end this one
