"""Check that what is served is what was trained, and pack an adapter as a submission that a host serves.

A trained stage keeps its model's replies to held-out problems in served.json (`train.trainers`), with the
log-probabilities of each reply's n tokens three times: as trained (`log_probs`), with the adapter merged into
the weights (`merged`), and without the adapter (`start`). Whoever serves the model scores the same tokens and
compares: another chat template, number type or adapter shows at once.

`pack_run` checks an adapter against the host's limits, serves it as the host does, and packs it.
"""

import asyncio
import io
import json
import re
import tempfile
import time
import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import safe_open

from aimo.config.profile import TRAINED
from aimo.data import prepare
from aimo.evaluation import scores
from aimo.inference import competitions, files
from aimo.inference.competitions import AdapterRules, Competition
from aimo.inference.engine import Engine
from aimo.inference.errors import AimoError, EngineError, listed, one_line
from aimo.inference.model_folder import read_adapter
from aimo.inference.settings import resolve_settings
from aimo.inference.storage import AGAIN, read_json, write_json, write_whole
from aimo.run import machine
from aimo.run.runs import Run, find_run, lock, unlock

Reading = tuple[list[int], Sequence[float]]
"""A prompt's token ids, and the log-probabilities (n,) of its reply's tokens."""
# Mean differences between log-probabilities, in nats, that rounding explains. In 16 bits, merging the adapter
# moves the trainer's own model: another honest computation may move it `TIMES` as far.
EXACT, ROUNDED, TIMES = 0.0005, 0.02, 3
# In 16 bits, if all weights were trained in 32: nothing says how far rounding them moves the model.
ALL_WEIGHTS = 0.2
# In 16 bits: vLLM's kernels round unlike the trainer's (0.046 for SmolLM2-135M in bfloat16 on a CPU).
IN_VLLM = 0.1
SURE = 5  # standard errors
FOUR_BITS = 0.5  # the adapter was trained on rounded weights, and is merged into exact ones
ASKED_FOR = {"quantization", "kv_cache_dtype"}  # vLLM's arguments that change what it computes, as dtype does
REMEDY = "run the stage again, or raise training.served_bound"


def read_kept(stage: Path) -> dict[str, Any]:
    """Return a stage folder's served.json, or {} if it kept none."""
    path = stage / "served.json"
    kept = read_json(path, f"remove {path}, and run the stage again") if path.exists() else {}
    return kept if kept.get("talks") else {}


def encode_talks(tokenizer: Any, talks: Sequence[dict[str, Any]]) -> list[tuple[list[int], list[int]]]:
    """Return the token ids of each talk's `prompt` and, encoded apart as in training, of its `reply`."""
    asked = [talk["prompt"] for talk in talks]
    prompts = tokenizer.apply_chat_template(asked, add_generation_prompt=True, tokenize=False)
    texts = [*prompts, *(talk["reply"] for talk in talks)]
    ids = tokenizer(texts, add_special_tokens=False)["input_ids"]
    return list(zip(ids[: len(talks)], ids[len(talks) :], strict=True))


