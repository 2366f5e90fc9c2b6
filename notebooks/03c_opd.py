# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3 (ipykernel)
#     language: python
#     name: python3
# ---

# %% [markdown]
# # 3c. On-policy distillation
#
# The model writes a completion of each problem, and a stronger teacher with the same vocabulary grades every
# token of it. GRPO learns one number from a completion; on-policy distillation (OPD) learns one from each of
# its tokens, and needs a fraction of the steps, but ends at the teacher. A run has this stage when its
# profile has an `opd` section.

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

run = runs.begin("opd", profile, run_dir, overrides, redo)
rows = prepare.read_set(run.dir / "data", "grpo")
probe = prepare.read_set(run.dir / "data", "grpo_test")
examples = prepare.read_set(run.dir / "data", "heldout")[:4]

# %% [markdown]
# ## Load
# The student is the model of the stage before, or the base.

# %%
from aimo.train import models

start = run.start_model()
model = models.load_model(start, run.profile)
tokenizer = models.load_tokenizer(start, run.profile)
before = models.complete(model, tokenizer, examples, run.solver_settings().max_tokens)

# %% [markdown]
# ## Train
# The teacher's vocabulary and end of turn are checked first: it must grade what was written.

# %%
from aimo.train import opd, trainers  # after the model: Unsloth replaces TRL's classes

log = opd.train_opd(model, tokenizer, rows, run, probe)
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
trainers.finish(run, tokenizer, log, teacher=run.profile.opd.teacher)
