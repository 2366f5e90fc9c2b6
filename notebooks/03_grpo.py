# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # 3. GRPO
#
# Now the model learns from its own attempts. For each problem it writes a *group* of completions; each gets a reward, 1 if
# its answer is right. Completions better than their group's mean are made more likely, worse ones less likely. That is
# group relative policy optimisation (GRPO): no worked solutions, no second model that judges, only right or wrong.
#
# What to look for: the reward rises, and the completions grow longer. Nobody asked for longer ones; working a problem out
# simply pays.

# %% tags=["parameters"]
profile = "tiny"  # a name in notebooks/profiles, or a path to a YAML file
run_dir = None  # everything this run makes; None is runs/PROFILE
overrides = []  # keys of the profile to change, each as KEY=VALUE

# %%
from aimo import hub, runs
from aimo.data import prepare
from aimo.evaluation import metrics
from aimo.report import plots, tables
from aimo.training import models, trainers

run = runs.begin("grpo", profile, run_dir, overrides)
rows = prepare.read(run.dir / "data", "grpo")
probe = prepare.set_aside(run.dir / "data", "grpo")
examples = prepare.read(run.dir / "data", "heldout")[:4]
start = run.dir / "sft/model"

# %% [markdown]
# ## Difficulty
# A problem that the model always solves, or never, teaches nothing: all completions of its group get the same reward. With
# `grpo.pass_rate` in the profile, each problem is tried a few times first, and those outside the bounds are left out.

# %%
rows, rates = metrics.within_pass_rate(start, rows, run)
plots.pass_rates(rates, run.profile.grpo.pass_rate)

# %% [markdown]
# ## Load what format SFT left

# %%
model = models.load(start, run.profile, with_vllm=run.profile.grpo.generation == "vllm")
tokenizer = models.load_tokenizer(start, run.profile)
before = trainers.complete(model, tokenizer, examples, run.profile.inference.max_tokens)

# %% [markdown]
# ## Train

# %%
log = trainers.grpo(model, tokenizer, rows, run.profile, run.folder, run.progress, probe)
plots.training(log)

# %% [markdown]
# What the model wrote on the way, and what it got for it.

# %%
tables.samples(runs.read_lines(run.folder / "samples.jsonl"))

# %% [markdown]
# ## Before and after

# %%
after = trainers.complete(model, tokenizer, examples, run.profile.inference.max_tokens)
tables.completions(examples, sft=before, grpo=after)

# %% [markdown]
# ## Save

# %%
figures = trainers.summary(log)
models.save(
    run.folder / "trained", start, tokenizer, run.profile, run.folder / "model", figures | run.data_hash()
)
hub.push(run.folder / "model", run.profile)
run.finish(**figures)