def compare(
    kept: dict[str, Any],
    found: Sequence[Reading],
    served_in: str,
    what: str,
    bound: float | None = None,
    remedy: str = REMEDY,
    kernels: float = 0.0,
) -> float:
    """Return the mean difference between the log-probabilities `found` and those of training, in nats.

    AimoError names `what` is served and the cause: other tokens, another number type, a difference above
    `bound` (None: what rounding explains), or a model with surely less than half of what training changed.
    `kernels` is what the served model's own rounding explains in 16 bits.
    """
    talks, trained_in = kept["talks"], kept["dtype"]
    tokens = [(talk["ids"], len(talk["log_probs"])) for talk in talks]
    if tokens != [(ids, len(values)) for ids, values in found]:
        cause = "its tokenizer or chat template makes other tokens of the same conversation"
        raise AimoError(f"{what} is not the model that was trained: {cause}; {remedy}")
    served = np.array([value for _, values in found for value in values])  # (tokens,)
    trained, merged, start = (
        np.array([value for talk in talks for value in talk.get(key) or talk["log_probs"]])
        for key in ("log_probs", "merged", "start")
    )
    difference, rounding = np.abs(served - merged).mean(), np.abs(trained - merged).mean()
    allowed = EXACT
    if bound is not None:
        allowed = bound
    elif kept.get("four_bits"):
        allowed = FOUR_BITS
    elif trained_in != "float32":
        in_16_bits = max(ROUNDED, TIMES * rounding) if "merged" in talks[0] else ALL_WEIGHTS
        allowed = max(in_16_bits, kernels)
    # Least squares of served = start + share (trained - start) + rounding: the share is 1 for the
    # trained model, 0 for the one that training started from, and about 0 for another adapter. A merge in 16
    # bits may lose changes that are smaller than a weight's last bit.
    learnt, moved, lost = trained - start, served - start, False
    if bound is None and np.abs(learnt).mean() > rounding:
        share = (learnt @ moved) / (learnt @ learnt)
        error = (moved - share * learnt).std() / np.linalg.norm(learnt)
        lost = bool(share + SURE * error < 0.5)
    if served_in != trained_in:
        cause = f"its weights are {served_in}, and the stage computed in {trained_in}"
    elif difference > allowed or lost:
        cause = "its weights are not those of the trained adapter and the model that it began with"
    else:
        return float(difference)
    raise AimoError(
        f"{what} is not the model that was trained: {cause}; the log-probabilities of {len(served):,} tokens "
        f"differ by {difference:.3g} on average, {allowed:.3g} is allowed, and training changed them by "
        f"{np.abs(learnt).mean():.3g}; {remedy}"
    )


def check_engine(
    engine: Engine, stage: Path, bound: float | None = None, remedy: str | None = None
) -> float | None:
    """Compare what vLLM serves, a `stage`'s model or adapter, with what the stage trained. Return the
    difference, or None if the stage kept no log-probabilities or vLLM is set to compute other numbers."""
    kept, asked = read_kept(stage), engine.settings.vllm
    if not kept or ASKED_FOR & asked.keys():
        return None
    served_in = str(engine.llm.vllm_config.model_config.dtype).removeprefix("torch.")
    if "dtype" in asked and served_in != kept["dtype"]:
        return None
    pairs = encode_talks(engine.tokenizer, kept["talks"])

    async def read() -> list[Reading]:  # one at a time: with an adapter, vLLM 0.31 mixes up a batch's rows
        return [(prompt, await engine.log_probs(prompt, reply)) for prompt, reply in pairs]

    if engine.adapter and not remedy:
        remedy = (
            f"serve the merged {stage / 'model'}, or the adapter on the model that its stage began with, "
            f"with the adapter's chat template, in {kept['dtype']} (vLLM's dtype)"
        )
    what = f"{stage.name}: {engine.adapter or engine.model} in vLLM"
    return compare(kept, engine.run(read()), served_in, what, bound, remedy or REMEDY, IN_VLLM)


# An adapter as a submission

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
KEY = re.compile(r"base_model\.model\.(.+)\.lora_([AB])\.weight")
DTYPES = {"F32": "float32", "F16": "float16", "BF16": "bfloat16", "F64": "float64"}
# PEFT's names of what vLLM 0.31 does not serve, or serves with another scale.
UNSERVED = (
    "bias", "use_dora", "modules_to_save", "rank_pattern", "alpha_pattern", "target_parameters", "lora_bias",
)  # fmt: skip
# These override the settings in the base's folder, which the host does not read.
NEUTRAL = {
    "user": "{problem}", "system": "", "variants": [], "temperature": 1.0, "top_p": 1.0, "top_k": 0,
    "min_p": 0.0, "stop": [], "tools": 0.0,
}  # fmt: skip


