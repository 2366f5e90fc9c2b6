"""Competitions as YAML files: kinds of answers, their votes, artefacts, scores; what a bad file is told."""

import json
import shlex
import shutil
from contextlib import closing
from dataclasses import replace
from functools import partial
from pathlib import Path

import nbformat
import polars as pl
import pytest
import yaml
from commands import fences
from conftest import ROOT, TINY, here, refused
from scripted import Scripted, run_shipped, write_shipped

from aimo import config, pipeline
from aimo.commands import options
from aimo.config import Distil
from aimo.data import distil, prepare
from aimo.evaluation import evaluate, replay, scores, submission, traces
from aimo.evaluation.benchmarks import Question
from aimo.evaluation.completions import EvaluationHeader, Trace
from aimo.inference import competitions, gateway
from aimo.inference.answers import Choice, Integer, Latex, Nemotron, Number, Proof, Text
from aimo.inference.competitions import COMPETITIONS, read_competition, score_of
from aimo.inference.errors import AimoError
from aimo.inference.journal import Journal
from aimo.inference.local import answer_file, journal_beside
from aimo.inference.solver import solve_problem
from aimo.inference.voting import EXACT
from aimo.kaggle import kernels
from aimo.kaggle.kernels import check_kernel
from aimo.report import plots, tables
from aimo.rewards import get_reward_funcs
from aimo.run import runs

pytest_plugins = ["stand_in"]


def rules_of(slug, answer, scoring, options=""):
    """The text of a competition's file."""
    return (
        f"slug: {slug}\ninputs: {{id: row_id, problem: question{options}}}\nanswer: {{kind: {answer}}}\n"
        "rules: Put the answer in \\boxed{}.\n"
        f"artefact: {{kind: csv, id: row_id, answer: prediction}}\nscoring: {scoring}\n"
    )


FLOATS = rules_of("how-far-is-it", "number, relative: 0.01, absolute: 0.001", "tolerance")
LETTERS = rules_of("which-is-it", "choice, letters: ABCD", "accuracy", ", options: [a, b, c, d]")
TEXTS = rules_of("what-is-it", "text, case: false", "accuracy")
# A competition, its test file, what samples say in turn, and the answers: all but the last are right.
THREE = {
    "floats": (
        FLOATS,
        "row_id,question,answer\n7,how far?,3.14159\n8,how long?,1024.5\n9,how old?,5\n",
        {
            "how far": ["\\boxed{3.14}", "\\boxed{3.1416}", "\\boxed{2}", "\\boxed{\\pi}"],
            "how long": ["\\boxed{1{,}024.5}", "\\boxed{7}", "\\boxed{1.0245e3}", "so \\boxed{1024}"],
            "how old": ["none", "\\boxed{4}", "\\boxed{4.0}", "\\boxed{5}"],
        },
        [3.14159, 1024.5, 4.0],
    ),
    "letters": (
        LETTERS,
        "row_id,question,a,b,c,d,answer\n7,which?,1,2,3,4,B\n8,what?,5,6,7,,C\n9,who?,x,y,z,w,D\n",
        {
            "which": ["\\boxed{B}", "\\boxed{\\text{(B)}}", "\\boxed{A}", "The answer is B."],
            "what": ["\\boxed{C. 7}", "\\boxed{c}", "\\boxed{A}", "\\boxed{E}"],
            "who": ["\\boxed{A}", "\\boxed{A, B}", "\\boxed{A}", "\\boxed{D}"],
        },
        ["B", "C", "A"],
    ),
    "texts": (
        TEXTS,
        "row_id,question,answer\n7,colour?,Dark red\n8,animal?,cat\n9,metal?,iron\n",
        {
            "colour": ["\\boxed{dark red}", "\\boxed{\\text{Dark  Red}}", "\\boxed{blue}", "none"],
            "animal": ["\\boxed{Cat}", "\\boxed{dog}", "\\boxed{cat}", "\\boxed{\\text{cat}}"],
            "metal": ["\\boxed{gold}", "\\boxed{iron}", "\\boxed{Gold}", "none"],
        },
        ["dark red", "cat", "gold"],
    ),
}


