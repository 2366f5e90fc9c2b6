# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # 1. Data
#
# A model learns what it is shown, so the data come first. This notebook makes up to three sets, those that
# the profile has:
#
# - **sft**: problems with a worked solution, which supervised fine-tuning imitates;
# - **grpo**: problems with the right answer alone, for GRPO and DPO;
# - **heldout**: problems that no stage trains on, which measure every model.
#
# Every answer must be an integer, as in the olympiad, unless the profile says otherwise. A problem is in
# one set only.

# %% tags=["parameters"]
profile = "tiny"  # a name in notebooks/profiles, or a path to a YAML file
run_dir = None  # the folder of the run; None is runs/PROFILE
overrides = []  # keys of the profile to change, each as KEY=VALUE

# %%
from aimo.data import prepare
from aimo.report import tables
from aimo.run import runs
from aimo.train import models

run = runs.begin("data", profile, run_dir, overrides)
tokenizer = models.load_tokenizer(run.start_model(), run.profile)

# %% [markdown]
# ## Read
# The profile names the sources, and which of their columns hold `problem`, `answer` and `solution`. One row
# of each set:

# %%
sets = prepare.load(run.profile, run.dir)
tables.table(
    [
        {"set": name} | rows.select("source", "problem", "answer", "solution").row(0, named=True)
        for name, rows in sets.rows.items()
    ]
)

# %% [markdown]
# ## Clean
# Each row is kept, or dropped for one reason. A training problem that is also held out is dropped, because
# held-out problems must measure what a model has not seen. Training problems that share eight words in a
# row with a set of `data.decontaminate` are dropped for the same reason.

# %%
sets = prepare.decontaminate(prepare.clean(sets, run.profile, tokenizer), run.profile)
tables.counts(sets)

# %% [markdown]
# The rows that decontamination dropped, and the words that they share.

# %%
tables.contaminated(sets)

# %% [markdown]
# ## Format
# The same problems as the model sees them. The chat template ends every prompt with the opening tag of the
# thought, so that a completion starts inside it. Loss is computed on the thought, the answer and the end of
# the text. Some examples of the tiny profile have an empty thought on purpose: they show the format, and
# GRPO finds the reasoning.

# %%
ready = prepare.format(sets, run.profile)
tables.training_text(ready, tokenizer)

# %% [markdown]
# ## Save
# One Parquet file a set, and a data card that says where the rows come from.

# %%
digest = prepare.save(ready, sets, run.profile, run.folder)
run.finish(sha256=digest, **{f"{name}_rows": len(ready[name]) for name in ready})