def pack_run(named: str, competition: str, questions: Path | None, serve: bool) -> list[str]:
    """Check, serve and pack the adapter of RUN/STAGE (RUN: its last trained one); return the lines to print.

    Write RUN/submission.zip, with the stage's weights as they are or joined with those of earlier stages, and
    RUN/STAGE/pack.json, with the comparison and forecast unless `serve` is False. AimoError, before anything
    is written, if the host would not take the adapter.
    """
    rules = competitions.find_competition(competition)
    lora = rules.artefact.lora
    if lora is None:
        raise AimoError(f"competition {competition}: it takes answers and no adapter; see `aimo solve`")
    before, _, last = named.rstrip("/").rpartition("/")
    folder, profile = find_run(before if last in TRAINED else named)
    stage = last if last in TRAINED else next(reversed(profile.trained), "")
    if stage not in profile.trained or not (folder / stage / "trained" / CONFIG).exists():
        raise AimoError(f"run {named}: no stage of it has trained an adapter; train with model.lora")
    if not is_one_of(lora.bases, profile.model.base):
        trained_on = f"its base is {profile.model.base}, and the host serves {lora.bases[0]}"
        raise AimoError(f"run {named}: {trained_on}; train on that")
    lock(folder)
    try:
        with tempfile.TemporaryDirectory(prefix=".joined-", dir=folder) as joined:
            run, again = Run(profile, folder, stage, time.time()), f"train stage {stage} again"
            adapter = join_adapters(lora, run, Path(joined))
            told = [f"adapter: {check_adapter_file(lora, adapter, again)}"]
            record: dict[str, Any] = {"competition": competition}
            if serve:
                figures, lines = forecast(run, rules, lora, adapter, questions)
                record, told = record | figures, told + lines
            # The adapter's two files; its configuration calls the base as the host does.
            config = read_json(adapter / CONFIG, again) | {"base_model_name_or_path": lora.bases[0]}
            content = io.BytesIO()
            with zipfile.ZipFile(content, "w") as archive:
                archive.writestr(zipfile.ZipInfo(CONFIG), json.dumps(config, indent=2) + "\n")
                archive.write(adapter / WEIGHTS, WEIGHTS)
        out = folder / rules.artefact.file
        write_whole(out, content.getvalue())
        write_json(run.folder / "pack.json", record)
    finally:
        unlock(folder)
    return [*told, f"submission: {out}, {out.stat().st_size / 1e6:.1f} MB"]


def check_archive(lora: AdapterRules, path: Path) -> str:
    """Return a description of the adapter in an archive. AimoError if the host would not take it."""
    again = "make it with `aimo kaggle pack`"
    try:
        with zipfile.ZipFile(path) as archive, tempfile.TemporaryDirectory(dir=path.parent) as folder:
            if sorted(names := archive.namelist()) != [CONFIG, WEIGHTS]:
                told = f"it holds {listed(names)}, and the host takes {CONFIG} and {WEIGHTS}"
                raise AimoError(f"{path}: {told}; {again}")
            archive.extractall(folder)
            try:
                return check_adapter_file(lora, Path(folder), again)
            except AimoError as e:
                raise AimoError(str(e).replace(folder, str(path))) from None
    except (zipfile.BadZipFile, zlib.error, EOFError, RuntimeError, OSError) as e:
        raise AimoError(f"{path}: it is no whole archive ({one_line(e)}); {again}") from None


def check_adapter_file(lora: AdapterRules, adapter: Path, again: str) -> str:
    """Return a description of an adapter. AimoError if the host would not take it, or serve it wrongly."""
    path, weights, said = adapter / CONFIG, adapter / WEIGHTS, read_config(adapter, again)
    rank, under = said["r"], str(said.get("base_model_name_or_path"))
    if not is_one_of(lora.bases, under):
        raise AimoError(f"{path}: it is for the base {under}, and the host serves {lora.bases[0]}; {again}")
    if rank > lora.rank:
        told = f"its rank is {rank}, and the host takes {lora.rank} at most"
        raise AimoError(f"{path}: {told}; train with --set model.lora.rank={lora.rank}")
    with safe_open(weights, "np") as file:
        slices = {key: file.get_slice(key) for key in file.keys()}  # noqa: SIM118 (the file is no mapping)
        shapes = {key: one.get_shape() for key, one in slices.items()}
        dtypes = sorted({DTYPES.get(one.get_dtype(), one.get_dtype()) for one in slices.values()})
    if odd := next((key for key in shapes if not KEY.fullmatch(key)), None if shapes else "nothing"):
        raise AimoError(f"{weights}: it holds {odd}, no weight of LoRA that vLLM reads; {again}")
    for module in sorted({KEY.sub(r"\1", key) for key in shapes}):
        target = module.rpartition(".")[2]
        if target not in lora.targets:
            told = f"{module} has weights, and the host takes those of {', '.join(lora.targets)}"
            raise AimoError(f"{weights}: {told}; leave {target} out of model.lora.target_modules")
        a, b = (shapes.get(f"base_model.model.{module}.lora_{half}.weight", [0, 0]) for half in "AB")
        if [a[0], b[1]] != [rank, rank]:
            told = f"the halves of {module} have the ranks {a[0]} and {b[1]}, and {CONFIG} says {rank}"
            raise AimoError(f"{weights}: {told}; {again}")
    if not {*dtypes} <= {*lora.dtypes}:
        told = f"it has {', '.join(dtypes)} weights, and the host takes {', '.join(lora.dtypes)}"
        raise AimoError(f"{weights}: {told}; set model.dtype to one of them, and {again}")
    size = (path.stat().st_size + weights.stat().st_size) / 1e6
    if lora.size_mb and size > lora.size_mb:
        told = f"it has {size:.1f} MB, and the host takes {lora.size_mb}"
        raise AimoError(f"adapter {adapter}: {told}; train a smaller rank or fewer modules of model.lora")
    return f"rank {rank} for {lora.bases[0]}, {len(shapes)} tensors, {', '.join(dtypes)}, {size:.1f} MB"


