"""Plots for the notebooks and the report, as HTML that contains the image."""

import base64
import io
from collections import Counter
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.figure import Figure
from matplotlib.text import Text
from matplotlib.ticker import MaxNLocator, PercentFormatter
from PIL import Image

from aimo.config.profile import TRAINED
from aimo.report.page import Html, render
from aimo.report.tables import note

RIGHT, WRONG, OTHER, GREY = "#3a923a", "#c44e52", "#d5d9de", "#8a94a0"
INK, RULE = "#334", "#667"
DPI, COLOURS = 130, 64  # of a picture
PICTURES = (  # on a phone, a wide picture scrolls and the others are stacked
    '<div class="wide"><div style="display:flex;flex-wrap:wrap">{% for data in pictures %}<img style="'
    "width:{{ share }}%;max-width:{{ width }}px;min-width:{{ '38em' if width > 800 else 'min(100%,20em)' }};"
    'margin-bottom:6px" src="data:image/png;base64,{{ data }}">{% endfor %}</div></div>'
)
CURVES = ("#e1812c", "#3b76b0", "#3a923a", "#8a94a0", "#c44e52", "#8172b3")
MISMATCH = "sampling/sampling_logp_difference"
RATIO = "sampling/importance_sampling_ratio"
PANELS = {  # the training plot's panels, by title: keys of the log; a share's axis goes from 0 to 1
    "mean reward (shaded: spread within groups)": ["reward"],
    "each reward": [],  # `by_step` finds them
    "loss": ["loss", "eval_loss"],
    "DPO: share of pairs in the right order": ["rewards/accuracies"],
    "DPO: reward of chosen and rejected": ["rewards/chosen", "rewards/rejected"],
    "mean tokens of a completion": ["completions/mean_length", "probe/length"],
    "probe: share of fixed problems": ["probe/accuracy", "probe/format"],
    "share of groups with equal rewards": ["frac_reward_zero_std"],
    "groups sampled for the step": ["groups/tried"],
    "vLLM and trainer: mean difference of log-probabilities": [f"{MISMATCH}/mean", f"{MISMATCH}/bound"],
    "vLLM and trainer: worst difference": [f"{MISMATCH}/max"],
    "correction for it: importance-sampling ratio": [f"{RATIO}/mean", f"{RATIO}/min", f"{RATIO}/max"],
    "share of completions cut off": ["completions/clipped_ratio"],
    "entropy": ["entropy"],
    "gradient norm": ["grad_norm"],
    "learning rate": ["learning_rate"],
    "tokens per second": ["tokens_per_second"],
    "GPU memory, GiB": ["gpu_memory_gib"],
}