def script(replies):
    """A sampler whose samples say a question's replies in turn."""
    counts = dict.fromkeys(replies, 0)

    def write(_, prompt):
        if prompt.endswith("\\boxed{"):  # an answer that is forced
            return "}\x03"
        key = next(key for key in replies if key in prompt)
        said = replies[key][counts[key] % len(replies[key])]
        counts[key] += 1
        return f"</think>{said}\x03"

    return Scripted(write, samples=4)


def laid_out(tmp_path, name):
    """The files of a competition: its rules, its test file, and what samples say."""
    rules, test, replies, expected = THREE[name]
    (tmp_path / f"{name}.yaml").write_text(rules)
    (tmp_path / "test.csv").write_text(test)
    return tmp_path / f"{name}.yaml", tmp_path / "test.csv", script(replies), expected


def is_near(found, expected):
    if isinstance(expected, float):
        return abs(float(found) - expected) <= 0.01 * expected
    return found.casefold() == expected.casefold()


def golds_of(test):
    return dict(pl.read_csv(test, infer_schema=False)["row_id", "answer"].rows())


def replayed(path, golds, *kind):
    (read,) = traces.read_traces([path], golds, *kind)
    rule = replay.parse_rule("all")
    return {q.id: replay.replay_order(q, range(len(q.ours)), rule)[0] for q in read.questions}


@pytest.mark.parametrize("name", THREE)
def test_a_competition_of_ten_lines_goes_from_questions_to_a_file_that_its_metric_scores(tmp_path, name):
    rules, test, sampler, expected = laid_out(tmp_path, name)
    solutions = answer_file(sampler, test, out := tmp_path / "submission.csv", 0, str(rules))
    table = pl.read_csv(out, infer_schema=False)
    assert table.columns == ["row_id", "prediction"] and table["row_id"].to_list() == ["7", "8", "9"]
    assert all(map(is_near, table["prediction"], expected))
    assert max(solutions["7"].votes.values()) > 1, "equal answers are one group"
    assert "0.6667" in submission.score_file(read_competition(rules), out, test)
    # Started again it asks nothing; the journal replays with the competition's equality.
    assert answer_file(script({}), test, out, 0, str(rules)).keys() == solutions.keys()
    assert replayed(journal_beside(out), golds_of(test)) == {"7": True, "8": True, "9": False}


@pytest.mark.parametrize("name", THREE)
def test_public_traces_are_replayed_by_the_competition_s_equality(tmp_path, name):
    rules, test, *_ = laid_out(tmp_path, name)
    public, said = tmp_path / "public.jsonl", THREE[name][2].values()
    for (id_, gold), texts in zip(golds_of(test).items(), said, strict=True):
        row = {"id": id_, "answer": gold, "samples": [{"text": text} for text in texts]}
        public.open("a").write(json.dumps(row) + "\n")
    assert replayed(public, None, read_competition(rules).answer) == {"7": True, "8": True, "9": False}
    given = public, "--competition", rules, "--draws", "2"
    assert "public: 3 questions" in here("replay", *given).stdout and here("forecast", *given).returncode == 0


