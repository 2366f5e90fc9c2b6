"""Four bugs of other GRPO stacks in 2026, each with what ours does; and degenerate completions.

TRL's trainer on the tiny base makes tensors and losses of completions that the tests write themselves.
"""

import threading
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import pytest
from conftest import TINY

from aimo import config
from aimo.inference import voting
from aimo.inference.storage import read_json
from aimo.run import runs
from aimo.train import compat, grpo, models

G = 4  # completions of a group
LOOP = "So we try again, and it is 12, which is not what we want; hence we go back. " * 200
KEYS = f"""
model.backend=transformers grpo.prompts_per_step=2 grpo.num_generations={G} grpo.max_completion_length=40
grpo.max_resample=null grpo.probe_steps=null grpo.rewards={{"accuracy":1.0}}
"""


@pytest.fixture(scope="module")
def loaded():
    profile = config.load("tiny", KEYS.split())
    return models.load_model(TINY, profile), models.load_tokenizer(TINY, profile)


@pytest.fixture
def step(loaded, tmp_path, monkeypatch):
    """Makes one step's batch, and its loss with the gradient of every token's log-probability."""
    import torch
    from trl import GRPOTrainer
    from trl.trainer.utils import shuffle_sequence_dict

    model, tokenizer = loaded
    monkeypatch.setattr(grpo, "fit", lambda trainer, *_: trainer)
    rows = [{"prompt": [{"role": "user", "content": f"What is {i} + 1?"}], "answer": "1"} for i in (2, 30)]

    def step(completions, scores, *overrides, with_vllm=False):
        """`completions`: (text of the reply, its token ids, the mask of tools or None) of two groups."""
        profile = config.load("tiny", [*KEYS.split(), *overrides])
        trainer = grpo.train_grpo(model, tokenizer, rows, runs.Run(profile, tmp_path, "grpo", 0.0))
        texts, ids, masks = (list(column) for column in zip(*completions, strict=True))

        def generate(self, prompts):
            replies = [[{"role": "assistant", "content": text}] for text in texts]
            asked = [tokenizer.apply_chat_template(p, return_dict=False) for p in prompts]
            logps = [[-2.0] * len(row) for row in ids] if with_vllm else None
            return asked, ids, None if masks[0] is None else masks, replies, logps, {}, None, []

        def score(self, *_):
            return torch.tensor(scores, dtype=torch.float32).view(len(scores), -1)

        seen, computed = [], []
        log_probs = trainer.log_probs

        def kept(compute, packed, *given):
            def counted(*rows, **more):
                computed.append(len(rows[0]))
                return compute(*rows, **more)

            values = log_probs(counted, packed, *given)
            if values[0].requires_grad:
                values[0].retain_grad()
            seen.append(values[0])
            return values

        monkeypatch.setattr(GRPOTrainer, "_generate", generate)
        monkeypatch.setattr(GRPOTrainer, "_calculate_rewards", score)
        trainer.log_probs, trainer.current_gradient_accumulation_steps = kept, 1
        model.train()
        trainer.use_vllm = with_vllm
        batch = trainer._generate_and_score_completions([row for row in rows for _ in range(G)])
        if with_vllm:
            torch.manual_seed(1)
            batch = shuffle_sequence_dict(batch)
        loss = trainer.compute_loss(model, batch)
        loss.backward()
        weights = sum(float(w.grad.norm()) for w in model.parameters() if w.grad is not None)
        model.zero_grad()
        found = {"batch": batch, "loss": loss.item(), "grad": seen[-1].grad, "trainer": trainer}
        return SimpleNamespace(weights=weights, computed=sum(computed), **found)

    return step


WIDE = 'grpo.trl={"epsilon_high": 5.0}'  # CISPO's bound of the ratio itself, which is 1 here


def replies(*lengths, text="It is 3."):
    """Completions of these lengths, of ordinary tokens, that ended."""
    return [(text, [*range(40, 39 + n), 0], None) for n in lengths]


SCORES = [1.0, 0.1, 0.0, 0.0, 0.0, 1.0, 1.0, 0.3]


