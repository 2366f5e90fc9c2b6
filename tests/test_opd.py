"""On-policy distillation: the loss is the divergence it says, a student comes nearer to its teacher, and a
teacher that cannot grade it is refused."""

import json
import shutil
from statistics import fmean

import pytest
from conftest import TINY
from model_server import standing

from aimo import config, pipeline
from aimo.inference import startup
from aimo.inference.errors import AimoError
from aimo.run import runs
from aimo.train import compat, models, opd, trainers


@pytest.mark.parametrize("beta", [0.0, 0.5, 1.0])
def test_the_divergence_is_the_one_of_its_formula_and_moves_the_student_only(beta):
    import torch
    from torch.nn.functional import kl_div

    torch.manual_seed(0)
    student, teacher = torch.randn(2, 3, 8, requires_grad=True), torch.randn(2, 3, 5, requires_grad=True)
    heads = torch.randn(11, 8), torch.randn(11, 5)
    mask = torch.tensor([[1, 1, 0], [1, 0, 0]])
    loss, entropy, count = compat.plain_divergence(student, teacher, *heads, mask, beta, temperature=0.7)
    p, q = (h[mask.bool()] @ head.T / 0.7 for h, head in zip((student, teacher), heads, strict=True))
    p, q = p.log_softmax(-1), q.log_softmax(-1)
    if beta == 0.5:
        mixed = ((p.exp() + q.exp()) / 2).log()
        wanted = sum(kl_div(mixed, x, log_target=True, reduction="sum") for x in (p, q)) / 2
    else:
        wanted = kl_div(*((q, p) if beta else (p, q)), log_target=True, reduction="sum")
    assert count == 3 and loss.item() == pytest.approx(wanted.item() / 3, rel=1e-5)
    assert entropy.item() == pytest.approx(-(p.exp() * p).sum().item(), rel=1e-5)
    loss.backward()
    assert student.grad.abs().sum() > 0 and teacher.grad is None
    assert not student.grad[~mask.bool()].any(), "a masked token counts"


@pytest.fixture
def tokenizer():
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(TINY)


def swap(tokenizer):
    vocabulary = tokenizer["model"]["vocab"]
    a, b = (token for token, i in vocabulary.items() if i in (40, 41))
    vocabulary[a], vocabulary[b] = vocabulary[b], vocabulary[a]


@pytest.mark.parametrize(
    "name, change, told",
    [
        ("tokenizer.json", swap, "has another vocabulary: token 4"),
        ("config.json", lambda c: c.update(vocab_size=c["vocab_size"] + 64), "and the student"),
        ("config.json", lambda c: None, "ends a turn with"),
    ],
)
def test_a_teacher_with_other_tokens_or_another_end_of_turn_is_refused(
    tmp_path, tokenizer, name, change, told
):
    from transformers import AutoConfig

    student = AutoConfig.from_pretrained(TINY)
    assert opd.check_teacher(str(TINY), tokenizer, student) == TINY
    folder = shutil.copytree(TINY, tmp_path / "teacher")
    values = json.loads((folder / name).read_text())
    change(values)
    (folder / name).write_text(json.dumps(values))
    if told == "ends a turn with":
        tokenizer.eos_token = tokenizer.convert_ids_to_tokens(40)  # as prompt.eos_token sets it
    with pytest.raises(AimoError, match=rf"^opd.teacher: .*{told}"):
        opd.check_teacher(str(folder), tokenizer, student)


def test_a_wrong_teacher_is_refused_before_the_stages_that_come_first(tmp_path):
    section, folder = (
        f"opd={{teacher: {TINY.with_name('tiny-tools')}, learning_rate: 1.0e-3}}",
        tmp_path / "run",
    )
    own, missing = (section.replace(str(TINY.with_name("tiny-tools")), str(name)) for name in (
        folder / "sft/model", tmp_path / "none/model"
    ))  # fmt: skip
    for wrong, told in ((section, "has another vocabulary: token "), (missing, "none/model' is no folder")):
        with pytest.raises(AimoError, match=rf"opd.teacher: .*{told}"):
            pipeline.check_run(config.load("tiny", [wrong]), folder, None, None)
    pipeline.check_run(config.load("tiny", [section]), folder, None, "grpo")  # until GRPO
    pipeline.check_run(config.load("tiny", [own]), folder, None, None)  # made by a stage before


