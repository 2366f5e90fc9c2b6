# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # 2. Supervised fine-tuning
#
# A base model continues text. It does not know that it should think between the tags of the profile and put
# its answer where a program finds it. Supervised fine-tuning (SFT) on worked examples teaches that. A short
# SFT teaches the format, so that reinforcement learning has something to score. A long one on the traces of
# a stronger model distils it.
#
# With LoRA, only small adapter matrices next to the frozen weights are trained. They are merged when the
# stage ends.

# %% tags=["parameters"]
profile = "tiny"  # a name in notebooks/profiles, or a path to a YAML file
run_dir = None  # the folder of the run; None is runs/PROFILE
overrides = []  # keys of the profile to change, each as KEY=VALUE

# %%
from aimo.data import prepare
from aimo.report import plots, tables
from aimo.run import runs
from aimo.train import models, trainers

run = runs.begin("sft", profile, run_dir, overrides)
rows = prepare.read(run.dir / "data", "sft")
test, probe = (prepare.set_aside(run.dir / "data", name) for name in ("sft", "grpo"))
examples = prepare.read(run.dir / "data", "heldout")[:4]

# %% [markdown]
# ## Load

# %%
start = run.start_model()
model = models.load(start, run.profile)
tokenizer = models.load_tokenizer(start, run.profile)
before = trainers.complete(model, tokenizer, examples, run.solver_settings().max_tokens)

# %% [markdown]
# ## Train
# The loss is the mean negative log-likelihood of the completions' tokens; tokens of the prompts do not
# count. A base that has never seen the tags starts high and falls fast. The tiny base has seen them and
# starts low: what remains cannot be predicted, such as whether an example thinks or answers at once. A step
# with few examples, at the end of an epoch, may show as a spike. The probe is the accuracy on problems that
# no stage trains on.

# %%
log = trainers.sft(model, tokenizer, rows, run.profile, run.folder, run.progress, test, probe)
plots.training(log)

# %% [markdown]
# ## Before and after
# The greedy completions of a few held-out problems.

# %%
after = trainers.complete(model, tokenizer, examples, run.solver_settings().max_tokens)
tables.completions(examples, before=before, after=after)

# %% [markdown]
# ## Save
# An adapter stays in `trained`. Merged with the model it started from, it makes a model folder of its own,
# with a card.

# %%
trainers.finish(run, tokenizer, log)
