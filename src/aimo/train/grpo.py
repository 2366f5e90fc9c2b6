"""Group relative policy optimisation (GRPO, DeepSeekMath 2024), from problems to a trained model.

A row is a problem with its answer:

    prompt  [{"role": "user", "content": "What is 2 + 2?"}]
    answer  "4"

One step of TRL's trainer, with our changes:

1. Take P = `prompts_per_step` prompts, and sample G = `num_generations` completions for each from the
   policy, with Transformers, vLLM in this process, or a vLLM server: P groups of G.
2. Score every completion with each reward function; the reward (P * G,) is the weighted sum.
3. With `max_resample`, drop groups in which every completion earns the same reward, and try further prompts
   instead (dynamic sampling: `choose`).
4. The advantage of a completion is its reward minus its group's mean, divided by the standard deviation.
5. The loss is the policy gradient over the tokens that the policy sampled, with clipped ratios (`loss_type`).
   If `beta` is set, KL to the model that training starts from is added.
"""

import copy
import functools
import math
import os
import random
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from torch.nn.functional import pad
from torch.utils.checkpoint import checkpoint
from transformers import TrainerCallback
from trl.trainer.utils import nanstd

from aimo import rewards
from aimo.config import Profile
from aimo.data.prepare import Rows
from aimo.inference import voting
from aimo.inference.errors import AimoError
from aimo.inference.prompts import Completion, escape_special_tokens
from aimo.inference.sandbox import Programs, has_sandbox
from aimo.inference.storage import append_lines
from aimo.inference.tool_calls import PYTHON, find_tool_call, find_tool_parser
from aimo.run.runs import Run
from aimo.train import arguments, compat
from aimo.train.trainers import Log, Shared, fit, make_trainer

SAMPLES_KEPT = 4  # completions of a recorded step in samples.jsonl
DIFFERENCE = "sampling/sampling_logp_difference/mean"
BOUND = "sampling/sampling_logp_difference/bound"
CHECK = 1000  # characters between two checks for degenerate output, as in the solver
EQUAL = 1e-5  # rewards that differ by less count as equal: rounding
TOKENS = 512  # whose activations a CPU holds at once, with a large vocabulary: 0.4 GB for SmolLM2-135M
SHARED = 0.5  # of a step's tokens: if sharing prompts leaves more than this, its longer lines cost more
SAME = 0.1  # nats: ignoring the mask shifts log-probabilities by more, rounding by less
LEAST_BOUND = 0.02  # nats that count as rounding; bfloat16 differs from float32 by 0.001 to 0.004 (tiny)


def train_grpo(model: Any, tokenizer: Any, rows: Rows, run: Run, probe: Rows | None = None) -> Log:
    """Reinforce the completions of each problem that earn more than their group's mean; return the records of
    `trainers.fit`. `probe` rows (`prompt`, `answer`) are answered every `grpo.probe_steps`."""
    profile, grpo, args = run.profile, run.profile.grpo, arguments.stage_arguments(run)
    assert grpo
    functions: list[Any] = rewards.get_reward_funcs(grpo.rewards, profile.prompt, profile.answer_kind)
    functions = functions + [degenerate_reward] * (grpo.degenerate == "penalty")
    given = {"model": model, "args": args, "processing_class": tokenizer, "reward_funcs": functions}
    given |= {"train_dataset": Dataset.from_list(rows)} | trainer_arguments(profile, model, tokenizer, args)
    trainer = make_trainer(GrpoTrainer, run, **given)
    trainer.max_resample, trainer.degenerate = grpo.max_resample, grpo.degenerate
    trainer.add_callback(Samples(trainer, run.folder / "samples.jsonl", grpo.sample_steps))
    return fit(trainer, run, probe)


def is_degenerate(text: str) -> bool:
    """Return whether the solver would end a completion because it repeats itself or keeps counting."""
    places = [*range(CHECK, len(text), CHECK), len(text)]
    parts = (text[max(0, place - voting.WINDOW) : place] for place in places)
    return any(voting.is_repeating(part) or voting.is_counting(part) for part in parts)


def degenerate_reward(completions: list[Any], **_: Any) -> list[float]:
    """Return the penalties (n,) of `grpo.degenerate`: -1 if the solver would end a completion, or else 0."""
    return [-float(is_degenerate(rewards.text_of(completion))) for completion in completions]


