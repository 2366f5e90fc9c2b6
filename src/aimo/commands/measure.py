"""`aimo evaluate`, `compare`, `replay`, `forecast`: models on benchmarks, and rules on recorded samples."""

import math
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

from aimo.commands import options
from aimo.commands.options import arg, opt
from aimo.config import read_values
from aimo.evaluation import benchmarks as benchmark_sets
from aimo.evaluation import compare, evaluate, replay, traces
from aimo.inference.answers import INTEGER
from aimo.inference.competitions import find_competition
from aimo.inference.errors import AimoError, one_line
from aimo.inference.model_folder import check_model_folder, read_adapter
from aimo.inference.storage import write_json

RULE = "A rule: 'ours max_error=0.1', '4 of 8', '10 ended of 12', 'all:entropy'; if none, all that fit."
Journals = Annotated[list[Path], arg("Journals of the solver, or public traces.")]


def replay_command(
    files: Journals,
    policy: Annotated[list[str] | None, opt(RULE)] = None,
    answers: options.Golds = None,
    draws: Annotated[int, opt("Random orders per question.", min=1)] = 300,
    seed: options.Seed = 0,
    samples: options.Samples = None,
    budget: Annotated[float, opt("Per question, in seconds or in tokens of a sample.", min=0)] = math.inf,
    competition: options.Competition = None,
    to: Annotated[Path | None, opt("Write the figures here too.", "--json")] = None,
    plot: Annotated[Path | None, opt("Draw accuracy against tokens here.")] = None,
) -> None:
    """Compare rules for voting, stopping and time on recorded samples, without a model."""
    options.check_folder("--json", to)
    options.check_folder("--plot", plot)
    rules = [replay.parse_rule(name) for name in policy or []]
    figures = []
    asked = find_competition(competition) if competition else None
    golds = traces.read_gold_file(answers, asked) if answers else {}
    for one in traces.read_traces(files, golds, asked.answer if asked else INTEGER):
        rows = replay.compare_rules(one, rules, draws, seed, samples, budget)
        replay.show_rules(one, rows)
        figures += rows
    try:
        if to:
            write_json(to, {"rules": [asdict(row) for row in figures]})
        if plot:
            replay.plot_rules(figures, plot)
    except (OSError, ValueError) as e:  # matplotlib raises ValueError for an unknown suffix
        raise AimoError(f"--json or --plot: {one_line(e)}; take a file that can be written") from None


def forecast_command(
    files: Journals,
    competition: Annotated[str, opt("aimo1, aimo2, aimo3, or a YAML file.")] = "aimo3",
    runs: Annotated[int | None, opt("Passes over the questions, if not the competition's.", min=1)] = None,
    policy: Annotated[str, opt("A rule, as for `aimo replay`.")] = "ours",
    answers: options.Golds = None,
    samples: Annotated[int, opt("Samples per question.", min=1)] = 16,
    draws: Annotated[int, opt("Replays per question.", min=1)] = 300,
    seed: options.Seed = 0,
) -> None:
    """Forecast the score of a competition from recorded samples, and how many runs tell a gain from luck."""
    rules = find_competition(competition)
    golds = traces.read_gold_file(answers, rules) if answers else {}
    for one in traces.read_traces(files, golds, rules.answer):
        chances = replay.chances_of(one.questions, replay.parse_rule(policy), samples, draws, seed)
        print(f"{one.name}: {len(one.questions)} questions recorded, {policy}, {samples} samples")
        replay.show_forecast(replay.forecast_score(chances, runs or rules.passes, rules.questions))


def evaluate_command(
    model: Annotated[Path, arg("A model folder.")],
    benchmarks: Annotated[str, opt("Names, such as aime24,math500, or files of problems and answers.")],
    data: Annotated[Path | None, opt("A folder of NAME.jsonl files, instead of the hub.")] = None,
    run_dir: Annotated[str | None, opt("The evaluation's folder; runs/evaluate-MODEL if not given.")] = None,
    samples: options.Samples = None,
    rows: Annotated[int | None, opt("How many questions to ask of each, from the first.", min=1)] = None,
    seed: options.Seed = 0,
    profile: options.Over = None,
    set_: options.Setting = None,
    server: options.Servers = None,
    adapter: options.Adapter = None,
    vllm: options.EngineArguments = None,
    competition: options.Competition = None,
    card_data: Annotated[bool, opt("Also look for leaks in the card's data.", "--card-data")] = False,
    audit: Annotated[bool, opt("List the verdicts that math-verify disagrees with.", "--audit")] = False,
) -> None:
    """Measure a model on benchmarks; repeated, it continues, and scores what is complete again."""
    layers = list(options.solver_settings(profile, set_, samples, vllm, server, adapter))
    check_model_folder(model)
    asked = benchmarks.split(",")
    given = "--adapter" if adapter else "--server"
    if (adapter or server) and any(benchmark_sets.find_benchmark(benchmark).task for benchmark in asked):
        raise AimoError(f"{given}: lighteval, which asks gpqa and lcb, takes none; leave them out")
    if adapter:
        read_adapter(adapter)
    trained = Path(adapter) if adapter else None
    name = evaluate.model_name(model) + (f"+{evaluate.model_name(trained)}" if trained else "")
    tracker = (read_values(profile).get("training") or {}).get("log_to", "none") if profile else "none"
    rules = find_competition(competition) if competition else None
    sampled = rows, seed, trained, tracker, card_data, rules, audit
    wanted = evaluate.Wanted(model, name, asked, layers, data, *sampled)
    folder = evaluate.evaluation_folder(name, run_dir)
    try:
        scores = evaluate.evaluate_model(
            wanted, lambda settings: options.start(model, [asdict(settings)], seed, server, adapter), folder
        )
        evaluate.show_scores(scores)
    except KeyboardInterrupt:
        told = f"what has ended is kept in {folder}, run the same command again to go on"
        raise AimoError(f"interrupted; {told}") from None
    print(f"page: {folder / 'evaluation.html'}")


def compare_command(
    runs: Annotated[list[Path], arg("Folders of `aimo evaluate`, the baseline first, or of `aimo run`.")],
    differ: Annotated[list[str] | None, opt("A setting whose effect is compared; repeatable.")] = None,
    run_dir: Annotated[str | None, opt("The comparison's folder; runs/compare-RUN-RUN if not given.")] = None,
) -> None:
    """Compare models on the same questions, and say whether the difference is more than luck.

    For runs, draw their training curves in the same plots.
    """
    folder = evaluate.evaluation_folder("-".join(path.name for path in runs), run_dir, "compare")
    lines = compare.compare_folders(runs, differ or [], folder)
    print(*lines, f"page: {folder / 'comparison.html'}", sep="\n")
