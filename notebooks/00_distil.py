# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3 (ipykernel)
#     language: python
#     name: python3
# ---

# %% [markdown]
# # 0. Distillation
#
# A strong model, the teacher, answers each problem several times. Its right answers become worked solutions
# for the next notebook (`data.sft: {source: distil}`). OpenR1-Math-220k and the models that won earlier
# olympiads were made this way.
#
# The teacher runs behind OpenAI-compatible servers: those of `distil.api_addr`, or one that this notebook
# starts for `distil.model`. A profile without a `distil` section skips this notebook.

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
profile = "tiny-distil"  # a name in notebooks/profiles, or a path to a YAML file
run_dir = None  # the folder of the run; None is runs/PROFILE
overrides = []  # keys of the profile to change, each as KEY=VALUE
redo = False  # True does this stage again from its start

# %%
from aimo.data import distil
from aimo.evaluation.scores import SoFar
from aimo.report import pages, plots, tables
from aimo.run import runs

run = runs.begin("distil", profile, run_dir, overrides, redo)

# %% [markdown]
# ## Ask
# Every completion becomes a line of `samples.jsonl` when it ends. Run again, this cell asks for what is
# missing.

# %%
tally = distil.distil_in_run(run, SoFar(run.profile.prompt.tags, run.profile.answer_kind))
print(tally)

# %% [markdown]
# ## Reject
# The final answer decides. Right, finished completions stay within the limits of `distil.reject`: a few for
# each problem, short or different ones, of problems that are neither too easy nor too hard.

# %%
found = distil.reject_in_run(run)
print(found)

# %% [markdown]
# The teacher's pass rate by problem, and some completions that stay.

# %%
plots.pass_rates(found.problems["pass_rate"].to_list(), run.profile.distil.reject.pass_rate)

# %%
tables.table(found.kept.head(3).to_dicts())

# %%
bounds = run.profile.distil.reject.pass_rate
pages.write_distillation(run.dir / "distillation.html", run.profile.profile, found, bounds)
run.finish(
    kept=len(found.kept),
    problems=len(found.problems),
    failed=tally.failed.total(),
    tokens=tally.completion_tokens,
    pass_rate=found.problems["pass_rate"].mean(),
)
pages.write_by_hand(run.dir)
