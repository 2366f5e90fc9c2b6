"""GRPO whose completions run Python, on the tiny tool model: what is offered, read, trained on, refused."""

import runpy
import sys
from itertools import islice
from types import SimpleNamespace

import pytest
from conftest import ROOT

from aimo import config
from aimo.inference import sandbox
from aimo.inference.errors import AimoError
from aimo.inference.storage import read_lines
from aimo.inference.tool_calls import PYTHON
from aimo.run import runs
from aimo.train import grpo, models

TOOLS = ROOT / "data" / "tiny-tools"
CALL = '<tool_call>\n{"name": "python", "arguments": {"code": "x = 6 * 7\\nx"}}\n</tool_call>'
TAGS = ["think_start=<think>", "think_end=</think>", "answer_start='\\boxed{'", "answer_end='}'"]
KEYS = """
model.backend=transformers model.max_length=512 model.lora=null data.grpo.source=builtin data.grpo.rows=64
prompt.template=model prompt.prefill=false inference.tool_parser=hermes grpo.tools=true
grpo.learning_rate=0.001 grpo.max_steps=2 grpo.prompts_per_step=2 grpo.num_generations=8 grpo.max_resample=2
grpo.max_prompt_length=128 grpo.max_completion_length=120 grpo.sample_steps=1
"""


def profile(*overrides):
    """The tiny tool model, trained with tools."""
    tags = [f"prompt.{tag}" for tag in TAGS]
    return config.load("tiny-tools", [*KEYS.split(), *tags, *overrides])


@pytest.mark.parametrize(
    "overrides, told",
    [
        (["data.grpo.test_split=0.1", "grpo.probe_steps=10"], "grpo.probe_steps: .* set it to null"),
        (["grpo.pass_rate=[0.1, 0.9]"], "grpo.pass_rate: samples without tools; set it to null"),
        (["prompt.template=plain"], "the template plain offers no tools; set"),
        (["inference.tool_parser=null"], "grpo.tools: inference.tool_parser is null, and fenced"),
    ],
)
def test_what_cannot_sample_with_tools_is_refused(overrides, told):
    with pytest.raises(AimoError, match=told):
        profile(*overrides)


@pytest.mark.slow  # loads torch and vLLM's parsers
class TestBeforeTraining:
    @pytest.fixture(scope="class")
    def tokenizer(self):
        from transformers import AutoTokenizer

        return AutoTokenizer.from_pretrained(TOOLS)

    @pytest.fixture
    def given(self, tokenizer):
        """What GRPO's trainer takes for a profile, and its configuration."""

        def given(*overrides):
            eos, args = SimpleNamespace(eos_token_id=0), SimpleNamespace()
            model = SimpleNamespace(config=SimpleNamespace(name_or_path=str(TOOLS)), generation_config=eos)
            return grpo.trainer_arguments(profile(*overrides), model, tokenizer, args), args

        return given

    def test_a_parser_that_does_not_fit_and_a_machine_that_confines_nothing_are_refused(
        self, given, monkeypatch
    ):
        with pytest.raises(AimoError, match="does not fit the model"):
            given("inference.tool_parser=mistral")
        monkeypatch.setattr(sys, "executable", "/there/is/no/python")
        sandbox._server.close()
        for cached in sandbox.check_limits, sandbox.has_sandbox:
            cached.cache_clear()
        with pytest.raises(AimoError, match=r"grpo\.tools: programs cannot be confined"):
            given()
        sandbox.has_sandbox.cache_clear()

    def test_the_model_is_offered_what_the_solver_offers_and_its_calls_are_limited_alike(self, given):
        from transformers.utils import get_json_schema

        more, args = given("inference.tool_turns=3")
        assert args.max_tool_calling_iterations == 3
        assert get_json_schema(more["environment_factory"]().python) == PYTHON
        assert not given("grpo.tools=false")[0]

    def test_a_session_keeps_variables_within_a_completion_and_its_output_ends_no_turn(
        self, given, tokenizer
    ):
        session = given()[0]["environment_factory"]()
        session.reset(prompt="1 + 1?")
        assert session.python("x = 6 * 7\nx") == "42" and session.python("x + 1") == "43"
        assert tokenizer.eos_token not in session.python(f"print({tokenizer.eos_token!r})")
        session.reset(prompt="1 + 1?")
        assert "NameError" in session.python("x")

    def test_a_turn_is_read_as_the_solver_reads_it(self, given, tokenizer):
        from trl.chat_template_utils import parse_response

        more, _ = given()

        def read(text):
            return parse_response(more["processing_class"], tokenizer.encode(text), prefix=[])

        call = {"type": "function", "function": {"name": "python", "arguments": {"code": "x = 6 * 7\nx"}}}
        called = {"role": "assistant", "content": "So", "tool_calls": [call]}
        assert read(f"So{CALL}<|im_end|>") == read(f"So{CALL}{CALL}<|im_end|>") == called
        assert "tool_calls" not in read(CALL)  # it was cut off
        assert read("It is 42.<|im_end|>") == {"role": "assistant", "content": "It is 42."}


@pytest.mark.train
def test_programs_run_and_what_they_print_has_no_part_in_the_gradient(tmp_path, monkeypatch):
    """Of every token, in two steps: the gradient of its log-probability."""
    stream = runpy.run_path(str(TOOLS / "problems.py"))["stream_programmed"]
    drawn = islice(stream("train", 1), 16)
    rows = [{"prompt": [{"role": "user", "content": p.problem}], "answer": p.outputs()[-1]} for p in drawn]
    batches = []
    log_probs, compute_loss = grpo.GrpoTrainer.log_probs, grpo.GrpoTrainer.compute_loss

    def kept(self, *args):
        values = log_probs(self, *args)
        if values[0].requires_grad:
            values[0].retain_grad()
            batches[-1]["logps"] = values[0]
        return values

    def watched(self, model, inputs, *args, **kwargs):
        batches.append(dict(inputs))
        return compute_loss(self, model, inputs, *args, **kwargs)

    monkeypatch.setattr(grpo.GrpoTrainer, "log_probs", kept)
    monkeypatch.setattr(grpo.GrpoTrainer, "compute_loss", watched)

    wanted, run = profile(), runs.Run(profile(), tmp_path, "grpo", 0.0)
    model, tokenizer = models.load_model(TOOLS, wanted), models.load_tokenizer(TOOLS, wanted)
    log = grpo.train_grpo(model, tokenizer, rows, run)
    samples = read_lines(run.folder / "samples.jsonl")
    assert log[0]["tools/call_frequency"] > 0.5 and log[0]["tools/failure_frequency"] == 0
    assert any("```python\n" in s["completion"] and "```output\n" in s["completion"] for s in samples)
    outputs = ""
    for batch in batches:
        written = batch["completion_mask"].bool() & batch["tool_mask"].bool()
        assert not batch["logps"].grad[~written].any()
        signal = written & (batch["advantages"] != 0).unsqueeze(1)
        assert batch["logps"].grad[signal].all() and signal.any()
        assert "<tool_response>" not in tokenizer.decode(batch["completion_ids"][written])
        outputs += tokenizer.decode(batch["completion_ids"][batch["completion_mask"].bool() & ~written])
    assert "<tool_response>\n" in outputs