@pytest.mark.parametrize("loss, cut_off", [("dapo", False), ("cispo", False), ("dapo", True)])
def test_a_masked_completions_tokens_count_neither_above_nor_below(step, loss, cut_off):
    mask = "grpo.mask_truncated_completions=true" if cut_off else "grpo.degenerate=mask"

    def masked(length):
        completions = replies(5, 7, 9, 4, 6, 8, 5, 3)
        text, end = ("It is", 42) if cut_off else (LOOP, 0)
        completions[2] = (text, [*range(40, 39 + length), end], None)
        return step(completions, SCORES, f"grpo.loss_type={loss}", mask, WIDE)

    short, long = masked(4), masked(30)
    counted = 5 + 7 + 4 + 6 + 8 + 5 + 3
    assert short.batch["num_items_in_batch"] == long.batch["num_items_in_batch"] == counted
    assert short.loss == pytest.approx(long.loss, rel=1e-5)
    assert not long.grad[2].any() and long.grad[0].any()
    for row, length in ((0, 5), (5, 8)):
        advantage = float(long.batch["advantages"][row])
        assert long.grad[row, :length].tolist() == pytest.approx([-advantage / counted] * length, rel=1e-4)
        assert not long.grad[row, length:].any()


@pytest.mark.parametrize("noise", [0.0, 1e-7, 1e-6])
def test_rewards_that_differ_by_rounding_are_no_signal_and_others_are(step, noise):
    even = [0.2 + noise * i for i in range(G)]
    found = step(replies(*[5] * 8), [*even, 0.2, 0.21, 0.2, 0.2])
    advantages = found.batch["advantages"]
    assert not advantages[:G].any() and not found.grad[:G].any()
    assert advantages[G + 1] > 1 and found.grad[G:].any()
    assert found.trainer._metrics["train"]["frac_reward_zero_std"] == [0.5]


@pytest.mark.parametrize("found", ["mask", "penalty", "null"])
def test_degenerate_completions_are_counted_masked_or_penalised(step, found):
    completions = replies(5, 7, 9, 4, 6, 8, 5, 3)
    for i in (2, 6):
        completions[i] = (LOOP, [40] * 9, None)
    scores = SCORES if found != "penalty" else [[s, -float(i in (2, 6))] for i, s in enumerate(SCORES)]
    made = step(completions, scores, f"grpo.degenerate={found}")
    assert made.trainer._metrics["train"]["degenerate"] == [2]
    counts = [bool(row.any()) for row in made.grad]
    assert counts == [not (found == "mask" and i in (2, 6)) for i in range(8)]
    functions = made.trainer.reward_funcs
    assert made.trainer.reward_weights.tolist() == ([1.0, 1.0] if found == "penalty" else [1.0])
    if found == "penalty":
        assert functions[-1](completions=[LOOP, [{"role": "assistant", "content": "It is 3."}]]) == [-1.0, 0]
        assert made.batch["advantages"][2] < made.batch["advantages"][3] < 0


@pytest.mark.parametrize(
    "loss, with_vllm, shared, at_once, computed",
    [
        ("dapo", False, 1.0, 10_000, 4),
        ("grpo", False, 1.0, 40, 4),
        ("dapo", True, 1.0, 100, 4),
        ("dapo", True, 0.5, 100, 14),  # short prompts are not worth it
    ],
)
def test_a_prompt_computed_once_for_its_group_and_for_vllm_gives_the_same_loss_and_gradient(
    step, monkeypatch, loss, with_vllm, shared, at_once, computed
):
    """A group's line is compared with its rows once. Of 8 rows, 6 are computed again for their gradient."""

    def made():
        completions = replies(5, 17, 9, 4, 36, 8, 5, 3)
        return step(completions, SCORES, f"grpo.loss_type={loss}", with_vllm=with_vllm)

    plain = made()
    assert read_json(plain.trainer.run.dir / "progress.json", "")["note"] == "training"
    monkeypatch.setattr(compat, "LOGITS", 1)
    monkeypatch.setattr(grpo, "TOKENS", at_once)
    monkeypatch.setattr(grpo, "SHARED", shared)
    once = made()
    assert plain.trainer.packs is None and once.trainer.packs is (True if shared == 1 else None)
    assert (plain.computed, once.computed, once.trainer.kept) == (8 * (1 + with_vllm), computed, None)
    assert once.loss == pytest.approx(plain.loss, rel=1e-5)
    assert (once.grad - plain.grad).abs().max() < 1e-4 * plain.grad.abs().max()
    assert once.weights == pytest.approx(plain.weights, rel=1e-3) and plain.weights > 0


