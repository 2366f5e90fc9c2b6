# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3 (ipykernel)
#     language: python
#     name: python3
# ---

# %% [markdown]
# # 3. GRPO
#
# Group relative policy optimisation (GRPO) trains a model on its own completions. For each problem it
# samples a *group* of completions, and the reward functions score them, for instance 1 for a right answer.
# Completions above the mean of their group become more likely, the others less. The model sees no worked
# solutions.
#
# The reward should rise. Completions often grow longer, because working a problem out earns more reward.

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
from aimo.evaluation import scores
from aimo.report import plots, tables
from aimo.run import runs

run = runs.begin("grpo", profile, run_dir, overrides, redo)
rows = prepare.read_set(run.dir / "data", "grpo")
probe = prepare.read_set(run.dir / "data", "grpo_test")
examples = prepare.read_set(run.dir / "data", "heldout")[:4]
start = run.start_model()

# %% [markdown]
# ## Difficulty
# A problem that the model always or never solves gives no gradient: all completions of its group get the
# same reward. With `grpo.pass_rate` in the profile, each problem is sampled first, and those outside the
# bounds are left out.

# %%
rows, rates = scores.within_pass_rate(start, rows, run)
plots.pass_rates(rates, run.profile.grpo.pass_rate)

# %% [markdown]
# ## Load
# The model that the last stage trained, or the base.

# %%
from aimo.train import models

model = models.load_model(start, run.profile, with_vllm=run.profile.grpo.generation == "vllm")
tokenizer = models.load_tokenizer(start, run.profile)
before = models.complete(model, tokenizer, examples, run.solver_settings().max_tokens)

# %% [markdown]
# ## Train

# %%
from aimo.train import grpo, trainers  # after the model: Unsloth replaces TRL's classes

log = grpo.train_grpo(model, tokenizer, rows, run, probe)
plots.training(log)

# %% [markdown]
# Completions sampled during training, with their rewards.

# %%
tables.samples(run.folder / "samples.jsonl")

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
trainers.finish(run, tokenizer, log)