def read_config(adapter: Path, again: str) -> dict[str, Any]:
    """Return an adapter's configuration. AimoError if it is broken, or if vLLM would serve it wrongly."""
    read_adapter(adapter)
    path, weights = adapter / CONFIG, adapter / WEIGHTS
    said: dict[str, Any] = read_json(path, again)
    for key in UNSERVED:
        if (value := said.get(key)) not in (None, False, "none", [], {}):
            raise AimoError(f"{path}: {key} is {value!r}, which vLLM does not serve; train without it")
    if not weights.is_file():
        raise AimoError(f"{weights}: it is missing; {again}")
    return said


def join_adapters(lora: AdapterRules, run: Run, out: Path) -> Path:
    """Return the folder of a stage's adapter on the base: its own, or `out` with earlier ones joined.

    A stage that starts from a merged model adds B2 A2 to W + B1 A1. The sum is W + [B1 B2] [A1; A2]: ranks
    add up, as in PEFT's `add_weighted_adapter` with `cat`, which needs the base in memory.
    """
    stages = run.profile.trained[: run.profile.trained.index(run.stage) + 1]
    folders = [run.dir / name / "trained" for name in stages]
    if without := next((folder for folder in folders if not (folder / CONFIG).exists()), None):
        told = f"no adapter is there, and {run.stage} starts from the model of that stage"
        raise AimoError(f"{without}: {told}; train with model.lora, or {run.stage} alone")
    if len(folders) == 1:
        return folders[0]

    torch = machine.load_torch()
    from safetensors.torch import load_file, save_file

    found = [read_config(folder, f"train stage {folder.parent.name} again") for folder in folders]
    parts, ranks = [load_file(folder / WEIGHTS) for folder in folders], [one["r"] for one in found]
    if sum(ranks) > lora.rank:
        told = f"the ranks of {' and '.join(stages)} add up to {sum(ranks)}, and the host takes {lora.rank}"
        raise AimoError(f"run {run.dir}: {told}; train with --set model.lora.rank={lora.rank // len(ranks)}")
    weights = {}
    for key in sorted(set().union(*parts)):
        axis, halves = int(".lora_B." in key), []  # A: (rank, in), B: (out, rank)
        like = next(part[key] for part in parts if key in part)
        for part, one in zip(parts, found, strict=True):
            scale = one["lora_alpha"] / (one["r"] ** 0.5 if one.get("use_rslora") else one["r"])
            shape = [*like.shape]
            shape[axis] = one["r"]
            half = part.get(key, like.new_zeros(shape))  # a module that the stage did not train
            halves.append(half if axis else half * scale)
        weights[key] = torch.cat(halves, axis).contiguous()
    save_file(weights, out / WEIGHTS)
    modules = sorted({key.split(".")[-3] for key in weights})
    scaled = {"r": sum(ranks), "lora_alpha": sum(ranks), "use_rslora": False, "target_modules": modules}
    write_json(out / CONFIG, found[0] | scaled)
    return out


def is_one_of(names: tuple[str, ...], model: str) -> bool:
    """Return whether a hub id or a path, such as one in the hub's cache, has one of the names in it."""
    parts = {part.rpartition("--")[2] for part in Path(model.lower()).parts}
    return any(Path(name.lower()).name in parts for name in names)


