"""What a person looks at: every function returns one piece of HTML, shown by a notebook and put into the report alike.

Out of scope: interactive plots; a page that opens anywhere, without scripts, is worth more.
"""

import base64
import html
import io
import textwrap
from collections import Counter
from collections.abc import Sequence
from typing import Any

from IPython.display import HTML
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

COLOURS = {"base": "#8a94a0", "sft": "#3b76b0", "grpo": "#e1812c", "dpo": "#8172b3"}
RIGHT, WRONG, OTHER = "#3a923a", "#c44e52", "#d5d9de"
STYLE = (
    "<style>table.aimo{border-collapse:collapse;font:13px/1.45 system-ui,sans-serif;margin:4px 0 14px}"
    "table.aimo th{text-align:left!important;color:#667;font-weight:600;border-bottom:2px solid #dde;padding:4px 14px 4px 0}"
    "table.aimo td{text-align:left!important;vertical-align:top;border-bottom:1px solid #eef;padding:5px 14px 5px 0}"
    "table.aimo td.text{font-family:ui-monospace,monospace;font-size:12px;white-space:pre-wrap;max-width:34em;overflow-wrap:anywhere}"
    "table.aimo td.number{text-align:right!important;font-variant-numeric:tabular-nums}</style>"
)


def table(rows: Sequence[dict[str, Any]]) -> HTML:
    """Rows as a table; numbers to the right, texts as they are."""
    columns = list(dict.fromkeys(key for row in rows for key in row))
    head = "".join(f"<th>{html.escape(column)}</th>" for column in columns)
    body = "".join(
        "<tr>" + "".join(cell(row.get(column, "")) for column in columns) + "</tr>" for row in rows
    )
    return HTML(f"{STYLE}<table class='aimo'><tr>{head}</tr>{body}</table>")


def cell(value: Any) -> str:
    """One table cell."""
    if isinstance(value, float):
        return f"<td class='number'>{value:.3g}</td>"
    if isinstance(value, int):
        return f"<td class='number'>{value:,}</td>"
    text = str(value)
    kind = " class='text'" if len(text) > 30 or "\n" in text else ""
    return f"<td{kind}>{html.escape(textwrap.shorten(text, 1200) if len(text) > 1200 else text)}</td>"


def plot(figure: Figure) -> HTML:
    """A figure as an image inside the page."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=130, bbox_inches="tight")
    data = base64.b64encode(buffer.getvalue()).decode()
    return HTML(f"<img style='max-width:100%' src='data:image/png;base64,{data}'>")


def axes(columns: int = 1, width: float = 9.0, height: float = 3.2) -> tuple[Figure, Any]:
    """An empty figure in the house's style."""
    figure = Figure(figsize=(width, height), layout="constrained")
    grid = figure.subplots(1, columns, squeeze=False)[0]
    for ax in grid:
        tidy(ax)
    return figure, grid if columns > 1 else grid[0]


def tidy(ax: Any) -> None:
    """The house's style: no frame, faint lines behind the data."""
    ax.spines[["top", "right"]].set_visible(False)
    ax.grid(axis="y", color="#eceff3")
    ax.set_axisbelow(True)


def counts(sets: Any) -> HTML:
    """How many rows of each set (`data.Sets`) came in, were dropped for which reason, and are left."""
    rows: list[dict[str, Any]] = []
    for name, dropped in sets.dropped.items():
        left = sets.read[name]
        rows.append({"set": name, "step": "read", "dropped": "", "left": left})
        for reason, n in dropped.items():
            left -= n
            rows.append({"set": "", "step": f"dropped: {reason}", "dropped": n, "left": left})
    return table(rows)


def contaminated(sets: Any, most: int = 8) -> HTML:
    """Training rows that were dropped because they share words with an evaluation set: how many, and the first few."""
    if not sets.contaminated:
        return HTML(f"{STYLE}<p>No training row shares words with an evaluation set.</p>")
    found = Counter((row["set"], row["benchmark"]) for row in sets.contaminated)
    summary = table(
        [{"set": name, "evaluation set": benchmark, "dropped": n} for (name, benchmark), n in found.items()]
    )
    return HTML(summary.data + table(sets.contaminated[:most]).data)


def as_the_model_sees(ready: dict[str, Any], tokenizer: Any) -> HTML:
    """Rows as text, what is given and what is to be learnt: a short and a long SFT example, and two for GRPO."""

    def shown(name: str, row: dict[str, Any]) -> dict[str, str]:
        prompt = tokenizer.apply_chat_template(row["prompt"], add_generation_prompt=True, tokenize=False)
        if "completion" not in row:
            return {
                "set": name,
                "given": prompt,
                "to be learnt": f"whatever ends in the answer {row['answer']}",
            }
        whole = tokenizer.apply_chat_template(row["prompt"] + row["completion"], tokenize=False)
        return {"set": name, "given": prompt, "to be learnt": whole[len(prompt) :]}

    by_length = sorted(ready["sft"].head(20).to_dicts(), key=lambda row: len(row["completion"][0]["content"]))
    examples = [
        ("sft", by_length[0]),
        ("sft", by_length[-1]),
        *(("grpo", row) for row in ready["grpo"].head(2).to_dicts()),
    ]
    return table([shown(name, row) for name, row in examples])


