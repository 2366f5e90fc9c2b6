# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # 3b. DPO, if the profile has it
#
# A model that reasons by reward alone tends to reason at length, and in a competition time is what there is least of. Here it
# sees pairs of its own completions of one problem, a short right one and a long right or a wrong one, and learns to prefer the
# first: direct preference optimisation (DPO). The second place of AIMO 2 shortened its answers so.

# %% tags=["parameters"]
profile = "tiny"  # a name in notebooks/profiles, or a path to a YAML file
run_dir = None  # everything this run makes; None is runs/PROFILE
overrides = []  # keys of the profile to change, each as KEY=VALUE

# %%
from aimo import hub, runs
from aimo.data import prepare
from aimo.report import plots, tables
from aimo.training import models, preferences, trainers

run = runs.begin("dpo", profile, run_dir, overrides)
rows = prepare.read(run.dir / "data", "grpo")
probe = prepare.set_aside(run.dir / "data", "grpo")
examples = prepare.read(run.dir / "data", "heldout")[:4]
start = run.dir / "grpo/model"

# %% [markdown]
# ## Pairs
# The model after GRPO tries each problem a few times.

# %%
pairs = preferences.sample(start, rows, run)
tables.pairs(pairs)

# %% [markdown]
# ## Load what GRPO left, and train

# %%
model = models.load(start, run.profile)
tokenizer = models.load_tokenizer(start, run.profile)
before = trainers.complete(model, tokenizer, examples, run.profile.inference.max_tokens)

# %%
log = trainers.dpo(model, tokenizer, pairs, run.profile, run.folder, run.progress, probe)
plots.training(log)

# %% [markdown]
# ## Before and after

# %%
after = trainers.complete(model, tokenizer, examples, run.profile.inference.max_tokens)
tables.completions(examples, grpo=before, dpo=after)

# %% [markdown]
# ## Save

# %%
figures = trainers.summary(log)
models.save(
    run.folder / "trained", start, tokenizer, run.profile, run.folder / "model", figures | run.data_hash()
)
hub.push(run.folder / "model", run.profile)
run.finish(pairs=len(pairs), **figures)
