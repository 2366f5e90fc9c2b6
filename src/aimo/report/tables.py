"""Tables for the notebooks and the report, as HTML that needs no script or other file."""

import re
import textwrap
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from aimo.config.profile import MODELS
from aimo.inference.storage import read_lines
from aimo.report.page import Html, join, render

TABLE = """\
<div class="wide"><table class="aimo"><tr>{% for column in columns %}<th>{{ column }}</th>{% endfor %}</tr>
{% for row in rows %}<tr>{% for kind, shown in row %}
<td{% if kind %} class="{{ kind }}"{% endif %}>{{ shown }}</td>{% endfor %}</tr>
{% endfor %}</table></div>"""


def table(rows: Sequence[dict[str, Any]]) -> Html:
    """Return rows as a table with one column for each key; texts are cut to 1,200 characters."""

    def cell(value: Any) -> tuple[str, str]:  # its class, and what it shows
        if isinstance(value, Html):
            return "prose" if len(re.sub("<[^>]*>", "", value)) > 30 else "", value
        if isinstance(value, int | float):
            return "number", f"{value:.3g}" if isinstance(value, float) else f"{value:,}"
        text = str(value) if len(str(value)) <= 1200 else textwrap.shorten(str(value), 1200)
        return "text" if len(text) > 30 or "\n" in text else "", text

    columns = list(dict.fromkeys(key for row in rows for key in row))
    cells = [[cell(row.get(column, "")) for column in columns] for row in rows]
    return render(TABLE, columns=columns, rows=cells)


def pairs(values: dict[str, Any], name: str, value: str) -> Html:
    return table([{name: key, value: one} for key, one in values.items()])


def note(text: str) -> Html:  # in place of a table or plot that has nothing to show
    return render("<p>{{ text }}</p>", text=text)


# Notebook 01: the training data


def counts(sets: Any) -> Html:
    """Show how many rows of each set of `data.prepare.Sets` were read, were dropped (and why), and remain."""
    rows: list[dict[str, Any]] = []
    for name, dropped in sets.dropped.items():
        left = sets.read[name]
        rows.append({"set": name, "step": "read", "dropped": "", "left": left})
        for reason, n in dropped.items():
            left -= n
            rows.append({"set": "", "step": f"dropped: {reason}", "dropped": n, "left": left})
    return table(rows)


def shared_words(sets: Any, limit: int = 8) -> Html:
    """Show how many training rows share words with an evaluation set and were dropped, and the first ones."""
    if not sets.contaminated:
        return note("No training row shares words with an evaluation set.")
    found = Counter((row["set"], row["benchmark"]) for row in sets.contaminated)
    summary = [{"set": name, "evaluation set": other, "dropped": n} for (name, other), n in found.items()]
    return join([table(summary), table(sets.contaminated[:limit])])


def training_text(ready: dict[str, Any], tokenizer: Any) -> Html:
    """Show rows as the model sees them: a short and a long SFT example, and two GRPO problems.

    `ready` maps the name of each set in the profile to its formatted rows, a polars frame.
    """
    shown = []
    for name, frame in ready.items():
        rows = frame.head(20 if name == "sft" else 2).to_dicts()
        if name == "sft":
            rows.sort(key=lambda row: len(row["completion"][0]["content"]))
        for row in rows[:: max(1, len(rows) - 1)] if name in ("sft", "grpo") else ():
            prompt = tokenizer.apply_chat_template(row["prompt"], add_generation_prompt=True, tokenize=False)
            target = f"any completion with the answer {row.get('answer')}"
            if "completion" in row:
                text = tokenizer.apply_chat_template(row["prompt"] + row["completion"], tokenize=False)
                target = text[len(prompt) :]
            shown.append({"set": name, "prompt": prompt, "target": target})
    return table(shown)


# Notebooks 02 to 03b: training


def samples(path: Path, limit: int = 12) -> Html:
    """Show at most `limit` of GRPO's sample completions, with their rewards, spread over the steps."""
    lines = read_lines(path)
    shown = min(limit, len(lines))
    return table([lines[i * len(lines) // shown] for i in range(shown)])


def worst_tokens_of_solutions(
    rows: list[dict[str, Any]], worst: list[dict[str, Any]], limit: int = 5
) -> Html:
    order = sorted(range(len(worst)), key=lambda i: worst[i]["log_prob"])[:limit]
    shown = []
    for i in order:
        problem, solution = rows[i]["prompt"][-1]["content"], rows[i]["completion"][-1]["content"]
        shown.append({"log-probability": worst[i]["log_prob"], "token": worst[i]["token"]})
        shown[-1] |= {"problem": problem, "solution": solution}
    return table(shown)


def preferences(rows: list[dict[str, Any]]) -> Html:
    """Show the number of DPO pairs of each kind, and the first pair of each."""
    first = {row["kind"]: row for row in reversed(rows)}
    shown = []
    for kind, n in Counter(row["kind"] for row in rows).items():
        texts = {side: first[kind][side][-1]["content"] for side in ("prompt", "chosen", "rejected")}
        shown.append({"rejected for being": kind, "pairs": n} | texts)
    return table(shown)


# Notebook 04: models, and the answers to a test file as `evaluation.submission` records them


def completions(rows: list[dict[str, Any]], **columns: list[str]) -> Html:
    """Show the same problems answered by several models, one column each, beside the gold answer."""
    shown = []
    for i, row in enumerate(rows):
        shown.append({"problem": row["prompt"][-1]["content"], "gold": str(row["answer"])})
        shown[-1] |= {name: texts[i] for name, texts in columns.items()}
    return table(shown)


def evaluation(models: dict[str, dict[str, Any]]) -> Html:
    rows = [{"model": MODELS[name]} | figures for name, figures in models.items()]
    return table(rows) if rows else note("The profile has no held-out problems.")


def answers(solutions: list[dict[str, Any]]) -> Html:
    """Show each question with its answer, the gold answer if it is known, and how its vote went."""
    rows = []
    for s in solutions:
        stopped = sum(sample["end"] == "stopped" for sample in s["samples"])
        votes = f"{s['votes'].get(str(s['answer']), 0)} of {len(s['samples']) - stopped}"
        share = f"{s['tally'][0]['share']:.0%}" if s["tally"] else ""
        tokens = sum(sample["tokens"] for sample in s["samples"])
        row = {"id": s["id"], "problem": textwrap.shorten(s["problem"], 160), "answer": str(s["answer"])}
        row |= {"gold": "" if s["gold"] is None else str(s["gold"]), "votes": votes, "share of weight": share}
        row |= {"stop": s["stop"] or "", "stopped early": stopped, "tokens": tokens}
        rows.append(row | {"seconds": s["seconds"], "note": s["note"]})
    return table(rows)


def closest_votes(solutions: list[dict[str, Any]], limit: int = 6) -> Html:
    """Show a completion of the leader and one of the runner-up, for the `limit` closest votes."""

    def margin(solution: dict[str, Any]) -> int:
        counts = [*solution["votes"].values(), 0]  # the leader's first
        return int(counts[0] - counts[1])

    closest = sorted((s for s in solutions if s["texts"]), key=margin)
    rows = [
        {"id": s["id"], "answer": answer, "votes": s["votes"][answer], "one of its completions": text}
        for s in closest[:limit]
        for answer, text in s["texts"].items()
    ]
    return table(rows)