def test_what_is_degenerate_is_what_the_solver_ends():
    counting = "".join(f"We check n = {i}: it is not a solution, so we go on. " for i in range(800))
    assert voting.is_repeating(LOOP) and voting.is_counting(counting)
    for text in (LOOP, counting, LOOP + "The answer is 3. " + "Words that differ " * 3):
        assert grpo.is_degenerate(text)
    assert not grpo.is_degenerate(" ".join(f"{i * i * 7919 % 10007:x}" for i in range(4000)))
    assert not grpo.is_degenerate("")


def test_a_tools_output_is_masked_where_it_stands_though_its_text_tokenises_otherwise(loaded, step):
    """Masks and ids are TRL's own lists of the sampled tokens; nothing is tokenised again."""
    _, tokenizer = loaded
    written = tokenizer("tog", add_special_tokens=False)["input_ids"]
    output = tokenizer("ether", add_special_tokens=False)["input_ids"]
    again = tokenizer("together", add_special_tokens=False)["input_ids"]
    assert written + output != again, "these texts do not merge"
    ids, mask = [*written, *output, 41, 0], [1] * len(written) + [0] * len(output) + [1, 1]
    completions = [("together", ids, mask), *(("It is 3.", [40, 41, 0], [1, 1, 1]) for _ in range(7))]
    for degenerate in ("null", "mask"):
        found = step(completions, SCORES, f"grpo.degenerate={degenerate}")
        assert found.batch["completion_ids"][0, : len(ids)].tolist() == ids
        assert found.grad[0, : len(ids)].bool().int().tolist() == mask
        assert found.batch["num_items_in_batch"] == sum(mask) + 7 * 3


@pytest.mark.parametrize("processes, steps", [(1, 1), (1, 8), (2, 1), (2, 4), (4, 2)])
@pytest.mark.parametrize(
    "wanted, every, least",
    [(8, 3, 7), (8, 41, 1), (6, 3, 5)],  # with 8 parts, a single group does not do; 4 processes share 6
)
def test_a_group_with_one_right_completion_is_never_split(processes, steps, wanted, every, least):
    """Processes that sample together, each its share of the rows, take the same whole groups."""
    import torch

    one, none = [1.0, 0.0, 0.0, 0.0], [0.0] * G
    problems = [{"prompt": str(i)} for i in range(40)]
    asked, together = {}, threading.Barrier(processes, timeout=20)

    class Process(grpo.GrpoTrainer):
        def __init__(self, index):
            self.index, self.max_resample, self.num_generations = index, 3, G
            self.train_dataset, self.mask_truncated_completions = problems, False
            self.eos_token_ids, self.reward_weights = [0], torch.tensor([1.0])
            self.processing_class = SimpleNamespace(pad_token_id=0)
            self.accelerator = SimpleNamespace(num_processes=processes, process_index=index)
            self.args = SimpleNamespace(seed=0, steps_per_generation=steps)
            self.state = SimpleNamespace(global_step=3)

        def sample(self, rows):
            asked[self.index] = rows
            together.wait()
            everything = [row for index in range(processes) for row in asked[index]]
            together.wait()
            made = []
            for i, row in enumerate(everything):
                reward = (none if int(row["prompt"]) % every else one)[i % G]
                made.append(((row, None, None, None, [i % G, 0], None, None), torch.tensor([reward])))
            return made

    rows = [problems[i] for i in range(wanted) for _ in range(G)]
    share = len(rows) // processes
    with ThreadPoolExecutor(processes) as pool:
        parts = [rows[share * index :][:share] for index in range(processes)]
        chosen = list(pool.map(lambda index: Process(index).choose(parts[index]), range(processes)))
    names = [[(row[0]["prompt"], row[4][0]) for row, _ in of_one] for of_one in chosen]
    assert all(of_one == names[0] for of_one in names), "the processes chose differently"
    assert len(names[0]) % (processes * steps) == 0, "the parts of a step differ in size"
    for i in range(0, len(names[0]), G):
        assert names[0][i : i + G] == [(names[0][i][0], k) for k in range(G)], "a group was split"
        assert [float(reward) for _, reward in chosen[0][i : i + G]] in (one, none)
    with_signal = sum(float(reward) for _, reward in chosen[0])
    assert with_signal >= least and len(names[0]) // G <= wanted