@pytest.mark.parametrize(
    "name, extra, dropped",
    [
        ("floats", "10,how heavy?,a lot\n", "answer is no number"),
        ("letters", "10,where?,p,q,r,s,E\n", "answer is no letter of ABCD"),
        ("texts", "10,tree?,\n", "no answer"),
    ],
)
def test_a_profile_s_competition_decides_which_rows_stay_what_is_right_and_what_is_written(
    tmp_path, name, extra, dropped
):
    """Notebooks 01 and 04, with scripted samples in place of the model."""
    rules, test, sampler, expected = laid_out(tmp_path, name)
    golds = [*golds_of(test).values()]
    boxed = THREE[name][1].replace("?", "??").replace(f",{golds[0]}\n", f",\\boxed{{{golds[0]}}}\n")
    (tmp_path / "train.csv").write_text(boxed + extra)
    (tmp_path / "p.yaml").write_text(
        f"model: {{base: {TINY}}}\ncompetition: {rules.name}\nsft: null\n"
        f"data: {{grpo: {{source: {tmp_path / 'train.csv'}}}, heldout: {{source: {test}}}}}\n"
        f"inference: {{test: {test}, samples: 4}}\n"
    )
    profile = config.load(tmp_path / "p.yaml")
    sets = prepare.clean_sets(prepare.load_sets(profile), profile, None)
    assert sets.dropped["grpo"] == {dropped: 1} and not sets.dropped["heldout"]
    ready = prepare.format_sets(sets, profile)
    assert ready["grpo"]["answer"].to_list() == ready["heldout"]["answer"].to_list() == golds
    asked = ready["grpo"]["prompt"][0][-1]["content"]
    assert asked.endswith("\n\nA. 1\nB. 2\nC. 3\nD. 4") if name == "letters" else asked.endswith("??")
    # What GRPO rewards and what is measured is right by the competition's equality.
    firsts = [texts[0] for texts in THREE[name][2].values()]
    (reward,) = get_reward_funcs({"accuracy": 1.0}, profile.prompt, profile.answer_kind)
    assert reward(completions=firsts, answer=golds) == [1.0, 1.0, 0.0]
    rows = ready["heldout"].to_dicts()
    measured = scores.sample_rows(sampler, rows, profile.prompt, 4, 0, rules=profile.rules)
    assert measured.right[:, 0].tolist() == measured.votes().tolist() == [1, 1, 0]
    if name == "letters":  # a teacher sees the options too
        asked = distil.distilled_problems(Distil(source=str(test)), 0, profile.rules)["problem"][0]
        assert asked.endswith("A. 1\nB. 2\nC. 3\nD. 4")
    run = runs.Run(profile, tmp_path / "run", "inference", 0.0)
    run.dir.mkdir()
    records = submission.answer_test_file(script(THREE[name][2]), run)
    assert submission.count_right(records)["correct"] == 2
    assert "img" in str(plots.votes(records)) and str(tables.answers(records)).count("<tr") == 4
    out = runs.answers_of(run.dir)
    assert all(map(is_near, pl.read_csv(out, infer_schema=False)["prediction"], expected))
    kept = config.parse(yaml.safe_load(config.dump(profile)), "again")
    assert kept.rules == profile.rules, "a run's folder keeps the rules, not the path"


def test_a_run_for_a_competition_that_takes_an_adapter_measures_and_answers_nothing(tmp_path):
    heldout = "{heldout: {source: builtin, rows: 4, split: heldout}}"
    profile = f"model: {{base: {TINY}}}\ncompetition: nemotron-reasoning\ndata: {heldout}\n"
    (tmp_path / "p.yaml").write_text(profile)
    pipeline.check_run(config.load(tmp_path / "p.yaml"), tmp_path / "run", None, None)
    run = runs.begin("data", str(tmp_path / "p.yaml"), tmp_path / "run")
    run.folder.mkdir(exist_ok=True)
    (run.folder / "README.md").touch()
    run.finish()
    run = runs.begin("inference", str(tmp_path / "p.yaml"), tmp_path / "run")
    solutions = submission.answer_test_file(script({}), run)
    shown = [show(solutions) for show in (plots.votes, plots.cost, plots.timelines, tables.answers)]
    assert solutions == [] and "No question was asked" in str(shown[0]) and "img" not in str(shown)
    run.finish(models={}, **submission.count_right(solutions))
    assert runs.is_finished(tmp_path / "run", "inference") and runs.answers_of(tmp_path / "run") is None


@pytest.mark.parametrize("name", THREE)
def test_evaluate_asks_a_competition_s_file_and_judges_by_its_equality(tmp_path, name):
    rules, test, sampler, _ = laid_out(tmp_path, name)
    layers = [{"samples": 4, "user": "{problem} {rules}"}]
    wanted = evaluate.Wanted(TINY, "m", [str(test)], layers, rules=read_competition(rules))
    sampler.settings = wanted.settings(str(test))
    found = evaluate.evaluate_model(wanted, lambda settings: sampler, tmp_path / "run")["test"]
    assert found.votes().tolist() == [1, 1, 0] and read_competition(rules).rules in sampler.prompts[0]
    again = evaluate.read_evaluation(tmp_path / "run")[1]["test"]
    assert again.right.tolist() == found.right.tolist() and again.ballots == found.ballots
    with pytest.raises(AimoError, match=r"answer was .* and is now None"):
        evaluate.evaluate_model(replace(wanted, rules=None), lambda _: sampler, tmp_path / "run")


