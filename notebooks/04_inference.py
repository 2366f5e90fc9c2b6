# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3 (ipykernel)
#     language: python
#     name: python3
# ---

# %% [markdown]
# # 4. Inference
#
# The most frequent answer of many samples is right more often than one sample, as long as no single wrong
# answer is more frequent than the right one. vLLM samples all completions of a question at once, and stops
# the others when the vote is settled.
#
# The base and each trained model are measured on the profile's held-out problems, if it has any. Then the
# last model answers the test file as in the competition.

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
from aimo.evaluation import evaluate, submission
from aimo.inference.engine import Engine
from aimo.report import pages, plots, tables
from aimo.run import runs

run = runs.begin("inference", profile, run_dir, overrides, redo)
heldout = prepare.read_set(run.dir / "data", "heldout")
engine = Engine(run.start_model(), run.solver_settings(), seed=run.profile.seed)

# %% [markdown]
# ## The models
# `format` is the share of completions in the tags, `pass@1` the probability that one completion is right,
# `maj@k` the probability that the vote of k completions is right.

# %%
evaluations = evaluate.evaluate_models(engine, run, heldout)
figures = {name: evaluation.metrics() for name, evaluation in evaluations.items()}
tables.evaluation(figures)

# %%
plots.plot_accuracy(figures, {name: evaluation.vote_curve() for name, evaluation in evaluations.items()})

# %% [markdown]
# ## The test file
# A gateway that checks each row asks the same `predict` that the Kaggle kernel serves.

# %%
solutions = submission.answer_test_file(engine, run)

# %%
plots.votes(solutions)

# %%
tables.answers(solutions)

# %% [markdown]
# ## Time and tokens
# The samples of each question, with the moment when the vote ended. Then the closest votes, with one
# completion for each of the two answers.

# %%
plots.timelines(solutions)

# %%
plots.cost(solutions)

# %%
tables.closest_votes(solutions)

# %%
engine.close()
run.finish(models=figures, **submission.count_right(solutions))
pages.write_by_hand(run.dir)
