"""An adapter as a submission: checked against what the host takes, served as the host does, then packed.

    RUN/STAGE/trained       the adapter, as training left it; those of stages in a row are joined into one
    RUN/STAGE/pack.json     what was compared and forecast
    RUN/submission.zip      adapter_config.json and adapter_model.safetensors; of one stage byte for byte

Nothing is written before everything is checked. One vLLM engine scores base and adapter with the host's
sampling, prompt and metric. It also gives log-probabilities to the tokens that the stage kept (`served`),
which must be the trainer's: what was trained is what is served.
"""

import asyncio
import contextlib
import io
import json
import re
import tempfile
import time
import zipfile
import zlib
from pathlib import Path
from typing import Any

from safetensors import safe_open

from aimo.config.profile import TRAINED
from aimo.data import prepare
from aimo.evaluation import served
from aimo.evaluation.scores import mean_interval, share_interval
from aimo.inference import competitions, files
from aimo.inference.competitions import AdapterRules, Competition
from aimo.inference.engine import Engine
from aimo.inference.errors import AimoError, EngineError, listed, one_line
from aimo.inference.model_folder import read_adapter
from aimo.inference.settings import resolve_settings
from aimo.inference.storage import AGAIN, read_json, write_json, write_whole
from aimo.run import machine
from aimo.run.runs import Run, find_run, lock, unlock

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
KEY = re.compile(r"base_model\.model\.(.+)\.lora_([AB])\.weight")
DTYPES = {"F32": "float32", "F16": "float16", "BF16": "bfloat16", "F64": "float64"}
# What vLLM 0.31 does not serve, or would serve with another scale, by PEFT's names.
UNSERVED = (
    "bias", "use_dora", "modules_to_save", "rank_pattern", "alpha_pattern", "target_parameters", "lora_bias",
)  # fmt: skip
# Over the settings of the base's folder, which the host does not read.
NEUTRAL = {
    "user": "{problem}", "system": "", "variants": [], "temperature": 1.0, "top_p": 1.0, "top_k": 0,
    "min_p": 0.0, "stop": [], "tools": 0.0,
}  # fmt: skip


