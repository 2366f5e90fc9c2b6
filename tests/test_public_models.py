"""The profiles of public models: they parse, vLLM takes their arguments, and their prompts read well."""

import json
import shutil

import polars as pl
import pytest
from conftest import TINY, aimo

from aimo import config
from aimo.inference import prompts
from aimo.inference.competitions import COMPETITIONS
from aimo.inference.errors import AimoError
from aimo.inference.model_folder import read_tokenizer
from aimo.inference.settings import validate_settings
from aimo.inference.vllm_process import check_arguments, tokenizer_argument

EASY = "What area of a 7 by 12 wall is not covered by a 4 by 3 door?"
PUBLIC = {
    name: profile
    for name in sorted(path.stem for path in config.PROFILES.glob("*.yaml"))
    if not (profile := config.load(name)).trained and not profile.model.base.startswith("data/")
}


@pytest.mark.parametrize("name", PUBLIC)
def test_it_does_inference_alone_and_vllm_has_its_arguments(name):
    from vllm.engine.arg_utils import AsyncEngineArgs
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    assert PUBLIC[name].stages == ("inference",)
    arguments = PUBLIC[name].inference.vllm or {}
    check_arguments(arguments)
    options = [f"--{key.replace('_', '-')}={value}" for key, value in arguments.items()]
    parsed = vars(AsyncEngineArgs.add_cli_args(FlexibleArgumentParser()).parse_args(options))
    assert {key: parsed[key] for key in arguments} == arguments, "vLLM's own parser takes other values"


@pytest.mark.parametrize("name", [name for name, profile in PUBLIC.items() if not profile.competition])
def test_each_sample_reads_the_problem_the_competitions_rules_and_where_the_answer_goes(name):
    settings = validate_settings(PUBLIC[name].inference.written, name, "correct it")
    rules = COMPETITIONS["aimo3"].rules
    for one in (prompts.variant(settings, i) for i in range(settings.samples)):
        text = f"{one.system}\n{one.user}".replace("{rules}", rules).replace("{problem}", "What is 1 + 1?")
        assert "What is 1 + 1?" in text and rules in text and "\\boxed{}" in text
        assert "{" not in text.replace("\\boxed{}", "")


def test_a_tokenizer_is_its_files_whatever_class_they_name(tmp_path):
    """Transformers 5 builds a Llama's from the vocabulary: DeepSeek-R1-Distill-Llama's loses all spaces."""
    from transformers import AutoTokenizer

    folder, as_llama = shutil.copytree(TINY, tmp_path / "model"), {"tokenizer_class": "LlamaTokenizerFast"}
    for name, change in {"config.json": {"model_type": "llama"}, "tokenizer_config.json": as_llama}.items():
        (folder / name).write_text(json.dumps(json.loads((folder / name).read_text()) | change))
    ids = AutoTokenizer.from_pretrained(TINY).encode(EASY)
    assert AutoTokenizer.from_pretrained(folder).encode(EASY) != ids
    ours = read_tokenizer(folder)
    assert ours.encode(EASY) == ids
    given = tokenizer_argument(folder, ours)["tokenizer"]
    assert AutoTokenizer.from_pretrained(given).encode(EASY) == ids
    assert tokenizer_argument(TINY, read_tokenizer(TINY)) == {}


def test_a_tokenizer_that_a_converter_broke_is_refused_by_name(tmp_path):
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    def read(name, numbers=(), split=(), **more):
        """Read a byte-level tokenizer of 10,001 tokens, letters, digits and `numbers` among them."""
        alphabet = [*pre_tokenizers.ByteLevel.alphabet(), *numbers]
        tokens = [*alphabet, *(f"<{chr(0x4E00 + i)}>" for i in range(10_001 - len(alphabet)))]
        backend = Tokenizer(models.BPE({token: i for i, token in enumerate(tokens)}, []))
        parts = [*split, pre_tokenizers.ByteLevel(add_prefix_space=False)]
        backend.pre_tokenizer = pre_tokenizers.Sequence(parts)
        folder = tmp_path / name
        PreTrainedTokenizerFast(tokenizer_object=backend, **more).save_pretrained(folder)
        read_tokenizer(folder)

    turns = "{% for m in messages %}[A]{{ m.content }}[B]{% endfor %}[A]"
    digits = pre_tokenizers.Digits(individual_digits=True)
    for wrong, told in (
        ({}, r"does not split numbers .* the model's own tokenizer files$"),
        ({"split": [pre_tokenizers.Digits(individual_digits=False)]}, "does not split numbers"),
        ({"split": [digits], "eos_token": "[A]", "chat_template": turns}, "begins a turn"),
    ):
        with pytest.raises(AimoError, match=told):
            read("broken", **wrong)
    right = {"numbers": ["12"]}, {"split": [digits], "eos_token": "[B]", "chat_template": turns}
    for i, kind in enumerate(right):
        read(str(i), **kind)
    (tmp_path / "trained-here").mkdir()
    (tmp_path / "trained-here/aimo.json").write_text("{}")
    read("trained-here")


@pytest.mark.engine
def test_notebook_04_asks_a_public_model_as_its_profile_says_and_reads_right_answers(public_model, tmp_path):
    profile, rules = tmp_path / "public.yaml", tmp_path / "mine.yaml"
    inference = {"samples": 16, "max_tokens": 96, "user": "Q: {problem}", "test_rows": 12}
    profile.write_text(json.dumps({"model": {"base": str(public_model)}, "inference": inference}))
    rules.write_text(
        "slug: mine\ninputs: {id: row_id, problem: question}\nanswer: {kind: integer, high: 99999}\n"
        "rules: One integer.\nartefact: {kind: csv, id: row_id, answer: prediction}\n"
    )
    run = tmp_path / "run"
    done = aimo("run", "--profile", str(profile), "--run-dir", str(run), "--competition", str(rules))
    assert done.returncode == 0, done.stderr
    record = json.loads((run / "metrics.json").read_text())["stages"]
    assert list(record) == ["inference"] and record["inference"]["correct"] >= 8
    table = pl.read_csv(run / "submission.csv")
    assert table.columns == ["row_id", "prediction"] and len(table) == 12
    assert "12 questions" in (run / "report.html").read_text()
    used = json.loads((run / "submission.settings.json").read_text())
    assert (used["temperature"], used["top_p"], used["top_k"]) == (0.6, 0.95, 20), "the folder's own"
    assert (used["user"], used["tags"]["think_end"]) == ("Q: {problem}", "</think>")