def test_what_states_the_right_answer_and_is_not_read_is_counted_and_shown(tmp_path, capsys):
    texts = ["We see 42 at once.", "\\boxed{Tom has 42 of them}", "\\boxed{41}, not 42", "It is 42.5"]
    texts += ["\\boxed{42}", "It is 42.\n\nNo idea.", "\\boxed{41, 42}"]
    header = EvaluationHeader("m", "w", "x", 0, {}, 1024, [Question(f"{i}", "?", "42") for i in range(7)])
    samples = [Trace(f"{i}", 0, 0, text, 1, True, 0.0, 1.0) for i, text in enumerate(texts)]
    found = scores.score(header, samples)
    assert found.unread[:, 0].tolist() == [True, True, *[False] * 5]
    assert not scores.score(header, [replace(one, finished=False) for one in samples]).unread[0, 0]
    evaluate.write_results(evaluate.Wanted(TINY, "m", [], []), {"x": found}, {}, tmp_path)
    assert "right answers that were not read" in (tmp_path / "evaluation.html").read_text()
    evaluate.show_scores({"x": found})
    assert "x: 2 wrong completions state the right answer" in capsys.readouterr().out


# Kills at the first sample, and before and after a file is written.
@pytest.mark.parametrize(
    "name, kind, kills",
    [
        ("floats", "csv", ["ask 7"]),
        ("letters", "parquet", ["ask 1", "open 3", "os.rename 3"]),
        ("texts", "csv", ["ask 7"]),
    ],
)
def test_the_kernel_ships_the_competition_and_leaves_a_whole_file_at_any_death_as_on_kaggle(
    tmp_path, name, kind, kills
):
    rules, test, _, expected = laid_out(tmp_path, name)
    rules.write_text(rules.read_text().replace("kind: csv", f"kind: {kind}"))
    built = kernels.build_kernel("submission", tmp_path, competition=str(rules))
    cells = [cell.source for cell in nbformat.read(built, 4).cells]
    slug = read_competition(rules).slug
    assert f'competition = "{name}"' in cells[2] and f"/kaggle/input/{slug}/test.csv" in cells[2]
    working, inputs = tmp_path / "working", tmp_path / "input" / slug
    inputs.mkdir(parents=True)
    test.rename(inputs / "test.csv")
    write_shipped(cells, working)
    shipped = {path.stem for path in (working / "src/aimo/inference/competitions").iterdir()}
    assert shipped == {*COMPETITIONS, name}

    def answered(kill):
        done = run_shipped(working, name, inputs / "test.csv", THREE[name][2], kill)
        out = working / f"submission.{kind}"
        table = pl.read_csv(out) if kind == "csv" else pl.read_parquet(out)
        assert table.columns == ["row_id", "prediction"] and table["row_id"].to_list() == [7, 8, 9]
        return done, [is_near(*pair) for pair in zip(table["prediction"], expected, strict=True)]

    for kill in kills:
        killed, right = answered(kill)
        assert killed.returncode == -9, killed.stderr[-2000:]
    assert 0 < sum(right) < 3
    done, right = answered("never 1")
    assert done.returncode == 0 and all(right), done.stderr[-2000:]
    assert "from the journal" in done.stdout
    assert f"score: 0.6667, the {read_competition(rules).scoring} of 3 questions" in done.stdout


def test_a_file_may_have_other_columns_and_in_parquet_ids_that_are_integers(tmp_path):
    rules, test, sampler, _ = laid_out(tmp_path, "letters")
    others = "answer: prediction, others: {language: en, version: 2}}"
    rules.write_text(LETTERS.replace("kind: csv", "kind: parquet").replace("answer: prediction}", others))
    answer_file(sampler, test, out := tmp_path / "submission.parquet", 0, str(rules))
    first = {"row_id": 7, "prediction": "B", "language": "en", "version": 2}
    assert pl.read_parquet(out).row(0, named=True) == first
    assert "0.6667" in submission.score_file(read_competition(rules), out, test)
    test.write_text(test.read_text().replace("\n7,", "\n07,"))
    answer_file(script(THREE["letters"][2]), test, out := tmp_path / "again.parquet", 0, str(rules))
    assert pl.read_parquet(out)["row_id"].to_list() == ["07", "8", "9"]


