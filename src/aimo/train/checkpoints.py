"""The checkpoints of a stage: which one training continues from, and the best model probed.

Out of scope: writing checkpoints, which TRL's trainers do.
"""

import functools
import shutil
from pathlib import Path
from typing import Any

from aimo.errors import AimoError
from aimo.inference.storage import read_json, write_json
from aimo.run.runs import newest_first, step_of


def last_checkpoint(folder: Path) -> str | None:
    """The newest complete checkpoint. Newer ones that were cut off while they were written are removed, and
    named."""
    from safetensors import SafetensorError, safe_open

    for checkpoint in newest_first(folder):
        try:
            read_json(checkpoint / "trainer_state.json", "")  # the trainer writes this file last
            for weights in checkpoint.glob("*.safetensors"):
                with safe_open(weights, "pt"):
                    pass
            return str(checkpoint)
        except (OSError, AimoError, SafetensorError):
            print(f"{checkpoint.name} was not written to its end; the one before is used.")
            shutil.rmtree(checkpoint)
    return None


@functools.cache  # torch takes a package once
def accept_cpu_index() -> None:
    """Let torch load a checkpoint in several CPU processes.

    Transformers 5.17 loads the optimizer onto the process's device, there `cpu:0`, which torch does not know.
    """
    import torch

    def restore_cpu(storage: Any, location: str) -> Any:
        return storage if location.startswith("cpu:") else None

    torch.serialization.register_package(0, lambda storage: None, restore_cpu)


def keep_until(folder: Path, name: str) -> None:
    """Remove what a stage made after its checkpoint `name`, so that training continues from there.

    AimoError lists the checkpoints in the folder when this one is not among them.
    """
    found = [checkpoint.name for checkpoint in newest_first(folder)]
    if name not in found:
        there = ", ".join(found) or "none"
        raise AimoError(f"{folder.name}/{name} is not in {folder}; checkpoints there: {there}")
    for later in found[: found.index(name)]:
        shutil.rmtree(folder / later)
    keep_best(folder, step_of(folder / name))
    for product in ("trained", "model"):
        shutil.rmtree(folder / product, ignore_errors=True)


def keep_best(folder: Path, step: int) -> None:
    """Keep the best model probed, which a finished stage has as `trained`, only if it was probed up to
    `step`."""
    best, trained = folder / "best", folder / "trained"
    if (trained / "probe.json").exists():
        trained.rename(best)
    probe = best / "probe.json"
    if not probe.exists() or read_json(probe, f"remove {best}")["step"] > step:
        shutil.rmtree(best, ignore_errors=True)


def save_best(trainer: Any, folder: Path, figures: dict[str, float]) -> None:
    """Save the model to `best`, with the step and the figures of its probe in probe.json."""
    best = folder / "best"
    trainer.save_model(str(best))
    if trainer.is_world_process_zero():
        write_json(best / "probe.json", {"step": trainer.state.global_step} | figures)


def save_trained(trainer: Any, folder: Path) -> None:
    """Leave the adapter or the weights in `trained`: of the best model probed where there is one, also in
    memory."""
    from aimo.train.callbacks import main_process_says

    best, trained = folder / "best", folder / "trained"
    if not main_process_says((best / "probe.json").exists()):
        trainer.save_model(str(trained))
    elif trainer.is_world_process_zero():
        shutil.rmtree(trained, ignore_errors=True)
        best.rename(trained)
        restore(trainer.model, trained)


def restore(model: Any, trained: Path) -> None:
    """Put saved adapters or weights back into the model in memory."""
    from safetensors.torch import load_file

    adapter = trained / "adapter_model.safetensors"
    if adapter.exists():
        from peft import set_peft_model_state_dict

        set_peft_model_state_dict(model, load_file(adapter))
        return
    for file in trained.glob("*.safetensors"):
        model.load_state_dict(load_file(file), strict=False)  # shards, and tied weights that are saved once