# What is drawn of a stage's log: title, keys, and the range where it is known.
PANELS: list[tuple[str, list[str], tuple[float, float] | None]] = [
    ("mean reward (shaded: spread within groups)", ["reward"], None),
    ("loss", ["loss", "eval_loss"], None),
    ("DPO: share of pairs in the right order", ["rewards/accuracies"], (0, 1.05)),
    ("DPO: reward of chosen and rejected", ["rewards/chosen", "rewards/rejected"], None),
    ("mean length of a completion, tokens", ["completions/mean_length", "probe/length"], None),
    ("probe: share of fixed problems", ["probe/accuracy", "probe/format"], (0, 1.05)),
    ("share of groups without signal", ["frac_reward_zero_std"], (0, 1.05)),
    ("share of completions cut off", ["completions/clipped_ratio"], (0, 1.05)),
    ("entropy", ["entropy"], None),
    ("gradient norm", ["grad_norm"], None),
    ("learning rate", ["learning_rate"], None),
    ("tokens per second", ["tokens_per_second"], None),
    ("GPU memory, GiB", ["gpu_memory_gib"], None),
]
SHADES = ("#e1812c", "#3b76b0", "#3a923a", "#8a94a0", "#c44e52", "#8172b3")


def training(log: list[dict[str, Any]]) -> HTML:
    """Every figure of a stage's log by step, faint as logged and bold as moving average."""
    rewards = sorted({k for r in log for k in r if k.startswith("rewards/") and k.endswith("/mean")})
    panels = [*PANELS[:1], ("each reward", rewards if len(rewards) > 1 else [], None), *PANELS[1:]]
    panels = [panel for panel in panels if any(key in record for key in panel[1] for record in log)]
    columns = min(3, len(panels))
    figure = Figure(figsize=(3.7 * columns, 2.3 * -(-len(panels) // columns)), layout="constrained")
    grid = list(figure.subplots(-(-len(panels) // columns), columns, squeeze=False).flat)
    for ax, (title, keys, limits) in zip(grid, panels, strict=False):
        tidy(ax)
        for key, colour in zip([k for k in keys if any(k in r for r in log)], SHADES, strict=False):
            curve(ax, [r for r in log if key in r], key, colour)
        if keys == ["reward"]:
            records = [r for r in log if "reward" in r]
            low, high = ([r["reward"] + sign * r["reward_std"] / 2 for r in records] for sign in (-1, 1))
            ax.fill_between([r["step"] for r in records], low, high, color=SHADES[0], alpha=0.12, lw=0)
        if len(ax.lines) > 2:
            ax.legend(frameon=False, fontsize=7)
        ax.set_title(title, fontsize=9)
        ax.tick_params(labelsize=8)
        ax.set_ylim(*limits or (min(0, ax.get_ylim()[0]), None))
    for ax in grid[len(panels) :]:
        ax.axis("off")
    return plot(figure)


def curve(ax: Any, log: list[dict[str, Any]], key: str, colour: str) -> None:
    """One figure of a log by step; figures that are taken rarely as points."""
    steps, values = [r["step"] for r in log], [r[key] for r in log]
    if key.startswith(("probe/", "eval_")):
        ax.plot(steps, values, "o-", color=colour, ms=3, lw=1.2, label=key.split("/")[-1])
        ax.plot([], [])
        return
    ax.plot(steps, values, color=colour, lw=0.7, alpha=0.4)
    ax.plot(
        steps, smooth(values), color=colour, lw=1.8, label=key.removeprefix("rewards/").removesuffix("/mean")
    )


def pass_rates(rates: list[float], bounds: tuple[float, float] | None) -> HTML:
    """How many problems the model solves how often; those within the bounds are trained on."""
    if bounds is None:
        return HTML(f"{STYLE}<p>The profile has no grpo.pass_rate: all problems are trained on.</p>")
    figure, ax = axes(height=2.4)
    found = Counter(rates)
    colours = [RIGHT if bounds[0] <= rate <= bounds[1] else OTHER for rate in found]
    ax.bar(list(found), list(found.values()), width=0.8 / max(2, len(found)), color=colours)
    ax.set(xlabel="share of samples that were right (green: kept)", ylabel="problems", xlim=(-0.1, 1.1))
    return plot(figure)


def pairs(rows: list[dict[str, Any]]) -> HTML:
    """How many pairs of which kind there are, and the first of each."""
    found = Counter(row["kind"] for row in rows)
    first = {row["kind"]: row for row in reversed(rows)}
    text = {
        kind: {side: row[side][-1]["content"] for side in ("prompt", "chosen", "rejected")}
        for kind, row in first.items()
    }
    return table([{"rejected for being": kind, "pairs": n} | text[kind] for kind, n in found.items()])


def samples(lines: list[dict[str, Any]], most: int = 12) -> HTML:
    """Sample completions of GRPO with their rewards, spread over the steps."""
    return table([lines[i * len(lines) // most] for i in range(most)] if len(lines) > most else lines)


def smooth(values: list[float], weight: float = 0.85) -> list[float]:
    """An exponential moving average without the start's bias."""
    out, total, norm = [], 0.0, 0.0
    for value in values:
        total, norm = weight * total + (1 - weight) * value, weight * norm + 1 - weight
        out.append(total / norm)
    return out


def completions(rows: list[dict[str, Any]], **columns: list[str]) -> HTML:
    """The same problems answered by several models, side by side, with the right answer."""
    return table(
        [
            {"problem": row["prompt"][-1]["content"], "gold": str(row["answer"])}
            | {name: texts[i] for name, texts in columns.items()}
            for i, row in enumerate(rows)
        ]
    )


def headline(stages: dict[str, dict[str, Any]]) -> HTML:
    """The figures of base, sft and grpo."""
    names = {
        "base": "base, prompted in the format",
        "sft": "after format SFT",
        "grpo": "after GRPO",
        "dpo": "after DPO",
    }
    columns = [*stages["base"], "seconds"]
    return table(
        [
            {"": names[name]} | {c: stages[name].get(c, "") for c in columns}
            for name in names
            if name in stages
        ]
    )


def accuracy(stages: dict[str, dict[str, Any]], majority: dict[str, dict[str, float]]) -> HTML:
    """Accuracy by stage, and against the number of votes."""
    figure, (left, right) = axes(2)
    names = [name for name in COLOURS if name in stages]
    vote = next(key for key in stages[names[0]] if key.startswith("maj@"))
    for offset, key in ((-0.19, "pass@1"), (0.19, vote)):
        bars = left.bar(
            [i + offset for i in range(len(names))],
            [stages[n][key] for n in names],
            0.36,
            color=[COLOURS[n] for n in names],
            alpha=1 if offset > 0 else 0.55,
        )
        left.bar_label(bars, [f"{key}\n{stages[n][key]:.2f}" for n in names], fontsize=8, padding=2)
    left.set(xticks=range(len(names)), xticklabels=names, ylim=(0, 1.15), title="accuracy by stage")
    for name in names:
        ks = [int(k) for k in majority[name]]
        right.plot(ks, list(majority[name].values()), "o-", color=COLOURS[name], label=name, ms=4)
    right.set_xscale("log", base=2)
    right.set(
        xticks=ks,
        xticklabels=ks,
        xlabel="samples in the vote",
        ylim=(0, 1.02),
        title="accuracy of the majority vote",
    )
    right.legend(frameon=False)
    for ax in (left, right):
        ax.yaxis.set_major_formatter(PercentFormatter(1.0))
    return plot(figure)


def votes(solutions: list[dict[str, Any]]) -> HTML:
    """The vote on each question: a bar of its answers, largest first; green is right, red is wrong, grey is unknown or outvoted."""
    figure, ax = axes(height=0.6 + 0.42 * len(solutions))
    ax.grid(False)
    for i, solution in enumerate(solutions):
        start = 0
        for j, (answer, n) in enumerate(
            sorted(solution["votes"].items(), key=lambda item: (-item[1], int(item[0])))
        ):
            gold = solution.get("gold")
            colour = OTHER if gold is None else RIGHT if str(gold) == answer else WRONG if j == 0 else OTHER
            ax.barh(i, n, left=start, color=colour, edgecolor="white")
            if n > 1 or j == 0:
                ax.text(
                    start + n / 2,
                    i,
                    answer,
                    ha="center",
                    va="center",
                    fontsize=8,
                    color="white" if colour in (RIGHT, WRONG) else "#334",
                )
            start += n
        if not solution["votes"]:
            ax.text(0.1, i, solution["note"] or "no votes", va="center", fontsize=8, color="#667")
    ax.set(
        yticks=range(len(solutions)),
        yticklabels=[s["id"] for s in solutions],
        xlabel="votes (a decided vote stops early)",
    )
    ax.set_ylim(len(solutions) - 0.5, -0.5)
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    return plot(figure)


def timelines(solutions: list[dict[str, Any]], most: int = 12) -> HTML:
    """Each question's samples as bars from begin to end: green has the answer that won, grey another, a dot none.

    Pale bars were stopped when the vote was over, at the dashed line.
    """
    shown = [s for s in solutions if s["samples"]][:most]
    if not shown:
        return HTML(f"{STYLE}<p>No question was sampled.</p>")
    columns = min(3, len(shown))
    rows = -(-len(shown) // columns)
    figure = Figure(figsize=(3.7 * columns, 2.2 * rows), layout="constrained")
    grid = list(figure.subplots(rows, columns, squeeze=False).flat)
    for ax, solution in zip(grid, shown, strict=False):
        tidy(ax)
        ax.grid(False)
        for i, sample in enumerate(sorted(solution["samples"], key=lambda sample: sample["index"])):
            won = sample["answer"] == solution["answer"]
            colour = RIGHT if won else "#aab2bc" if sample["answer"] is not None else OTHER
            ax.barh(
                i,
                sample["end_s"] - sample["begin_s"],
                left=sample["begin_s"],
                color=colour,
                alpha=0.35 if sample["end"] == "stopped" else 1,
            )
            label = (
                "•"
                if sample["answer"] is None and sample["end"] != "stopped"
                else ""
                if sample["answer"] is None
                else str(sample["answer"])
            )
            ax.text(sample["end_s"], i, f" {label}", va="center", fontsize=6, color="#334")
        end = max(sample["end_s"] for sample in solution["samples"])
        ax.axvline(end, color="#667", ls="--", lw=0.8)
        ax.set_title(f"{solution['id']}: {solution['answer']}, {solution['stop']}", fontsize=9)
        ax.set(yticks=[], xlim=(0, 1.15 * end))
        ax.set_xlabel("seconds", fontsize=8)
        ax.invert_yaxis()
        ax.tick_params(labelsize=8)
    for ax in grid[len(shown) :]:
        ax.axis("off")
    return plot(figure)


def effort(solutions: list[dict[str, Any]]) -> HTML:
    """Time spent against difficulty, which is the share of votes that the answer did not get; by colour whether it is right."""
    figure, (left, right) = axes(2, height=2.8)
    for name, colour, chosen in (
        ("right", RIGHT, [s for s in solutions if s["gold"] is not None and s["gold"] == s["answer"]]),
        ("wrong", WRONG, [s for s in solutions if s["gold"] is not None and s["gold"] != s["answer"]]),
        ("unknown", "#8a94a0", [s for s in solutions if s["gold"] is None]),
    ):
        if chosen:
            against = [
                1 - s["votes"].get(str(s["answer"]), 0) / max(1, sum(s["votes"].values())) for s in chosen
            ]
            left.plot(against, [s["seconds"] for s in chosen], "o", color=colour, ms=5, alpha=0.7, label=name)
            right.plot(
                against,
                [sum(x["tokens"] for x in s["samples"]) for s in chosen],
                "o",
                color=colour,
                ms=5,
                alpha=0.7,
            )
    for ax, title in ((left, "seconds by difficulty"), (right, "tokens by difficulty")):
        top = 1.05 * ax.get_ylim()[1]
        ax.set(xlabel="share of votes against the answer", title=title, xlim=(-0.05, 1.05), ylim=(0, top))
    left.legend(frameon=False, fontsize=8)
    return plot(figure)


def reasons(solutions: list[dict[str, Any]], most: int = 6) -> HTML:
    """What the leader and the runner-up say, of the questions whose vote was the closest."""

    def margin(solution: dict[str, Any]) -> int:
        first, second = ([*solution["votes"].values(), 0])[:2]
        return first - second

    closest = sorted((s for s in solutions if s["texts"]), key=margin)[:most]
    return table(
        [
            {"id": s["id"], "answer": answer, "votes": s["votes"][answer], "one of its completions": text}
            for s in closest
            for answer, text in s["texts"].items()
        ]
    )


def answers(solutions: list[dict[str, Any]]) -> HTML:
    """Each question with its answer, the gold answer where it is known, and how the vote came about."""
    return table(
        [
            {
                "id": s["id"],
                "problem": textwrap.shorten(s["problem"], 160),
                "answer": str(s["answer"]),
                "gold": "" if s["gold"] is None else str(s["gold"]),
                "votes": f"{s['votes'].get(str(s['answer']), 0)} of {sum(x['end'] != 'stopped' for x in s['samples'])}",
                "share of weight": f"{s['tally'][0]['share']:.0%}" if s["tally"] else "",
                "stop": s["stop"],
                "stopped early": sum(x["end"] == "stopped" for x in s["samples"]),
                "tokens": sum(x["tokens"] for x in s["samples"]),
                "seconds": s["seconds"],
                "note": s["note"],
            }
            for s in solutions
        ]
    )