def test_a_kernel_s_test_file_may_be_parquet_with_types_of_its_own(tmp_path, monkeypatch):
    rules, test, sampler, _ = laid_out(tmp_path, "letters")
    table = pl.read_csv(test).drop("answer").with_columns(tags=pl.lit([1, 2]))
    table.write_parquet(tmp_path / "test.parquet")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(gateway, "start_engine", lambda *_: sampler)
    monkeypatch.setattr(gateway, "check_installed", lambda settings: None)
    gateway.serve_submission(str(rules), str(TINY), "test.parquet", 600.0, {"samples": 4})
    assert pl.read_csv("submission.csv").rows() == [(7, "B"), (8, "C"), (9, "A")]
    Path("broken.parquet").write_text("row_id")
    with pytest.raises(AimoError, match=r"test file broken.parquet: .*; give a CSV in UTF-8, or a Parquet"):
        gateway.serve_submission(str(rules), str(TINY), "broken.parquet", 600.0, {"samples": 4})


def test_the_page_s_commands_lead_from_an_address_to_a_scored_submission(kaggle, tmp_path, monkeypatch):
    """Each command of the journey, with the stand-in for Kaggle, and scripted samples in place of models."""
    monkeypatch.chdir(tmp_path)
    page = Path("page.md")
    page.write_text((ROOT / "docs" / "competitions.md").read_text().partition("## The keys")[0])
    (rules,) = [fence for language, fence in fences(page) if language == "yaml"]
    shell = "".join(fence for language, fence in fences(page) if language == "bash")
    _, test, replies, _ = THREE["letters"]
    hidden = "".join(line.rpartition(",")[0] + "\n" for line in test.splitlines())
    sample = b"row_id,prediction\n7,A\n8,A\n9,A\n"
    kaggle.competitions["which-is-it"] = {
        "about": {"title": "Which is it?", "evaluationMetric": "Accuracy", "maxDailySubmissions": 5},
        "pages": {"code": "GPU Notebooks run for at most 9 hours, on a T4 x 2."},
        "files": {"test.csv": hidden.encode(), "sample_submission.csv": sample},
    }
    Path("test.csv").write_text(test)

    def run_stage(stage, folder):  # in place of the notebook
        run = runs.begin(stage, str(folder / "profile.yaml"), folder)
        run.finish(**submission.count_right(submission.answer_test_file(script(replies), run)))

    monkeypatch.setattr(pipeline, "execute_stage", run_stage)
    monkeypatch.setattr(options, "start", lambda *_: script(replies))
    told = {}
    for _, *words in map(shlex.split, shell.splitlines()):
        if words == ["which-is-it"]:
            Path("which-is-it").mkdir()
            continue
        words = [str(TINY) if word.startswith("runs/tiny/") else word for word in words]
        if words[0] in ("run", "evaluate"):
            words += ["--run-dir", str(tmp_path / words[0])]
        if words[0] == "run":  # a model that is here
            words += ["--set", f"model.base={TINY}", "--set", "inference.vllm=null"]
        if words[:2] == ["kaggle", "push"]:
            answers = Path("submission.csv").read_bytes()
            kaggle.script = {"statuses": ["COMPLETE"], "files": {"submission.csv": answers}}
        if words[:2] == ["kaggle", "choose"]:
            refused(*words, "--count", "1", told=["no submission has a hold-out figure"])
            continue
        done = here(*words)
        assert done.returncode == 0, (words, done)
        told[" ".join(words[:2])] = done.stdout + done.stderr
        if words[:2] == ["competition", "new"]:
            drafted = read_competition(Path("which-is-it.yaml"))
            written = competitions.parse_competition(yaml.safe_load(rules), "the page")
            kept = {"rules": drafted.rules, "questions": drafted.questions}
            assert replace(written, **kept) == drafted, "the draft lacks nothing but what the page says"
            Path("which-is-it.yaml").write_text(rules)
    assert "score: 0.6667" in told["competition score"] and "no fault found" in told["kernel check"]
    assert "submissions left today: 5" in told["kaggle scores"] and "41.5" in told["kaggle scores"]
    assert "letter of ABCD, else 'A'; letters ABCD, several False" in told["competition check"]
    assert told["competition check"].endswith("which?\n\nA. 1\nB. 2\nC. 3\nD. 4\n")
    submitted, saved = kaggle.asked("CreateCodeSubmission")[0], kaggle.asked("SaveKernel")[0]
    assert (submitted.competition_name, submitted.file_name) == ("which-is-it", "submission.csv")
    assert (saved.competition_data_sources, saved.machine_shape) == (["which-is-it"], "NvidiaTeslaT4")


