"""Inputs from public reports, each handled as its report says is right.

Each case has a function of its id, which gets the case and the fixtures that it names, in an empty folder.
"""

import gzip
import inspect
import json
import shutil
from math import gcd
from pathlib import Path

import jupytext
import polars as pl
import pytest
from conftest import ROOT, TINY
from model_server import standing
from scripted import Scripted
from test_kaggle_check import kernel_with
from test_server_faults import WHOLE, sample

from aimo import config, pipeline
from aimo.config import Columns, Source
from aimo.data import sources
from aimo.evaluation import benchmarks, submission
from aimo.inference import startup
from aimo.inference.answers import Integer, extract, to_integer
from aimo.inference.competitions import COMPETITIONS
from aimo.inference.errors import AimoError
from aimo.inference.judge import are_correct, are_equal
from aimo.inference.local import read_questions
from aimo.inference.model_folder import read_tokenizer
from aimo.inference.prompts import check_template
from aimo.inference.sample import End
from aimo.inference.server import Server
from aimo.inference.settings import Settings
from aimo.inference.solver import solve_problem
from aimo.inference.vllm_process import context_limit
from aimo.kaggle.kernels import FOLDER, check_kernel, source_of
from aimo.run import runs
from aimo.train import models

pytest_plugins = ["stand_in"]
CASES = ROOT.parent / "shared" / "data" / "cases" / "public_reports.jsonl"
cases = [json.loads(line) for line in CASES.read_text().split("\n") if line] if CASES.exists() else []


@pytest.mark.parametrize("case", cases, ids=[f"{case['id']}-{case['symptom'][:40]}" for case in cases])
def test_a_public_report_is_handled(case, request, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    check = globals()[case["id"]]
    named = [name for name in inspect.signature(check).parameters if name != "case"]
    check(case, **{name: request.getfixturevalue(name) for name in named})


# answers


def equal(*pairs):
    return are_equal([answer for answer, _ in pairs], [gold for _, gold in pairs])


def read_as(separator, *integers):
    """A case whose texts answer these integers."""
    return lambda case: check(case["input"].split(separator), integers)


def check(texts, integers):
    assert [to_integer(extract(text)) for text in texts] == [*integers]
    assert are_correct(texts, integers) == [True] * len(texts)


def compared(separator, verdict, more=()):
    """A case of one pair or several, which are equal or not either way round, and more that are equal."""

    def check(case):
        pairs = [pair.split(" (")[0].split(separator) for pair in case["input"].split("; ")]
        assert {*equal(*pairs), *equal(*(pair[::-1] for pair in pairs))} == {verdict}
        assert all(equal(*more))

    return check


A03v = read_as("\0", 7)
A16 = read_as(" | ", 42, 17, 42)
A17v = read_as("; ", 17, 17)
A18 = read_as(" | ", 42, 17, 17)
A19 = read_as("\0", 16)
A24 = read_as("; ", 42, 1024, 42)
A05v = compared(" against ", False)
A06 = compared(" vs ", False)
A08 = compared(" vs ", True)
A09 = compared(" vs ", True, [("pi/2", r"\frac{\pi}{2}"), ("-2*pi", r"-2\pi"), ("14.0+-1.0i", "14-i")])
A10v = compared(" against ", True)
A11 = compared(" vs ", True)


def A04(case):
    completion, gold = case["input"].split("   gold ")
    assert are_correct([completion], [gold]) == [True]


def A12(case):
    answer, _, gold = case["input"].removeprefix("answer ").partition(", gold ")
    gold = gold.partition(", and the")[0]
    assert equal((answer, gold), (gold, answer)) == [True, True]


def A23v(case):
    text = case["input"].split(" for ")[0]
    assert are_correct([text] * 4, ["7", "A", "8", "B"]) == [True, True, False, False]


def A25(case):
    texts = case["input"].split("; ")
    check(texts[:2], (42, 10000))
    assert to_integer(texts[2]) == -5 and equal((texts[3], r"\frac12"), (texts[4], r"\frac13")) == [
        True,
        True,
    ]


# data files

ROW = {"problem": "What is 6 x 7?", "answer": "42"}


def load(path, **columns):
    source = Source(str(path), columns=Columns(**columns) if columns else None)
    rows, notes = sources.load_source(source, 0, "data.sft")
    return rows.to_dicts(), notes


def write(name, content):
    """A file of a text, of bytes, or of JSON lines."""
    if isinstance(content, list):
        content = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in content)
    Path(name).write_bytes(content.encode() if isinstance(content, str) else content)
    return Path(name)


