# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # 4. Inference
#
# A model that is right more often than it is wrong in any one way can be made much more reliable: ask it many times and
# take the most frequent answer. vLLM writes all samples of a question side by side, and as soon as no outstanding sample
# can change the vote, the rest are stopped.
#
# First the three models are measured on held-out problems, then the test file is answered as in the competition.

# %% tags=["parameters"]
profile = "tiny"  # a name in notebooks/profiles, or a path to a YAML file
run_dir = None  # everything this run makes; None is runs/PROFILE
overrides = []  # keys of the profile to change, each as KEY=VALUE

# %%
from aimo import runs
from aimo.data import prepare
from aimo.evaluation import metrics
from aimo.inference.engine import Engine
from aimo.report import plots, tables

run = runs.begin("inference", profile, run_dir, overrides)
heldout = prepare.read(run.dir / "data", "heldout")
engine = Engine(
    run.dir / run.profile.last_trained / "model", run.profile.inference.gpu_memory, run.profile.seed
)

# %% [markdown]
# ## What each stage brought
# `format` is the share of completions that keep to the tags, `pass@1` the chance that one completion is right, `maj@k` the
# chance that the vote of k completions is.

# %%
evaluations = metrics.compare(engine, run, heldout)
metrics = {name: e.metrics() for name, e in evaluations.items()}
tables.evaluation(metrics)

# %%
plots.accuracy(metrics, {name: e.majority() for name, e in evaluations.items()})

# %% [markdown]
# ## The test file
# Each question goes through the same `predict` that the Kaggle kernel serves, asked by a gateway that checks each row.

# %%
solutions = metrics.answer(engine, run)

# %%
plots.votes(solutions)

# %%
tables.answers(solutions)

# %% [markdown]
# ## Where the time went
# Each question's samples, stopped with the vote; then the closest votes in words.

# %%
plots.timelines(solutions)

# %%
plots.cost(solutions)

# %%
tables.closest_votes(solutions)

# %%
engine.close()
run.finish(**metrics, **metrics.score(solutions))