def forecast(
    run: Run, rules: Competition, lora: AdapterRules, adapter: Path, questions: Path | None
) -> tuple[dict[str, Any], list[str]]:
    """Serve base and adapter as the host does, with its sampling, prompt and metric, on a file of questions
    or on the run's held-out problems. Return the forecast and the comparison, and the lines to print."""
    where, kind, told = f"questions {questions}", rules.answer, list[str]()
    if questions:
        rows = competitions.pose(files.read_texts(questions, "questions "), questions, rules)
        golds = competitions.known_answers(rows, rules)
        texts = dict(rows.select("id", rules.inputs.problem).iter_rows())
    else:  # their prompts end like the host's
        where, below = (
            f"run {run.dir}: its held-out set",
            lora.serving.get("user", "").partition("{problem}")[2],
        )
        heldout = {str(i): row for i, row in enumerate(prepare.read_set(run.dir / "data", "heldout"))}
        texts = {i: row["prompt"][-1]["content"].removesuffix(below) for i, row in heldout.items()}
        golds = {i: kind.gold(str(row["answer"])) for i, row in heldout.items()}
    known = [id_ for id_ in texts if golds.get(id_) is not None]
    if not known:
        raise AimoError(f"{where} has no known answers to forecast a score by; give a file by --questions")

    async def answer_all() -> list[str]:
        asked = [engine.sample(engine.encode(texts[id_]), engine.seed, engine.settings) for id_ in known]
        return [one.text for one in await asyncio.gather(*asked)]

    base, each = run.models()["base"], {}
    settings = resolve_settings(base, NEUTRAL, lora.serving)
    remedy = REMEDY
    if adapter.parent != run.folder:  # joined; the model that the stage started from was rounded
        remedy = f"train {run.stage} alone, or set model.dtype=float32"
    try:
        with Engine(base, settings, seed=run.profile.seed, adapter=adapter) as engine:
            # Check that the host formats prompts as training did.
            options = {"add_generation_prompt": True, "tokenize": False} | settings.chat_template_kwargs
            below = settings.user.partition("{problem}")[2]
            talks = read_kept(run.folder).get("talks", [])
            for talk in talks:
                shown = engine.tokenizer.apply_chat_template(talk["prompt"], **options)
                if engine.tokenizer.encode(shown, add_special_tokens=False) != talk["ids"]:
                    raise AimoError(
                        f"{run.stage}: the host asks with the chat template of {base.name}, training with "
                        "another; train with prompt.template=model, prompt.system='' and prompt.prefill=false"
                    )
            if any(not talk["prompt"][-1]["content"].endswith(below) for talk in talks):
                told.append(
                    f"format: the host writes {below.strip()!r} below a problem, the training data do not"
                )
            apart = check_engine(engine, run.folder, run.profile.training.served_bound, remedy)
            for name, with_adapter in ("base", None), ("adapter", engine.lora):
                engine.lora = with_adapter
                given = [kind.read(kind.find(text, settings.tags)) for text in engine.run(answer_all())]
                each[name] = [
                    0.0 if answer is None else competitions.score_of(rules, {i: golds[i]}, [{i: answer}])
                    for i, answer in zip(known, given, strict=True)
                ]
    except AimoError:
        raise
    except Exception as e:  # the engine's own exception types
        raise EngineError(f"the engine failed: {one_line(e)}; {AGAIN}") from None
    intervals = {name: scores.share_interval(values) for name, values in each.items()}
    gains = [after - before for before, after in zip(each["base"], each["adapter"], strict=True)]
    intervals["gain"] = scores.mean_interval(gains)
    if apart is None:
        told.append("served: not compared with training: the stage kept no log-probabilities (served.json)")
    else:
        told.append(f"served: log-probabilities differ from those of training by {apart:.2g} on average")
    found = {name: (one.value, one.low, one.high) for name, one in intervals.items()}
    shown = [f"{name} {at:.3f} ({low:.3f} to {high:.3f})" for name, (at, low, high) in found.items()]
    told.append(f"forecast: {', '.join(shown)} on {len(known)} questions, by {rules.scoring}")
    return {"forecast": found, "served_difference": apart, "questions": len(known)}, told
