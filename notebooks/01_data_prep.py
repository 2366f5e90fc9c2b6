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
# A model learns what it is shown, so this comes first: which problems, in which form. Three sets leave this notebook.
#
# - **sft**: problems with a worked solution, to imitate. It teaches the *format*.
# - **grpo**: problems with nothing but the right answer. It teaches to *reason*, by trial and reward.
# - **heldout**: problems that no stage trains on. It measures all stages.
#
# Every answer must be an integer, as in the olympiad; a problem may be in one set only.

# %% tags=["parameters"]
profile = "tiny"  # a name in notebooks/profiles, or a path to a YAML file
run_dir = None  # everything this run makes; None is runs/PROFILE
overrides = []  # keys of the profile to change, each as KEY=VALUE

# %%
from aimo import hub, runs
from aimo.data import prepare
from aimo.report import tables
from aimo.training import models

run = runs.begin("data", profile, run_dir, overrides)
tokenizer = models.load_tokenizer(hub.local_folder(run.profile.model.base), run.profile)

# %% [markdown]
# ## Read
# The sources come from the profile, and so does the map from their columns to `problem`, `answer` and `solution`.

# %%
sets = prepare.load(run.profile)
tables.table(
    [
        {"set": name} | rows.select("source", "problem", "answer", "solution").row(0, named=True)
        for name, rows in sets.rows.items()
    ]
)

# %% [markdown]
# ## Clean
# Each row is kept or dropped for one reason. A training problem that is also held out is dropped: a model that has seen the
# exam proves nothing. For the same reason, training problems that share eight words in a row with a benchmark go as well.

# %%
sets = prepare.decontaminate(prepare.clean(sets, run.profile, tokenizer), run.profile)
tables.counts(sets)

# %% [markdown]
# What the benchmarks removed, and by which words.

# %%
tables.contaminated(sets)

# %% [markdown]
# ## Format
# The same problem as the model sees it. The chat template ends every prompt with the opening tag, so the model starts by
# working out; its thought, its answer and the end of the text are what it has to learn. Some examples of the tiny profile
# have an empty thought on purpose: they show the format and leave the reasoning to be discovered.

# %%
ready = prepare.format(sets, run.profile)
tables.training_text(ready, tokenizer)

# %% [markdown]
# ## Save
# One Parquet file a set, and a data card beside them that says where the rows come from.

# %%
digest = prepare.save(ready, sets, run.profile, run.folder)
run.finish(sha256=digest, **{f"{name}_rows": len(ready[name]) for name in ready})
