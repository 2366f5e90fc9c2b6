"""The table of stages. A run does those that its profile has a section for, in this order.

A new stage is a row here, a notebook and a section of the profile (`aimo.config.Profile`).
Everything else reads the table.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Stage:
    """One row of the table."""

    name: str
    """Also the section of the profile and the folder in a run."""
    notebook: str
    """The file in `notebooks/`, without its suffix."""
    product: str
    """The last thing the stage writes, relative to the run's folder. Later stages need it."""
    label: str
    """Its name in tables of figures."""
    colour: str = "#8a94a0"
    """Its colour in plots."""
    trains_on: str | None = None
    """The set of the `data` section that it trains on. None for a stage that trains no model."""


STAGES = {
    stage.name: stage
    for stage in (
        Stage("distil", "00_distil", "distil/kept.jsonl", "distillation"),
        Stage("data", "01_data_prep", "data/README.md", "data"),
        Stage("sft", "02_format_sft", "sft/model", "after format SFT", "#3b76b0", trains_on="sft"),
        Stage("grpo", "03_grpo", "grpo/model", "after GRPO", "#e1812c", trains_on="grpo"),
        Stage("dpo", "03b_dpo", "dpo/model", "after DPO", "#8172b3", trains_on="grpo"),
        Stage("inference", "04_inference", "submission.parquet", "inference"),
    )
}
TRAINED = {name: stage for name, stage in STAGES.items() if stage.trains_on}
"""The stages that train a model."""
MODELS = {"base": "base, prompted in the format"} | {name: stage.label for name, stage in TRAINED.items()}
"""The models that a run can measure, with their labels: the base and what each stage trains."""