def refused(path, *told, **columns):
    with pytest.raises(AimoError) as e:
        load(path, **columns)
    assert all(text in str(e.value) for text in told)


def held(content, expected, repaired=0, **columns):
    [row], notes = load(write("rows.jsonl", content), **columns)
    assert row | expected == row and notes.repaired.total() == repaired


def talk(*texts):
    turns = zip(("user", "assistant") * 2, texts, strict=False)
    return [{"role": role, "content": text} for role, text in turns]


SOLVED = talk("What is 6 x 7?", "\\boxed{42}")


def B01(case):
    held(case["input"], {"problem": "What is 10 + 1?", "solution": "… \\boxed{11}"})


def B02v(case):
    [row], _ = load(write("rows.jsonl", [{"messages": [SOLVED[0], SOLVED[1] | {"thinking": "I know"}]}]))
    assert "I know" in row["solution"] and row["solution"].endswith("\\boxed{42}")


def B03(case):
    rows, notes = load(write("rows.jsonl", [{"messages": talk("Hi", "Hello") + SOLVED}]))
    assert not rows and notes.dropped == {"conversation of several turns": 1}


def B04v(case):
    held(case["input"], {"solution": "\ufffd 42"}, repaired=1, solution="solution")


def B05(case):
    write("train-0.jsonl", [ROW])
    write("train-1.jsonl", [ROW | {"answer": ["3"]}])
    refused(Path.cwd(), "train-0.jsonl", "train-1.jsonl", "'answer'")


def B06(case):
    rows = [{"problem": f"What is {i}?", "answer": i} for i in range(200)]
    rows.append({"problem": "What is a half?", "answer": "\\frac{1}{2}"})
    questions = benchmarks.read_benchmark(str(write("mine.jsonl", rows)))
    assert [questions[i].answer for i in (0, 199, 200)] == ["0", "199", "\\frac{1}{2}"]


def read_everywhere(path):
    """The first problem of a file, as a source, a test file, a benchmark and a file of problems read it."""
    problem = load(path)[0][0]["problem"]
    assert problem == read_questions(path)[1]["problem"][0]
    assert problem == benchmarks.read_benchmark(str(path))[0].problem
    assert problem == submission.read_problems(path, COMPETITIONS["aimo3"])[0]["problem"][0]
    return problem


def B07v(case):
    row = {"id": "a", "problem": "Let\u2028n\u0085be\u2029what", "answer": 4}
    assert read_everywhere(write("mine.jsonl", [row])) == row["problem"]


def B08(case):
    table = pl.DataFrame({"id": ["a"], "problem": ["2 + 2?"], "answer": ["4"]})
    for name, text in (("bom.csv", table.write_csv()), ("bom.jsonl", table.write_ndjson())):
        assert read_everywhere(write(name, "\ufeff" + text)) == "2 + 2?"


def B09(case):
    row = {"data_source": "math_dapo", "prompt": talk("What is 6 x 7?")}
    row |= {"reward_model": {"ground_truth": "42", "style": "rule"}, "extra_info": {"index": "0-1"}}
    lines = write("rows.jsonl", [row])
    pl.DataFrame([row]).write_parquet(lines.with_suffix(".parquet"))
    for path in (lines, lines.with_suffix(".parquet")):
        for columns in ({}, {"problem": "prompt", "answer": "reward_model.ground_truth"}):
            [found], _ = load(path, **columns)
            assert (found["problem"], found["answer"]) == ("What is 6 x 7?", "42")
        refused(path, "reward_model.ground_truth", problem="prompt", answer="reward_model")


def B10(case):
    for source in (write("train.jsonl.gz", gzip.compress(json.dumps(ROW).encode())), Path.cwd()):
        assert load(source)[0][0]["answer"] == "42"


def B11(case):
    problem = r"Find $\beta=\frac{84}{2}$, $5\times 2$"
    held(f'{{"problem": "{problem}", "answer": "42"}}\n', {"problem": problem}, repaired=1)


def B13(case):
    table = write("rows.csv", "problem,answer\nP,NaN\nQ,42\n")
    lines = '{"problem": "P", "answer": NaN}\n{"problem": "Q", "answer": 42}\n'
    columns = pl.DataFrame({"problem": ["P", "Q"], "answer": [float("nan"), 42.0]})
    columns.write_parquet(table.with_suffix(".parquet"))
    for path in (table, write("rows.jsonl", lines), table.with_suffix(".parquet")):
        assert [row["answer"] for row in load(path)[0]] in ([None, "42"], [None, "42.0"])