def test_a_teacher_that_does_not_fit_beside_the_student_is_refused_before_it_is_read(tmp_path, monkeypatch):
    section = f"opd={{teacher: {TINY}, learning_rate: 1.0e-3}}"
    run = runs.Run(config.load("tiny", [section, "model.dtype=bfloat16"]), tmp_path, "opd", 0.0)
    size = (TINY / "model.safetensors").stat().st_size / 2  # read in 16 bits
    monkeypatch.setattr(startup, "available_memory", lambda: int(1.02 * size))
    assert opd.load_teacher(TINY, run).dtype.itemsize == 2
    monkeypatch.setattr(startup, "available_memory", lambda: int(0.98 * size))
    with pytest.raises(
        AimoError, match=r"opd.teacher: tiny-base takes 0.0 GB beside the student, .*a smaller"
    ):
        opd.load_teacher(TINY, run)


def test_when_memory_runs_out_a_step_is_split_and_then_its_completions_are_shorter(tmp_path):
    for size, advice in ((8, "opd.batch_size=4"), (1, "opd.max_completion_length=256")):
        section = f"opd={{teacher: {TINY}, learning_rate: 1.0e-3, batch_size: {size}}}"
        told = trainers.out_of_memory(runs.Run(config.load("tiny", [section]), tmp_path, "opd", 0.0), 3)
        assert told.startswith("opd: out of memory at step 3; ") and f"--set {advice}" in told


def teacher_server(**change):
    """A server that answers as vLLM does with the tiny base, but for some changes."""
    from transformers import AutoTokenizer

    tokenizer, room = AutoTokenizer.from_pretrained(TINY), change.get("room", 1024)
    text = change.get("text", lambda i: tokenizer.decode([i]))

    def answer(body, _):
        if "prompt_logprobs" not in body:  # /tokenize
            return json.dumps(change.get("turn", {"tokens": [40, 41, tokenizer.eos_token_id]}))
        if "status" in change:
            return "Token id 41 is out of vocabulary", change["status"], {}
        rows = [None, *({str(i): {"logprob": -1.0, "decoded_token": text(i)}} for i in body["prompt"][1:])]
        return {"choices": [{"prompt_logprobs": change.get("rows", rows)}]}

    return standing(answer, "m" if room else None, room)


@pytest.mark.parametrize(
    "change, told",
    [
        ({}, None),
        ({"rows": None}, "returns no log-probabilities of a prompt's tokens; serve the teacher with"),
        ({"text": lambda i: f"{i}"}, "another vocabulary: token 0 is "),
        ({"status": 400}, "does not answer as vLLM does: .*out of vocabulary; serve the teacher with"),
        ({"turn": {"tokens": [40, 41]}}, "ends a turn with .*; set prompt.eos_token"),
        ({"turn": [40]}, "ends a turn with"),
        ({"room": None}, "does not answer like `vllm serve`: its list of models has none"),
        ({"room": 1023}, "a context of 1,023 tokens, and prompt and completion take up to 1,024"),
    ],
)
def test_a_server_that_cannot_grade_is_refused(tokenizer, change, told):
    with teacher_server(**change) as server:
        asked = config.Opd(
            teacher=server.url, learning_rate=1e-3, max_prompt_length=512, max_completion_length=511
        )
        if not told:
            return opd.check_teacher_server(asked, tokenizer)
        with pytest.raises(AimoError, match=rf"^opd.teacher: (server |{server.url}).*{told}"):
            opd.check_teacher_server(asked, tokenizer)