def panels(count: int, columns: int, width: float, height: float) -> tuple[Figure, list[Any]]:
    """Return a figure with `count` panels, each `width` x `height` inches, and the axes of the panels."""
    columns = min(columns, count)
    rows = -(-count // columns)
    figure = Figure(figsize=(width * columns, height * rows), layout="constrained")
    grid = [tile.subplots() for tile in figure.subfigures(rows, columns, squeeze=False).flat[:count]]
    for ax in grid:
        ax.spines[["top", "right"]].set_visible(False)
        ax.grid(axis="y", color="#eceff3")
        ax.set_axisbelow(True)
    return figure, grid


def save(figure: Figure, to: Any, **how: Any) -> None:
    """Draw a figure into a file. A `$` in a name is plain text: a broken formula would end the run."""
    for text in figure.findobj(Text):
        text.set_parse_math(False)
    with rc_context({"text.parse_math": False}):  # for texts that drawing creates
        figure.savefig(to, **how)


def label(name: Any, most: int = 40) -> str:
    """Return a text from outside as one line of at most `most` characters, so that it fits into a plot."""
    shown = " ".join("".join(c if c.isprintable() else " " for c in str(name)[:200]).split())
    return shown if len(shown) <= most else f"{shown[: most - 1]}…"


def image(figure: Figure) -> Html:
    """Return each panel of a figure as a PNG inside the page, side by side if there is room."""
    save(figure, drawn := io.BytesIO(), dpi=DPI)
    whole = Image.open(drawn).convert("RGB")
    across, up = whole.size
    whole = whole.quantize(COLOURS, Image.Quantize.MAXCOVERAGE)  # keeps the colour of a single point
    pictures = []
    for tile in (tile for tile in figure.subfigs if tile.axes):
        left, low, width, height = (np.array(tile.bbox.bounds) * DPI / figure.dpi).astype(int).tolist()
        whole.crop((left, up - low - height, left + width, up - low)).save(png := io.BytesIO(), "png")
        pictures.append(base64.b64encode(png.getvalue()).decode())
    return render(PICTURES, pictures=pictures, width=width, share=100 * width // across)


def curve(ax: Any, ks: list[int], values: Any, colour: str, name: str) -> None:
    ax.plot(ks, list(values), "o-", color=colour, label=name, ms=4)
    ax.set_xscale("log", base=2)
    ax.set(xticks=ks, xticklabels=ks, ylim=(0, 1.02))
    ax.yaxis.set_major_formatter(PercentFormatter(1.0))


def training(log: list[dict[str, Any]]) -> Html:
    return by_step({"": log})


def by_step(logs: dict[str, list[dict[str, Any]]]) -> Html:
    """Draw a stage's logs by step, one panel per figure: a faint line as logged, a bold moving average.

    For several runs, draw only the figures that at least two of them have.
    """
    logged, several = {key for log in logs.values() for record in log for key in record}, len(logs) > 1
    rewards = sorted(key for key in logged if key.startswith("rewards/") and key.endswith("/mean"))
    wanted = PANELS | {"each reward": rewards if len(rewards) > 1 else []}
    if several:  # one figure in a panel, and a colour for each run
        logged = {key for key in logged if sum(any(key in r for r in log) for log in logs.values()) > 1}
        wanted = {
            title if key == keys[0] and title != "each reward" else key: [key]
            for title, keys in wanted.items()
            for key in keys
        }
    shown = {title: keys for title, keys in wanted.items() if logged & {*keys}}
    figure, grid = panels(len(shown), columns=3, width=3.7, height=2.3)
    all_steps = [record["step"] for log in logs.values() for record in log]
    room = 0.2 + 0.04 * (max(all_steps) - min(all_steps))
    for ax, (title, keys) in zip(grid, shown.items(), strict=True):
        drawn = [
            (number + place, run, key) for number, run in enumerate(logs) for place, key in enumerate(keys)
        ]
        for place, run, key in drawn:
            if not (records := [record for record in logs[run] if key in record]):
                continue
            colour = CURVES[place % len(CURVES)]
            steps, values = ([record[name] for record in records] for name in ("step", key))
            name = key.removeprefix("rewards/").removesuffix("/mean")
            name = key.rpartition("/")[2] if key.startswith("sampling/") else name
            name = label(run) if several else name
            if key.startswith(("probe/", "eval_")):  # these are rare: draw points, no average
                ax.plot(steps, values, "o-", color=colour, ms=3, lw=1.2, label=name)
                continue
            averages, total, norm = [], 0.0, 0.0
            for value in values:  # an exponential moving average, corrected for its start at zero
                if key == "learning_rate":  # exact: no average
                    total, norm = 0.0, 0.0
                total, norm = 0.85 * total + 0.15 * value, 0.85 * norm + 0.15
                averages.append(total / norm)
            ax.plot(steps, values, color=colour, lw=0.7, alpha=0.4)
            ax.plot(steps, averages, color=colour, lw=1.8, label=name)
            if key == "reward" and not several:
                low, high = ([r["reward"] + sign * r["reward_std"] / 2 for r in records] for sign in (-1, 1))
                ax.fill_between(steps, low, high, color=colour, alpha=0.12, lw=0)
        if len(ax.get_legend_handles_labels()[1]) > 1:
            ax.legend(frameon=False, fontsize=7)
        ax.set_title(title, fontsize=9)
        ax.tick_params(labelsize=8)
        ax.xaxis.set_major_locator(MaxNLocator(integer=True))
        ax.set_xlim(min(all_steps) - room, max(all_steps) + room)
        bottom, top = ax.get_ylim()
        if "share" in title:
            ax.set_ylim(0, 1.05)
        elif 0 < bottom < (top - bottom) / 2:  # zero is near
            ax.set_ylim(0, top)
    return image(figure)


def pass_rates(rates: list[float], bounds: tuple[float, float] | None) -> Html:
    """Draw the number of problems at each pass rate; those within `bounds` are trained on."""
    if bounds is None:
        return note("The profile has no grpo.pass_rate: all problems are trained on.")
    figure, (ax,), found = *panels(1, columns=1, width=9, height=2.4), Counter(rates)
    colours = [RIGHT if bounds[0] <= rate <= bounds[1] else OTHER for rate in found]
    ax.bar(list(found), list(found.values()), width=0.8 / max(2, len(found)), color=colours)
    ax.set(xlabel="share of samples that were right (green: kept)", ylabel="problems", xlim=(-0.1, 1.1))
    return image(figure)


def plot_worst_tokens(worst: list[dict[str, Any]], least: float | None) -> Html:
    """Draw a histogram of solutions by the log-probability of their least likely token. Solutions below
    `least` are dropped."""
    figure, (ax,) = panels(1, columns=1, width=9, height=2.4)
    _, edges, bars = ax.hist([token["log_prob"] for token in worst], bins=40)
    for bar, edge in zip(bars, edges, strict=False):
        bar.set_color(RIGHT if least is None or edge >= least else OTHER)
    if least is not None:
        ax.axvline(least, color=GREY, lw=1)
    ax.set(xlabel="log-probability of the least likely token (green: kept)", ylabel="solutions")
    return image(figure)


def plot_accuracy(models: dict[str, dict[str, Any]], majority: dict[str, dict[Any, float]]) -> Html:
    """Draw pass@1 (pale) and maj@k of each model, and the accuracy of the vote by its number of samples."""
    if not models:
        return note("No model was measured.")
    colours = {name: TRAINED[name].colour if name in TRAINED else GREY for name in models | majority}
    figure, (left, right) = panels(2, columns=2, width=4.5, height=3.2)
    for i, (name, figures) in enumerate(models.items()):
        vote = next((key for key in figures if key.startswith("maj@")), "pass@1")
        for key, offset, alpha in (("pass@1", -0.19, 0.55), (vote, 0.19, 1)):
            bar = left.bar(i + offset, figures[key], 0.36, color=colours[name], alpha=alpha)
            left.bar_label(bar, [f"{key}\n{figures[key]:.2f}"], fontsize=8, padding=2)
    left.set(xticks=range(len(models)), xticklabels=list(models), ylim=(0, 1.15), title="accuracy by model")
    left.yaxis.set_major_formatter(PercentFormatter(1.0))
    for name, by_size in majority.items():
        curve(right, [int(k) for k in by_size], by_size.values(), colours[name], name)
    right.set(xlabel="samples in the vote", title="accuracy of the majority vote")
    right.legend(frameon=False)
    return image(figure)


def votes(solutions: list[dict[str, Any]], limit: int = 200) -> Html:
    """Draw the first questions' votes as bars: green is right, red wrong, grey unknown or outvoted."""
    if not (solutions := solutions[:limit]):
        return note("No question was asked.")
    figure, (ax,) = panels(1, columns=1, width=9, height=0.6 + 0.42 * len(solutions))
    ax.grid(False)
    for row, solution in enumerate(solutions):
        gold, start = solution.get("equal", solution["gold"]), 0  # as the vote writes it
        largest_first = sorted(solution["votes"].items(), key=lambda x: (-x[1], len(x[0]), x[0]))
        for rank, (answer, count) in enumerate(largest_first):
            is_wrong = gold is not None and rank == 0
            colour = RIGHT if str(gold) == answer else WRONG if is_wrong else OTHER
            ax.barh(row, count, left=start, color=colour, edgecolor="white")
            if count > 1 or rank == 0:
                ink = INK if colour == OTHER else "white"
                ax.text(
                    start + count / 2, row, label(answer), fontsize=8, ha="center", va="center", color=ink
                )
            start += count
        if not solution["votes"]:
            why = label(solution["note"] or "no votes", 100)
            ax.text(0.1, row, why, va="center", fontsize=8, color=RULE)
    ids = [label(solution["id"]) for solution in solutions]
    ax.set(yticks=range(len(ids)), yticklabels=ids, xlabel="votes (a decided vote stops early)")
    ax.set_ylim(len(solutions) - 0.5, -0.5)
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    return image(figure)


def timelines(solutions: list[dict[str, Any]], limit: int = 12) -> Html:
    """Draw the samples of the first `limit` questions as bars from start to end, in seconds.

    Green bars gave the answer that won, grey bars another, bars with a dot none. Pale bars were stopped when
    the vote ended, at the dashed line.
    """
    shown = [solution for solution in solutions if solution["samples"]][:limit]
    if not shown:
        return note("No question was sampled.")
    figure, grid = panels(len(shown), columns=3, width=3.7, height=2.2)
    for ax, solution in zip(grid, shown, strict=True):
        ax.grid(False)
        for i, sample in enumerate(sorted(solution["samples"], key=lambda sample: sample["index"])):
            answer, begin, end = sample["answer"], sample["begin_s"], sample["end_s"]
            stopped, text = sample["end"] == "stopped", label(answer)
            colour = RIGHT if answer == solution["answer"] else "#aab2bc"
            if answer is None:
                colour, text = OTHER, "" if stopped else "•"
            ax.barh(i, end - begin, left=begin, color=colour, alpha=0.35 if stopped else 1)
            ax.text(end, i, f" {text}", va="center", fontsize=6, color=INK)
        end = max(sample["end_s"] for sample in solution["samples"])
        ax.axvline(end, color=RULE, ls="--", lw=0.8)
        ax.set_title(f"{label(solution['id'])}: {label(solution['answer'])}, {solution['stop']}", fontsize=9)
        ax.set(yticks=[], xlim=(0, 1.15 * end))
        ax.set_xlabel("seconds", fontsize=8)
        ax.invert_yaxis()
        ax.tick_params(labelsize=8)
    return image(figure)


def cost(solutions: list[dict[str, Any]]) -> Html:
    """Draw seconds and tokens of each question by its difficulty: the share of votes against its answer."""
    if not solutions:
        return note("No question was asked.")
    figure, grid = panels(2, columns=2, width=4.5, height=2.8)
    points: dict[tuple[str, str], list[tuple[float, float, int]]] = {}
    for s in solutions:
        is_right = s.get("equal", s["gold"]) == s["answer"]
        kind = ("right", RIGHT) if is_right else ("wrong", WRONG)
        against = 1 - s["votes"].get(str(s["answer"]), 0) / max(1, sum(s["votes"].values()))
        point = against, s["seconds"], sum(sample["tokens"] for sample in s["samples"])
        points.setdefault(("unknown", GREY) if s["gold"] is None else kind, []).append(point)
    for (name, colour), chosen in sorted(points.items()):
        against, *spent = zip(*chosen, strict=True)
        for ax, values in zip(grid, spent, strict=True):
            ax.plot(against, values, "o", color=colour, ms=5, alpha=0.7, label=name)
    for ax, title in zip(grid, ("seconds by difficulty", "tokens by difficulty"), strict=True):
        top = 1.05 * ax.get_ylim()[1]
        ax.set(xlabel="share of votes against the answer", title=title, xlim=(-0.05, 1.05), ylim=(0, top))
    grid[0].legend(frameon=False, fontsize=8)
    return image(figure)


def by_samples(benchmarks: dict[str, dict[str, dict[int, float]]]) -> Html:
    """Draw pass@k and maj@k by the number of completions, one panel per benchmark."""
    figure, grid = panels(len(benchmarks), columns=3, width=3.7, height=2.6)
    for ax, (name, curves) in zip(grid, benchmarks.items(), strict=True):
        for (key, values), colour in zip(curves.items(), CURVES, strict=False):
            curve(ax, list(values), values.values(), colour, key)
        ax.set_title(label(name), fontsize=9)
        ax.set_xlabel("completions", fontsize=8)
    grid[0].legend(frameon=False, fontsize=8)
    return image(figure)