def B14(case):
    held([{"messages": json.dumps(SOLVED)}], {"problem": "What is 6 x 7?", "solution": "\\boxed{42}"})


def B16(case):
    for text, encoding in (("Où est 6 x 7?", "latin-1"), ("六乘七是多少", "gbk")):
        rows = f"problem,answer\n{text},42\n"
        refused(write("rows.csv", rows.encode(encoding)), "line 2", "encoding", "UTF-8")
        assert load(write("rows.csv", rows.encode("utf-16")))[0][0]["problem"] == text
        refused(write("rows.csv", rows.encode("utf-16-le")), "encoding", "UTF-16")


# chat templates

CHATML = (
    "{%- for m in messages -%}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor -%}"
    "{%- if add_generation_prompt -%}<|im_start|>assistant\n{% endif -%}"
)


def model_with(template):
    """A folder of the tiny base with a template as Qwen2.5's base has it: its turns end in <|im_end|>."""
    folder = shutil.copytree(TINY, Path("model"))
    (folder / "chat_template.jinja").unlink()
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    last = max(tokenizer["added_tokens"], key=lambda token: token["id"])
    tokenizer["added_tokens"].append(last | {"id": 725, "content": "<|im_end|>", "special": True})
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    described = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps(described | {"chat_template": template}))
    return folder


def C01(case):
    folder = model_with(CHATML)
    with pytest.raises(AimoError, match=r"set prompt.eos_token to '<\|im_end\|>'"):
        models.load_tokenizer(folder, config.load("tiny", ["prompt.template=model"]))
    taken = config.load("tiny", ["prompt.template=model", "prompt.eos_token=<|im_end|>"])
    assert models.load_tokenizer(folder, taken).eos_token == "<|im_end|>"


def C04(case):
    named = [{"name": "default", "template": CHATML}, {"name": "tool_use", "template": "[tools]" + CHATML}]
    folder = model_with(named)
    profile = config.load("tiny", ["prompt.template=model", "prompt.eos_token=<|im_end|>"])
    for tokenizer in read_tokenizer(folder), models.load_tokenizer(folder, profile):
        talk = [{"role": "user", "content": "1 + 1?"}]
        assert tokenizer.apply_chat_template(talk, tokenize=False).startswith("<|im_start|>user")
        assert tokenizer.apply_chat_template(talk, tools=[{}], tokenize=False).startswith("[tools]")
        check_template(tokenizer, Settings(), folder)


def C05(case):
    config = {"model_type": "gemma3", "text_config": {"max_position_embeddings": 131072}}
    assert context_limit(config) == 131072


def C02v(case):
    path = Path("bad.jinja").absolute()
    for text in ("{%- for m in messages -%}{{ m.content }", "{{ raise_exception('no') }}", "{{ no.such }}"):
        path.write_text(text)
        with pytest.raises(AimoError, match="cannot be rendered"):
            models.load_tokenizer(TINY, config.load("tiny", [f"prompt.template={path}"]))


def C06v(case):
    rope = {"rope_type": "yarn", "factor": 4.0}
    config = {"model_type": "qwen2", "max_position_embeddings": 32768, "rope_parameters": rope}
    assert context_limit(config) == 131072


# kaggle


def D01(case):
    source, names = case["input"].split("--model ")[1], {}
    template = jupytext.read(FOLDER / "submission" / "aimo-submission.py")
    exec(next(c.source for c in template.cells if "parameters" in c.metadata.get("tags", [])), {}, names)
    owner, model = source.split("/", 1)
    slug = Path(names["test_csv"]).parent.name
    for folders in (model, slug), (f"models/{owner}/{model}", f"competitions/{slug}"):
        inputs = Path.cwd() / folders[0].replace("/", "-")
        for folder in folders:
            (inputs / folder).mkdir(parents=True)
        (inputs / folders[1] / "test.csv").touch()
        found = startup.find_input([names["model"], names["test_csv"], None, source], inputs)
        there = str(inputs / folders[0])
        assert found == [there, str(inputs / folders[1] / "test.csv"), None, there]


def sign_in(token, aimo, monkeypatch):
    """Sign in with a token; the line of a refusal, which never holds it."""
    monkeypatch.setenv("KAGGLE_API_TOKEN", token)
    code, out, err = aimo("login-check")
    assert token[:20] not in out + err and "Traceback" not in err
    return code, err


def D03(case, kaggle, aimo, monkeypatch):
    token = "eyJ" + "a" * 897
    monkeypatch.setattr("stand_in.TOKENS", (f"Bearer {token}",))
    kaggle.IntrospectToken = lambda asked: {"active": asked.token == token, "username": "me"}
    assert sign_in(token, aimo, monkeypatch) == (0, "")
    code, err = sign_in(token[::-1], aimo, monkeypatch)
    assert code == 2 and "Kaggle does not accept the token in KAGGLE_API_TOKEN" in err


