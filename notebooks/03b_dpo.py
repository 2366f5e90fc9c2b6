# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3 (ipykernel)
#     language: python
#     name: python3
# ---

# %% [markdown]
# # 3b. DPO
#
# A model trained by reward alone tends to reason at length, and a competition limits the time. Direct
# preference optimisation (DPO) takes pairs of the model's own completions of one problem, a short right one
# and a long right or a wrong one, and trains it to prefer the first. AIMO 2's second place shortened its
# answers this way. A run has this stage when its profile has a `dpo` section.

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
from aimo.report import plots, tables
from aimo.run import runs
from aimo.train import dpo

run = runs.begin("dpo", profile, run_dir, overrides, redo)
rows = prepare.read_set(run.dir / "data", "grpo")
probe = prepare.read_set(run.dir / "data", "grpo_test")
examples = prepare.read_set(run.dir / "data", "heldout")[:4]
start = run.start_model()

# %% [markdown]
# ## Pairs
# The model that this stage starts from answers each problem several times.

# %%
pairs = dpo.sample_pairs(start, rows, run)
tables.preferences(pairs)

# %% [markdown]
# ## Load

# %%
from aimo.train import models

model = models.load_model(start, run.profile)
tokenizer = models.load_tokenizer(start, run.profile)
before = models.complete(model, tokenizer, examples, run.solver_settings().max_tokens)

# %% [markdown]
# ## Train

# %%
from aimo.train import trainers  # after the model: Unsloth replaces TRL's classes

log = dpo.train_dpo(model, tokenizer, pairs, run, probe)
plots.training(log)

# %% [markdown]
# ## Before and after

# %%
after = models.complete(model, tokenizer, examples, run.solver_settings().max_tokens)
tables.completions(examples, before=before, after=after)

# %% [markdown]
# ## Save
# The adapter stays in `trained`; merged with the model it started from, it becomes the folder `model`, with
# a card.

# %%
trainers.finish(run, tokenizer, log, pairs=len(pairs))