class GrpoTrainer(Shared, compat.GrpoHook):
    """TRL's GRPO with dynamic sampling (DAPO, Yu et al. 2025) if `max_resample` is set, and with less padding
    on a CPU."""

    max_resample: int | None = None  # try up to this many times a step's prompts to fill it with signal
    degenerate: str | None = None  # `mask` leaves degenerate completions out of the loss
    found_degenerate = 0  # in this process, in this step
    kept: Any = None  # rows and their log-probabilities with gradient, computed before the loss
    packs: bool | None = None  # whether the model computes a prompt once for its group; None: not known yet

    def choose(self, inputs: list[dict[str, Any]]) -> list[compat.Sampled] | None:
        """Return the completions of the step's groups with signal, trying further prompts; None without
        `max_resample`. Others are added only to split evenly over processes and `steps_per_generation`.

        If `max_resample` times the prompts give too few groups, the step is smaller. The seed, the step and
        its first prompt determine the further prompts, so a resumed run tries the same ones. All processes
        see all completions, so they decide alike.
        """
        if self.max_resample is None:
            return None
        processes, size = self.accelerator.num_processes, self.num_generations
        wanted = len(inputs) * processes // size  # groups; `inputs` has a row for each completion

        def sample_groups(rows: list[dict[str, Any]]) -> list[list[compat.Sampled]]:
            samples = self.sample(rows)
            return [samples[first : first + size] for first in range(0, len(samples), size)]

        def round_up(count: float, parts: int) -> int:  # to groups whose completions split into equal parts
            unit = parts // math.gcd(parts, size)
            return math.ceil(count / unit) * unit

        groups = sample_groups(inputs)
        seed = f"{self.args.seed} {self.state.global_step} {groups[0][0][0][0]['prompt']}"
        limit = wanted * (self.max_resample - 1)
        others = random.Random(seed).choices(range(len(self.train_dataset)), k=limit)
        while others and (lacking := wanted - sum(map(self.has_signal, groups))) > 0:
            likely = lacking * len(groups) / max(1, wanted - lacking)  # if the same share has signal
            count = round_up(min(likely, wanted, len(others)), processes)
            rows = [self.train_dataset[i] for i in others[:count] for _ in range(size)]
            share = len(rows) // processes
            groups += sample_groups(rows[self.accelerator.process_index * share :][:share])
            del others[:count]
        groups.sort(key=self.has_signal, reverse=True)  # stable
        with_signal = max(1, sum(map(self.has_signal, groups)))
        count = round_up(min(with_signal, wanted), processes * self.args.steps_per_generation)
        return [completion for group in groups[:count] for completion in group]

    def has_signal(self, group: list[compat.Sampled]) -> bool:
        """Return whether any completion that counts in the loss has a reward off its group's mean."""
        total = self.total(torch.stack([rewards for _, rewards in group]))  # (G,)
        ends = {*self.eos_token_ids, self.processing_class.pad_token_id}
        counts = [
            (row[compat.MASK] is None or any(row[compat.MASK]))
            and (not self.mask_truncated_completions or row[compat.COMPLETION_IDS][-1] in ends)
            for row, _ in group
        ]
        return bool(((total - total.nanmean()).abs() > EQUAL)[counts].any())

    def signal(self, rewards: torch.Tensor) -> torch.Tensor:
        """Return for each completion (completions,) whether its group's rewards differ beyond rounding."""
        apiece = self.multi_objective_aggregation == "normalize_then_sum"  # compare each function's rewards
        values = rewards if apiece else self.total(rewards).unsqueeze(1)
        groups = values.view(-1, self.num_generations, values.shape[1])  # (groups, G, functions or 1)
        apart = ((groups - groups.nanmean(1, keepdim=True)).abs() > EQUAL).any(2).any(1)
        return apart.repeat_interleave(self.num_generations)

    def masks(self, replies: list[Any], completion_ids: list[list[int]], mask: Any) -> Any:
        """Return a mask of the tokens that count in the loss, both in TRL's sum and in its divisor; None if
        all do. Also count degenerate completions."""
        found = [is_degenerate(rewards.text_of(reply)) for reply in replies]
        self.found_degenerate += sum(found)
        if self.degenerate != "mask":
            return mask
        mask = mask or [[1] * len(ids) for ids in completion_ids]
        return [[0] * len(row) if bad else row for row, bad in zip(mask, found, strict=True)]

    def total(self, rewards: torch.Tensor) -> torch.Tensor:
        """Return the weighted sum (completions,) of rewards (completions, functions); NaN if all are NaN."""
        total = (rewards * self.reward_weights.to(rewards.device)).nansum(1)
        return total.masked_fill(rewards.isnan().all(1), torch.nan)

    def figures(self, rewards: torch.Tensor) -> dict[str, float]:
        """Return means and deviations of `rewards` (completions, functions), the share of groups with equal
        rewards, and the numbers of degenerate completions and of groups.

        TRL 1.15 misses groups with equal rewards if their mean is rounded, as for 0.2.
        """
        total = self.total(rewards)
        groups = total.view(-1, self.num_generations).nan_to_num()  # (groups, G)
        found = {"reward": total.nanmean(), "reward_std": nanstd(total)}
        for name, values in zip(self.reward_func_names, rewards.T, strict=True):
            found |= {f"rewards/{name}/mean": values.nanmean(), f"rewards/{name}/std": nanstd(values)}
        found["frac_reward_zero_std"] = (groups.amax(1) - groups.amin(1) < EQUAL).float().mean()
        counted = torch.tensor(self.found_degenerate, device=self.accelerator.device)
        found["degenerate"], self.found_degenerate = self.accelerator.gather(counted).sum(), 0
        return {name: value.item() for name, value in found.items()} | {"groups/tried": len(groups)}

    def last_samples(self, count: int) -> Rows:
        """Return the newest `count` completions for a person to read: the problem, all turns with programs
        and their output, the rewards and the advantage."""
        logs, found = compat.last_completions(self), []
        for i in range(-min(count, len(logs["completion"])), 0):
            text = ""
            for message in logs["completion"][i]:
                if message["role"] == "tool":
                    text += f"```output\n{message['content']}\n```\n"
                    continue
                text += message["content"]
                for call in message.get("tool_calls", []):
                    text += f"\n```python\n{call['function']['arguments']['code']}\n```\n"
            sample = {"problem": rewards.text_of(logs["prompt"][i]), "completion": text}
            sample |= {name: values[i] for name, values in logs["rewards"].items()}
            found.append(sample | {"advantage": logs["advantages"][i]})
        return found

    def log_probs(
        self, compute: Any, packed: Any, input_ids: Any, attention_mask: Any, logits_to_keep: int
    ) -> Any:
        """Return TRL's log-probabilities and entropies (rows, logits_to_keep) and its auxiliary loss.

        On a CPU, compute up to four parts, each padded only to its own longest row. For a large vocabulary,
        compute parts of at most TOKENS and keep only the last one's activations, or call `of_groups` if
        prompts are long compared with completions. With vLLM, TRL asks for the same values before the loss
        and in it; for a large vocabulary they are computed once.
        """
        if input_ids.device.type != "cpu" or compat.goes_around(self):
            return compute(input_ids, attention_mask, logits_to_keep)
        rows, width = input_ids.shape  # prompts are padded on the left, completions on the right
        asked = list(map(tuple, torch.cat([input_ids * attention_mask, attention_mask], 1).tolist()))
        with_gradient, training = torch.is_grad_enabled(), self.model.training
        if with_gradient and self.kept:
            (places, found), self.kept = self.kept, None
            at = [places.get(row) for row in asked]  # TRL has shuffled the rows since
            if packed and None not in at:
                return found[0][at], found[1][at], None
        seen, prompts = attention_mask.sum(), attention_mask[:, : width - logits_to_keep].sum()
        shared = float(1 - prompts / seen * (1 - 1 / self.num_generations))  # of the tokens, if prompts are
        large = rows * logits_to_keep * self.model.config.get_text_config().vocab_size > compat.LOGITS
        alone = self.accelerator.num_processes == self.args.steps_per_generation == 1
        first = self.use_vllm and self.vllm_importance_sampling_correction and self.kept is None
        keeps = bool(large and packed and alone and first and training and not with_gradient)
        if keeps:
            compute = functools.partial(compute, compute_entropy=True)
        with torch.set_grad_enabled(with_gradient or keeps):
            found = None
            if packed and large and shared < SHARED and self.packs is not False:
                found = self.of_groups(compute, packed, input_ids, attention_mask, logits_to_keep)
            if found is None:
                begins = attention_mask.argmax(1)  # (rows,)
                ends = width - attention_mask.flip(1).argmax(1)  # (rows,)
                ends = ends.clamp(min=width - logits_to_keep + 1)
                order, parts = ends.argsort(), []
                split = order.split(max(1, TOKENS // width) if large else max(8, -(-rows // 4)))
                for part in split:
                    begin, end = int(begins[part].min()), int(ends[part].max())
                    cut = width - end
                    own = input_ids[part, begin:end], attention_mask[part, begin:end], logits_to_keep - cut
                    again = large and part is not split[-1]
                    values = checkpoint(compute, *own, use_reentrant=False) if again else compute(*own)
                    parts.append([*(None if v is None else pad(v, (0, cut)) for v in values[:2]), values[2]])
                logps, entropies, losses = zip(*parts, strict=True)
                back = order.argsort()
                found = (
                    torch.cat(logps)[back],
                    None if entropies[0] is None else torch.cat(entropies)[back],
                    None if losses[0] is None else torch.stack(losses).mean(),
                )
        if keeps:
            self.kept = {row: i for i, row in enumerate(asked)}, found
            found = [None if values is None else values.detach() for values in found]
        return found

    def of_groups(
        self, compute: Any, packed: Any, input_ids: Any, attention_mask: Any, logits_to_keep: int
    ) -> tuple[torch.Tensor, torch.Tensor, None] | None:
        """Return what `log_probs` returns, but compute each prompt once for all its completions. Return None
        if the model does not follow such a mask, which the shortest line tests.

        A line is a prompt and its completions. Each completion repeats the prompt's last token first, attends
        to the prompt and itself, and has the positions that it would have alone:

            token     p1 p2  p3 a1 a2  p3 b1
            position   0  1   2  3  4   2  3
            target     -  -  a1 a2 a3  b1 b2

        A part is one line, or several of at most TOKENS in all. Only the last part keeps its activations,
        because the backward pass begins with it; the others are recomputed for their gradient.
        """
        rows, width = input_ids.shape
        start, none, lines = width - logits_to_keep, -100, {}  # type: ignore[var-annotated]
        for row, (ids, seen) in enumerate(zip(input_ids, attention_mask.bool(), strict=True)):
            prompt, reply = ids[:start][seen[:start]].tolist(), ids[start:][seen[start:]].tolist()
            shared = [[token, i, 0, none, 0] for i, token in enumerate(prompt[:-1])]
            lines.setdefault(tuple(prompt), shared).extend(
                [token, len(prompt) - 1 + i, row + 1, target, row * logits_to_keep + i]
                for i, (token, target) in enumerate(zip([prompt[-1], *reply[:-1]], reply, strict=True))
            )
        parts: list[list[Any]] = [[]]
        for line in sorted(lines.values(), key=len):
            if parts[-1] and (len(parts[-1]) + 1) * len(line) > TOKENS:
                parts.append([])
            parts[-1].append(line)

        def values_of(part: list[Any], again: bool = False) -> tuple[Any, Any, Any]:
            size = len(part[-1])
            filled = [line + [[0, 0, -1, none, 0]] * (size - len(line)) for line in part]
            ids, positions, segments, targets, places = torch.tensor(filled).unbind(-1)  # (lines, tokens)
            sees = (segments.unsqueeze(2) == segments.unsqueeze(1)) | (segments.unsqueeze(1) == 0)
            given = ids, positions, sees.tril().unsqueeze(1), targets
            found = checkpoint(packed, *given, use_reentrant=False) if again else packed(*given)
            counted = targets != none
            return places[counted], *(values[counted] for values in found)

        if self.packs is None:
            with torch.no_grad():
                places, ours, _ = values_of(parts[0][:1])
                own = (places // logits_to_keep).unique()
                theirs = compute(input_ids[own], attention_mask[own], logits_to_keep)[0]
                theirs = theirs[torch.searchsorted(own, places // logits_to_keep), places % logits_to_keep]
            self.packs = bool((ours - theirs).abs().mean() < SAME)
            if not self.packs:
                return None
        values = [values_of(part, again=part is not parts[-1]) for part in parts]
        places, *found = map(torch.cat, zip(*values, strict=True))
        at = [v.new_zeros(rows * logits_to_keep).index_copy(0, places, v) for v in found]
        return at[0].view(rows, -1), at[1].view(rows, -1), None


class Samples(TrainerCallback):
    """Writes a few completions to samples.jsonl, and warns if the log-probabilities of vLLM and the trainer
    differ by more than rounding.

    TRL scores a step's completions with both, right after it has sent vLLM the step's weights, so weights
    that did not arrive show at once. At the first step both have the weights that the stage starts from.
    """

    def __init__(self, trainer: Any, path: Path, every: int):
        self.trainer, self.path, self.every = trainer, path, every

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        due = state.global_step == 1 or state.global_step % self.every == 0
        if due and state.is_world_process_zero:
            samples = self.trainer.last_samples(SAMPLES_KEPT)
            append_lines(self.path, [{"step": state.global_step} | sample for sample in samples])

    def on_log(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Add the bound to the newest record, and warn at the first of consecutive steps above it."""
        record = state.log_history[-1]
        if DIFFERENCE not in record:
            return
        *before, now = [record[DIFFERENCE] for record in state.log_history if DIFFERENCE in record]
        start = before[0] if before else now
        record[BOUND] = bound = max(LEAST_BOUND, 4 * start)
        if now > bound and not (before and before[-1] > bound) and state.is_world_process_zero:
            print(
                f"Step {state.global_step}: the log-probabilities of vLLM and of the trainer differ by "
                f"{now:.3f} on average, by {start:.3f} at the start. vLLM may sample with the weights of an "
                "earlier step: docs/troubleshooting.md."
            )


# ---- Completions that run Python (`grpo.tools`): the solver's sandbox and tool calls, in TRL's rollouts
#
# A completion is a conversation: the model's turns are trained on, and the output of its programs is left out
# of the loss (TRL's `tool_mask`). Rewards read the last turn; lengths count the whole conversation. TRL runs
# a step's programs one after another, each for at most `inference.tool_seconds`; whether a slow one ends in
# time depends on the machine. Out of scope: fenced blocks and Harmony, which are not tool calls to TRL.


class ToolSession:
    """Runs the programs of one completion: a TRL environment, whose public methods are tools."""

    def __init__(self, tokenizer: Any, seconds: float):
        self._tokenizer, self._seconds, self._programs = tokenizer, seconds, Programs(seconds)

    def reset(self, **row: Any) -> None:
        self._programs.close()
        self._programs = Programs(self._seconds)

    def python(self, code: str) -> str:
        return escape_special_tokens(self._tokenizer, self._programs.run(code).shown)

    python.__doc__ = f"{PYTHON['function']['description']}\n\nArgs:\n    code: The program."
    del python.__annotations__["return"]  # the solver's description has none


def trainer_arguments(profile: Profile, model: Any, tokenizer: Any, args: Any) -> dict[str, Any]:
    """Return the arguments that let TRL's GRPOTrainer run Python in completions, none without `grpo.tools`,
    and set the limit of calls in `args`. Raise AimoError if the parser does not fit the model, or if this
    machine cannot confine programs."""
    if not (profile.grpo and profile.grpo.tools):
        return {}
    settings = profile.solver_settings(model.config.name_or_path)
    parser = find_tool_parser(settings.tool_parser, tokenizer)
    if not has_sandbox():
        raise AimoError("grpo.tools: programs cannot be confined on this machine; set it to false")
    own = model.generation_config.eos_token_id
    ends = {tokenizer.eos_token_id, *(own if isinstance(own, list) else [own])}  # as in TRL

    def parse_response(ids: list[int], prefix: list[int] | None = None) -> dict[str, Any]:
        """Read a turn as the solver does: take its first call, if the turn has ended."""
        finished = bool(ids) and ids[-1] in ends
        written = Completion(tokenizer.decode(ids[:-1] if finished else ids), ids, finished)
        call = find_tool_call(parser, written)
        if call is None:
            return {"role": "assistant", "content": tokenizer.decode(ids, skip_special_tokens=True)}
        function = {"name": "python", "arguments": {"code": call.code}}
        return call.message | {"tool_calls": [{"type": "function", "function": function}]}

    args.max_tool_calling_iterations = settings.tool_turns
    os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")  # environments warn; TRL is pinned
    asked = copy.copy(tokenizer)  # or Transformers would save the response template with the model
    asked.response_template, asked.parse_response = {}, parse_response
    return {
        "processing_class": asked,
        "environment_factory": lambda: ToolSession(tokenizer, settings.tool_seconds),
    }