def D02v(case, kaggle, aimo, monkeypatch):
    code, err = sign_in("KGAT_“0123456789abcdef0123", aimo, monkeypatch)
    assert code == 2 and err.count("\n") == 1 and "a character that no token has" in err
    assert kaggle.requests == []


def faults_of(*changed, **more):
    return check_kernel(kernel_with(Path.cwd(), *changed, **more))


def D05(case):
    (address,) = json.loads(case["input"].partition(": ")[2])
    (fault,) = faults_of({"dataset_sources": [address]})
    assert "should be OWNER/SLUG" in fault and "me/my-problems" in fault
    assert source_of(address, 2) == "me/my-problems"


def D06v(case):
    (fault,) = faults_of(tag="other")
    assert "has no cell with the tag `parameters`" in fault


def D07(case):
    parameters = "\n".join(part.strip() for part in case["input"].split(";"))
    faults = faults_of(parameters=parameters)
    assert len(faults) == 2
    assert "model '/kaggle/input/other-model" in faults[0] and "time_limit_s 99999" in faults[1]


def D08(case):
    magic = case["input"].removesuffix(" in the cell")
    (fault,) = faults_of(parameters=f"seed = 0\n{magic}")
    assert magic in fault and "line 2" in fault and "\n" not in fault


# notebooks


def E01(case, tmp_path, monkeypatch):
    shutil.copytree(ROOT / "notebooks", tmp_path / "notebooks")
    path = tmp_path / "notebooks" / "01_data_prep.ipynb"
    notebook = json.loads(path.read_text())
    for cell in notebook["cells"]:
        cell["metadata"].pop("tags", None)
    path.write_text(json.dumps(notebook))
    monkeypatch.setattr(pipeline, "ROOT", tmp_path)
    with pytest.raises(AimoError, match=r"01_data_prep.ipynb: 0 .*cells have the tag `parameters`"):
        pipeline.run_profile("tiny", str(tmp_path / "run"))
    assert not (tmp_path / "run").exists()


def E03(case):
    override = case["input"].split()[-1]
    run = runs.begin("data", "tiny", "run", override)
    assert run.profile.grpo.max_steps == 5
    runs.unlock(run.dir)


def E02v(case):
    with pytest.raises(AimoError) as e:
        runs.begin("data", "tiny", "run", [5])
    assert "'5'" in str(e.value)


# inference


def answered(call, expected):
    """A sample that writes a call reads what it printed, or why it did not run, and goes on to its answer."""
    prompts = []

    def write(number, prompt):
        prompts.append(prompt)
        return "So \\boxed{42}\x03" if "```output" in prompt else call + "\x03"

    solution = solve_problem(Scripted(write, tools=1.0), "6 x 7", 1, Integer(0, 999))
    assert solution.answer == 42 and solution.samples[0].turns == 1
    assert expected in prompts[1].split("```output")[1]


def F01(case):
    answered(case["input"].replace("⏎", "\n"), "42")


def F02v(case):
    answered(case["input"].replace("\\n", "\n"), "alpha")


def F03(case):
    for info in ("```python3\n", "```Python\n", "```python \n", "```python\r\n"):
        answered(f"{info}print(6 * 7)\n```", "42")


def F05v(case):
    answered(f"```python\n{case['input']}\n```", case["expected"])


def F08(case):
    solution = solve_problem(Scripted(lambda *_: case["input"] + "\x03"), "Q", 4, Integer(0, 999))
    assert solution.votes == {int(case["expected"]): 4}


def G01(case):
    def text(count):
        return ", ".join(f"gcd(594,{n})={gcd(594, n)}" for n in range(102, 102 + count))

    sampler = Scripted(lambda *_: text(3500), max_tokens=60_000)
    [runaway] = solve_problem(sampler, "Q", 1, Integer(0, 999)).samples
    assert runaway.end is End.REPETITION and runaway.tokens < 20_000
    honest = solve_problem(Scripted(lambda *_: text(40) + " so \\boxed{6}\x03"), "Q", 1, Integer(0, 999))
    assert honest.answer == 6 and honest.samples[0].end is not End.REPETITION


def G02(case):
    body = case["input"].split(" in place")[0]
    with standing(lambda _, n: [body, WHOLE][n]) as stand, Server([stand.url], TINY) as client:
        assert sample(client).text == "42" and len(stand.bodies) == 2
