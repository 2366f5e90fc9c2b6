# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3 (ipykernel)
#     language: python
#     name: python3
# ---

# %% [markdown]
# # 1. Data
#
# A model learns what it is shown, so the data come first. This notebook makes the sets that the profile
# has:
#
# - **sft**: problems with a worked solution, which supervised fine-tuning imitates;
# - **grpo**: problems with their answer only, for GRPO and DPO;
# - **heldout**: problems that no stage trains on; they measure every model.
#
# Every answer must be an integer, as in the olympiad, unless the profile says otherwise. A problem is in
# one set only, but where `sft` and `grpo` take all rows of one source.

# %%
# Kaggle and Colab open this notebook alone: bring the rest. Elsewhere it is there, and this does nothing.
import importlib.util
import runpy
import subprocess

if importlib.util.find_spec("aimo") is None:
    clone = "git clone -q --depth 1 https://github.com/OWNER/aimo aimo-source"
    subprocess.run(f"test -d aimo-source || {clone}", shell=True, check=True)
    runpy.run_path("aimo-source/docs/online.py")

# %% tags=["parameters"]
profile = "tiny"  # a name in notebooks/profiles, or a path to a YAML file
run_dir = None  # the folder of the run; None is runs/PROFILE
overrides = []  # keys of the profile to change, each as KEY=VALUE
redo = False  # True does this stage again from its start

# %%
from aimo.data import prepare
from aimo.report import pages, tables
from aimo.run import runs
from aimo.train import models

run = runs.begin("data", profile, run_dir, overrides, redo)
tokenizer = models.load_tokenizer(run.start_model(), run.profile)

# %% [markdown]
# ## Read
# The profile names the sources and the columns that hold `problem`, `answer` and `solution`. One row of
# each set:

# %%
sets = prepare.load_sets(run.profile, run.dir)
tables.table(
    [
        {"set": name} | rows.select("source", "problem", "answer", "solution").row(0, named=True)
        for name, rows in sets.rows.items()
    ]
)

# %% [markdown]
# ## Clean
# Each row is kept, or dropped for one reason. Held-out problems must measure what a model has not seen, so
# training problems that are also held out are dropped, and so are those that share eight words in a row
# with a set of `data.decontaminate`.

# %%
sets = prepare.decontaminate_sets(prepare.clean_sets(sets, run.profile, tokenizer), run.profile)
tables.counts(sets)

# %% [markdown]
# The rows that decontamination dropped, with the shared words.

# %%
tables.shared_words(sets)

# %% [markdown]
# ## Format
# The problems as the model sees them. The chat template ends every prompt with the opening tag of the
# thought, so a completion starts inside it. The loss covers the thought, the answer and the end of the
# text. Some examples of the tiny profile have an empty thought on purpose: they show the format, and GRPO
# finds the reasoning.

# %%
ready = prepare.format_sets(sets, run.profile)
tables.training_text(ready, tokenizer)

# %% [markdown]
# ## Save
# One Parquet file for each set, and a data card that says where the rows come from.

# %%
digest = prepare.write_sets(ready, sets, run.profile, run.folder)
kept = prepare.told(sets)
run.finish(sha256=digest, kept=kept, **{f"{name}_rows": len(ready[name]) for name in ready})
pages.write_by_hand(run.dir)