def pack_run(named: str, competition: str, questions: Path | None, serve: bool) -> list[str]:
    """Check, serve and pack the adapter of RUN or RUN/STAGE; return what to tell, a line each.

    Without a stage it is the last that trained. Without a file of `questions` the score is forecast on the
    run's held-out problems. `serve` False neither compares nor forecasts. AimoError, before anything is
    written, for what the host would not take.
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
    with contextlib.ExitStack() as ending:
        lock(folder)
        ending.callback(unlock, folder)
        joined = ending.enter_context(tempfile.TemporaryDirectory(prefix=".joined-", dir=folder))
        run = Run(profile, folder, stage, time.time())
        adapter = join_adapters(lora, run, Path(joined))
        told = [f"adapter: {check_adapter_file(lora, adapter, f'train stage {stage} again')}"]
        record: dict[str, Any] = {"competition": competition}
        if serve:
            base, table = run.models()["base"], read_table(rules, run, questions)
            settings = resolve_settings(base, NEUTRAL, lora.serving)
            alone = f"train {stage} alone, or set model.dtype=float32"  # the merged model was rounded
            remedy = served.REMEDY if adapter.parent == run.folder else alone
            try:
                with Engine(base, settings, seed=profile.seed, adapter=adapter) as engine:
                    told += check_format(engine, run)
                    apart = served.check_engine(engine, run.folder, profile.training.served_bound, remedy)
                    record["forecast"] = found = forecast(engine, rules, table)
            except AimoError:
                raise
            except Exception as e:  # the engine's own kinds
                raise EngineError(f"the engine failed: {one_line(e)}; {AGAIN}") from None
            record |= {"served_difference": apart, "questions": len(table)}
            words = "not compared with training: the stage kept no log-probabilities (served.json)"
            if apart is not None:
                words = f"log-probabilities differ from those of training by {apart:.2g} on average"
            told.append(f"served: {words}")
            scores = [f"{name} {at:.3f} ({low:.3f} to {high:.3f})" for name, (at, low, high) in found.items()]
            told.append(f"forecast: {', '.join(scores)} on {len(table)} questions, by {rules.scoring}")
        out = folder / rules.artefact.file
        write_archive(adapter, lora, out)
        write_json(run.folder / "pack.json", record)
    return [*told, f"submission: {out}, {out.stat().st_size / 1e6:.1f} MB"]


# What the host takes


def check_archive(lora: AdapterRules, path: Path) -> str:
    """Return the adapter of an archive in words. AimoError for one that the host would not take."""
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
    """Return an adapter in words. AimoError for one that the host would not take, or would serve wrongly."""
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
    if odd := next((dtype for dtype in dtypes if dtype not in lora.dtypes), None):
        told = f"it has {odd} weights, and the host takes {', '.join(lora.dtypes)}"
        raise AimoError(f"{weights}: {told}; set model.dtype to one of them, and {again}")
    size = (path.stat().st_size + weights.stat().st_size) / 1e6
    if lora.size_mb and size > lora.size_mb:
        told = f"it has {size:.1f} MB, and the host takes {lora.size_mb}"
        raise AimoError(f"adapter {adapter}: {told}; train a smaller rank or fewer modules of model.lora")
    return f"rank {rank} for {lora.bases[0]}, {len(shapes)} tensors, {', '.join(dtypes)}, {size:.1f} MB"


def read_config(adapter: Path, again: str) -> dict[str, Any]:
    """Return an adapter's configuration. AimoError where it is broken, or vLLM would serve it wrongly."""
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
    """Return the folder of a stage's adapter on the base: with earlier stages `out`, where they are joined.

    A stage that starts from a merged model adds B2 A2 to W + B1 A1. That is W + [B1 B2] [A1; A2]: ranks add
    up, as in PEFT's `add_weighted_adapter` with `cat`, which needs the base in memory.
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
    """Return whether a path or hub id, also one in the hub's cache, has one of some models' names in it."""
    parts = {part.rpartition("--")[2] for part in Path(model.lower()).parts}
    return any(Path(name.lower()).name in parts for name in names)


# What is served


def check_format(engine: Engine, run: Run) -> list[str]:
    """Return, as a line to tell, where the host's user message is another than training's.

    AimoError where its chat template is: what was trained would not be asked for.
    """
    options = {"add_generation_prompt": True, "tokenize": False} | engine.settings.chat_template_kwargs
    below, told = engine.settings.user.partition("{problem}")[2], set()
    for talk in served.read_kept(run.folder).get("talks", []):
        shown = engine.tokenizer.apply_chat_template(talk["prompt"], **options)
        if engine.tokenizer.encode(shown, add_special_tokens=False) != talk["ids"]:
            raise AimoError(
                f"{run.stage}: the host asks with the chat template of {engine.model.name}, training with "
                "another; train with prompt.template=model, prompt.system='' and prompt.prefill=false"
            )
        if not talk["prompt"][-1]["content"].endswith(below):
            told.add(f"format: the host writes {below.strip()!r} below a problem, the training data do not")
    return sorted(told)


# The forecast


def read_table(rules: Competition, run: Run, path: Path | None) -> list[tuple[str, str, Any]]:
    """Return id, problem and known answer of a file's questions, or of the run's held-out problems."""
    if path:
        table = competitions.pose(files.read_texts(path, "questions "), path, rules)
        golds = competitions.known_answers(table, rules)
        found = [(i, text, golds.get(i)) for i, text in table.select("id", rules.inputs.problem).rows()]
    else:
        below = rules.artefact.lora.serving.get("user", "") if rules.artefact.lora else ""
        rows = prepare.read_set(run.dir / "data", "heldout")
        texts = [row["prompt"][-1]["content"].removesuffix(below.partition("{problem}")[2]) for row in rows]
        found = [
            (str(i), text, rules.answer.gold(str(row["answer"])))
            for i, (text, row) in enumerate(zip(texts, rows, strict=True))
        ]
    if not (known := [one for one in found if one[2] is not None]):
        where = f"questions {path}" if path else f"run {run.dir}: its held-out set"
        raise AimoError(f"{where} has no known answers to forecast a score by; give a file by --questions")
    return known


def forecast(
    engine: Engine, rules: Competition, table: list[tuple[str, str, Any]]
) -> dict[str, tuple[float, float, float]]:
    """Return the scores of `base` and `adapter`, a question, and the `gain`, each with its 95 % interval."""
    settings, kind, adapter = engine.settings, rules.answer, engine.lora

    def score(id_: str, gold: Any, text: str) -> float:
        answer = kind.read(kind.find(text, settings.tags))
        return 0.0 if answer is None else competitions.score_of(rules, {id_: gold}, [{id_: answer}])

    async def answer_all() -> list[str]:
        streams = [engine.sample(engine.encode(text), engine.seed, settings) for _, text, _ in table]
        return [one.text for one in await asyncio.gather(*streams)]

    found: dict[str, list[float]] = {}
    for name, engine.lora in ("base", None), ("adapter", adapter):
        texts = engine.run(answer_all())
        found[name] = [score(id_, gold, text) for (id_, _, gold), text in zip(table, texts, strict=True)]
    gains = [after - before for before, after in zip(found["base"], found["adapter"], strict=True)]
    intervals = {name: share_interval(values) for name, values in found.items()}
    intervals["gain"] = mean_interval(gains)
    return {name: (one.value, one.low, one.high) for name, one in intervals.items()}


def write_archive(adapter: Path, lora: AdapterRules, out: Path) -> None:
    """Write the two files of an adapter as one archive, with the base by the host's name for it."""
    config = read_json(adapter / CONFIG, "train the stage again") | {"base_model_name_or_path": lora.bases[0]}
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        archive.writestr(zipfile.ZipInfo(CONFIG), json.dumps(config, indent=2) + "\n")
        archive.write(adapter / WEIGHTS, WEIGHTS)
    write_whole(out, content.getvalue())