def test_no_server_and_a_temperature_that_a_server_does_not_know_are_refused(tokenizer):
    asked = config.Opd(teacher="http://127.0.0.1:9", learning_rate=1e-3)
    with pytest.raises(AimoError, match=r"127.0.0.1:9.* does not answer"):
        opd.check_teacher_server(asked, tokenizer)
    with pytest.raises(AimoError, match=r"opd.temperature: a server's log-probabilities"):
        config.load("tiny", ["opd={teacher: http://a, learning_rate: 1.0e-3, temperature: 0.7}"])


def train_student(folder, teacher, **more):
    """Train a disturbed tiny base for 12 steps, from the last checkpoint in the folder; return the losses,
    and how far it was from the tiny base before and after."""
    import torch
    from transformers import AutoModelForCausalLM

    from aimo.evaluation.served import encode_talks

    section = {"teacher": str(teacher), "learning_rate": 1e-3, "batch_size": 8, "max_steps": 12} | more
    section |= {"save_steps": 6, "max_prompt_length": 128, "max_completion_length": 24}
    profile = config.load("tiny", [f"opd={json.dumps(section)}", "model.backend=transformers"])
    rows = [{"prompt": [{"role": "user", "content": f"What is {i} + {i}?"}]} for i in range(64)]
    folder.mkdir(exist_ok=True)
    model, tokenizer = models.load_model(TINY, profile), models.load_tokenizer(TINY, profile)
    torch.manual_seed(0)
    for name, weight in model.named_parameters():  # a student that is not the teacher
        if not weight.requires_grad and "proj" in name:
            weight.data += 0.4 * weight.std() * torch.randn_like(weight)
    base = AutoModelForCausalLM.from_pretrained(TINY, dtype=torch.float32)

    def divergence():
        """KL(student || tiny base) at a token of what the student writes, over the whole vocabulary."""
        torch.manual_seed(0)
        texts, found = models.complete(model, tokenizer, rows, 24, do_sample=True), []
        talks = [row | {"reply": text} for row, text in zip(rows, texts, strict=True)]
        for prompt, reply in encode_talks(tokenizer, talks):
            with torch.no_grad():
                logits = (each(torch.tensor([prompt + reply])).logits[0] for each in (model, base))
                p, q = (values[len(prompt) - 1 : -1].log_softmax(-1) for values in logits)
            found += (p.exp() * (p - q)).sum(-1).tolist()
        return fmean(found)

    before = divergence()
    log = opd.train_opd(model, tokenizer, rows, runs.Run(profile, folder, "opd", 0.0))
    return [record["loss"] for record in log if "loss" in record], before, divergence()


@pytest.mark.train
def test_a_student_comes_nearer_to_its_teacher_and_resumes_with_equal_losses(tmp_path):
    losses, before, after = train_student(tmp_path / "whole", TINY)
    assert len(losses) == 12 and losses[-1] < 0.8 * losses[0] and after < 0.7 * before
    shutil.copytree(tmp_path / "whole", tmp_path / "killed")
    for left in "checkpoint-12", "trained":
        shutil.rmtree(tmp_path / "killed" / "opd" / left)
    assert train_student(tmp_path / "killed", TINY)[0][-6:] == pytest.approx(losses[-6:], rel=1e-4)


@pytest.mark.train
@pytest.mark.parametrize("change", [{"rows": None}, {"rows": [None, {}]}, {"status": 500}])
def test_a_teachers_server_that_ends_in_training_is_told_in_one_line(tmp_path, monkeypatch, change):
    monkeypatch.setattr(opd, "check_teacher_server", lambda *_: None)
    told = r"opd.teacher: http.* did not grade step 1: .*run the same command"
    with teacher_server(**change) as server, pytest.raises(AimoError, match=told):
        train_student(tmp_path / "run", server.url, divergence="reverse_kl")