# Kinds


@pytest.mark.parametrize(
    "kind, answers, votes",
    [
        (Integer(0, 999), ["8", "1007", "7", "7.0"], {7: 2, 8: 1}),
        (Integer(0, 999, 1000), ["7", "1007", "-993", "8"], {7: 3, 8: 1}),
        (Number(relative=0.01), ["100", "100.5", "99.6", "90"], {100.0: 3, 90.0: 1}),
        (Number(absolute=0.5), ["0", "0.4", "-0.4", "2"], {0.0: 3, 2.0: 1}),
        (Number(decimals=1), ["0.14", "0.11", "\\frac{1}{10}", "0.2"], {0.1: 3, 0.2: 1}),
        (Number(), ["1", "1.0", "1e0", "1.0001"], {1.0: 3, 1.0001: 1}),
        (Choice("ABCD"), ["A", "\\text{A}", "(A)", "E"], {"A": 3}),
        (Choice("ABCD", several=True), ["A, C", "CA", "C and A", "B"], {"AC": 3, "B": 1}),
        (Latex(), ["x", r"\frac{1}{2}", "0.5", r"\dfrac12"], {r"\frac{1}{2}": 3, "x": 1}),
        (Latex(), ["x^2", "(x+1)^2", "x^2+2x+1", "1+x(x+2)"], {"(x+1)^2": 3, "x^2": 1}),  # by algebra
        (Text(), ["a b", "a  b", "A b", "\\text{a b}"], {"a b": 3, "A b": 1}),
        (Text(case=False), ["a b", "a  b", "A B", "c"], {"a b": 3, "c": 1}),
        (Text(spaces=True), ["a b", "a  b", "a b", "ab"], {"a b": 2, "a  b": 1, "ab": 1}),
    ],
)
def test_votes_are_grouped_by_the_kind_s_equality(kind, answers, votes):
    sampler = script({"Q": [f"\\boxed{{{answer}}}" for answer in answers]})
    solution = solve_problem(sampler, "Q", 4, kind, policy=EXACT)
    assert dict(solution.votes) == votes
    assert solution.answer == max(votes, key=votes.__getitem__) and kind.accepts(solution.answer)


def test_what_is_none_of_the_kind_is_not_read_and_the_fallback_stands_in_a_submission():
    for kind, *texts in (
        (Integer(0, 9), "10", "1/2"), (Number(), "x", "10^{400}", "2x", "3, 4"), (Latex(), "$ $"),
        (Choice("AB"), "C", "A, B", ""), (Text(), "  ", "x" * 501),
    ):  # fmt: skip
        assert {kind.read(text) for text in texts} == {None} and kind.accepts(kind.fallback), kind
    assert not Proof(pages=1).accepts("x" * 3001)


def test_journals_hold_each_kind_and_refuse_another(tmp_path):
    kinds = (Number(0.1), 2.5, "B"), (Choice(), "B", 2.5), (Text(), "B", 1), (Latex(), "x^2", 2)
    for kind, value, other in kinds:
        path = tmp_path / f"{kind.kind}.jsonl"
        reopen = partial(Journal, path, "m", competition="own", other="--out", kind=kind)
        with closing(reopen()) as journal:
            journal.add("q", "?", value)
        with closing(reopen()) as journal:
            assert journal.recall("q", "?").answer == value
        path.write_text(path.read_text().replace(json.dumps(value), json.dumps(other)))
        with pytest.raises(AimoError, match=rf"line 2: answer: {other!r} is no {kind.noun}"):
            reopen()
    header = {"model": "m", "competition": "aimo3", "settings": {}, "weights": "", "seed": None}
    path = tmp_path / "aimo3.jsonl"
    Journal(path, "m", "aimo3").add("q", "?", 7)
    assert json.loads(path.read_text().splitlines()[0]) == {"journal": header}, "as in 1.0.1"


# Scores


@pytest.mark.parametrize(
    "rules, golds, passes, score",
    [
        ("aimo3", [1, 2, 3], [[1, 2, 0], [1, 0, 0]], 1.5),
        ("aimo2", [1, 2, 3], [[1, 2, 0]], 2),
        (TEXTS, ["Cat", "dog"], [["cat", "cat"]], 0.5),
        (FLOATS, [100.0, 0.0], [[101.0, 0.001]], 1),
        (FLOATS, [100.0, 0.0, -5.0], [[101.1, 0.002, 5.0]], 0),
        (rules_of("a", "latex", "accuracy"), ["1/2"], [["0.5"]], 1),
        # Bits are texts, numbers may be near, texts are equal in any case.
        ("nemotron-reasoning", ["1011", "24.64", "0.0", "1e3", "XLVII"],
         [["1011", "24.8", "0.000009", " 1000 ", "xlvii"]], 1),
        ("nemotron-reasoning", ["1011", "0", "24.64", "a b"], [["01011", "0.000001", "25", "a  b"]], 0),
    ],
)  # fmt: skip
def test_a_score_is_points_by_passes_or_the_share_of_answers_that_the_metric_takes(
    rules, golds, passes, score
):
    read = COMPETITIONS.get(rules) or competitions.parse_competition(yaml.safe_load(rules), "it")
    assert score_of(read, dict(enumerate(golds)), [dict(enumerate(given)) for given in passes]) == score


BOXES = [
    ("\\boxed{1} then \\boxed{2}", "2"), ("\\boxed{1} then \\boxed{ }", "1"), ("\\boxed{cut off", "cut off"),
    ("\\boxed{\\frac{1}{2}} so {yes} it is", "\\frac{1}{2}} so {yes"), ("a\n\n  b c \n", "b c"), ("", None),
    ("The final answer is: 7 cats\nand 8", "7 cats"), ("final answer: no\nFinal Answer: yes", "yes"),
    ("I count 3, then -4.50 of them", "-4.50"),
]  # fmt: skip


@pytest.mark.parametrize("completion, answer", BOXES)
def test_the_nemotron_reader_takes_the_last_filled_box_then_a_phrase_a_number_a_line(completion, answer):
    assert Nemotron().find(completion) == answer


# Files


@pytest.mark.parametrize(
    "change, told",
    [
        (("scoring: tolerance", "scorring: tolerance"), "scorring: unknown key, did you mean scoring?"),
        (("relative", "relatve"), "answer.relatve: unknown key, did you mean relative?"),
        (("kind: number", "kind: numbxer"), "answer.kind: should be one of integer, number, choice"),
        (("relative: 0.01", "relative: -1"), "answer.relative: should be greater than or equal to 0, not -1"),
        (("scoring: tolerance", "scoring: accuracy"), "scoring accuracy does not go with answer.kind number"),
        (("kind: csv, ", "kind: server, "), "artefact.server: MODULE.CLASS"),
        (("kind: csv, id: row_id, ", "kind: csv, id: prediction, "), "id, answer, others: each needs"),
        (("question}", "question, options: [a, b]}"), "inputs.options: 2 columns need a choice"),
        (("scoring: tolerance", "points: [0, 1, 2]\nscoring: tolerance"), "scoring tolerance does not count"),
        (("problem: question", "problem: row_id"), "inputs.id, problem, options: each needs a column"),
        ((FLOATS, "{1: 2}"), "slug: missing"),
    ],
)
def test_a_bad_file_is_told_in_one_line_which_key_is_wrong(tmp_path, change, told):
    path = tmp_path / "mine.yaml"
    path.write_text(FLOATS.replace(*change))
    with pytest.raises(AimoError, match=rf"{path}: .*{told}"):
        read_competition(path)


def test_what_cannot_be_asked_or_scored_is_refused(tmp_path):
    rules, test, *_ = laid_out(tmp_path, "letters")
    test.write_text(THREE["letters"][1].replace(",C\n", ",E\n"))
    refused("competition", "check", rules, "--test", test, told=["question 8: its known answer 'E'"])
    refused("competition", "check", "aimo9", told=["or a path to a .yaml file"])
    with pytest.raises(AimoError, match="it takes an adapter"):
        kernels.build_kernel("submission", tmp_path, competition="nemotron-reasoning")
    rules, test, *_ = laid_out(tmp_path, "floats")
    for text, told in (
        ("id,prediction\n7,1\n", "has the columns id, prediction; it needs row_id, prediction"),
        ("row_id,prediction\n7,1\n8,1\n", "lacks 9"),
        ("row_id,prediction\n7,1\n8,1\n9,1\n9,1\n", "has 9 twice"),
        ("row_id,prediction\n7,1\n8,1\n9,far\n", "9 has 'far', no number"),
    ):
        (tmp_path / "s.csv").write_text(text)
        with pytest.raises(AimoError, match=told):
            submission.score_file(read_competition(rules), tmp_path / "s.csv", test)


def test_a_kernel_with_a_competition_of_its_own_is_checked_by_its_rules(tmp_path):
    rules, written = tmp_path / "mine.yaml", tmp_path / "kernel-metadata.json"
    rules.write_text(FLOATS + "accelerators: [NvidiaTeslaT4]\nsession_s: 1000\n")
    built = kernels.build_kernel("submission", tmp_path, competition=str(rules))
    assert check_kernel(str(tmp_path)) == [], "its metadata have the slug, the machine and the hours"
    assert "time_limit_s = 967" in built.read_text() and '/aimo-mine"' in written.read_text()
    shutil.copyfile(kernels.FOLDER / "submission" / "kernel-metadata.json", written)
    rules.write_text(rules.read_text().replace("1000", "900"))
    kernels.build_kernel("submission", tmp_path, competition=str(rules))
    built.write_text(built.read_text().replace("time_limit_s = 870", "time_limit_s = 17400"))
    faults = "; ".join(check_kernel(str(tmp_path)))
    assert "competition_sources lack how-far-is-it" in faults and "not within the session's 900 s" in faults
    assert "machine_shape NvidiaH100 is not allowed in mine" in faults and "unknown" not in faults
    (tmp_path / "aimo3.yaml").write_text(FLOATS)
    with pytest.raises(AimoError, match="the package has one named aimo3; rename the file"):
        kernels.build_kernel("submission", tmp_path, competition=str(tmp_path / "aimo3.yaml"))


def test_a_kernel_for_a_profile_answers_its_competition_and_ships_the_judge_for_answers_in_latex(tmp_path):
    rules = tmp_path / "mine.yaml"
    (tmp_path / "p.yaml").write_text(f"model: {{base: {TINY}}}\ncompetition: mine.yaml\n")
    for answer in ("latex", "text"):
        rules.write_text(rules_of("how-far-is-it", answer, "accuracy"))
        built = kernels.build_kernel("submission", tmp_path, profile=str(tmp_path / "p.yaml"))
        assert ("inference/judge.py" in built.read_text()) == (answer == "latex")
    cells = [cell.source for cell in nbformat.read(built, 4).cells]
    assert 'competition = "how-far-is-it"' in cells[2] and "/kaggle/input/how-far-is-it/test.csv" in cells[2]
    (shipped,) = (cell.partition("\n")[2] for cell in cells if "competitions/how-far-is-it.yaml" in cell[:90])
    assert competitions.parse_competition(yaml.safe_load(shipped), "it") == read_competition(rules)
    assert check_kernel(str(tmp_path)) == []
    trained = kernels.build_kernel("evaluate", tmp_path, profile=str(tmp_path / "p.yaml"))
    assert 'competition = "how-far-is-it"' in trained.read_text().replace('\\"', '"')
