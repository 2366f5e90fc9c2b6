# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3 (ipykernel)
#     language: python
#     name: python3
# ---

# %% [markdown]
# # 2. Supervised fine-tuning
#
# A base model continues text. It does not know that it should think between the profile's tags and put its
# answer where a program finds it. Supervised fine-tuning (SFT) on worked examples teaches that. A short SFT
# teaches the format, so that reinforcement learning has something to score. A long one on a stronger
# model's traces distils it.
#
# LoRA trains only small adapter matrices beside the frozen weights, and the stage merges them at its end.

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

run = runs.begin("sft", profile, run_dir, overrides, redo)
rows = prepare.read_set(run.dir / "data", "sft")
test, probe = (prepare.read_set(run.dir / "data", name) for name in ("sft_test", "grpo_test"))
examples = prepare.read_set(run.dir / "data", "heldout")[:4]

# %% [markdown]
# ## Load

# %%
start = run.start_model()
from aimo.train import models

model = models.load_model(start, run.profile)
tokenizer = models.load_tokenizer(start, run.profile)
before = models.complete(model, tokenizer, examples, run.solver_settings().max_tokens)

# %% [markdown]
# ## The least likely tokens
# A token that the model finds very unlikely moves it most, and is often a slip: a leap, a typo, another
# format. `data.sft.min_logprob` drops the solutions with a token below it. Without it, nothing is dropped,
# and this looks at the first 256.

# %%
from aimo.train import sft, trainers  # after the model: Unsloth replaces TRL's classes

worst = sft.worst_tokens(model, tokenizer, rows, run)
plots.plot_worst_tokens(worst, sft.min_logprob(run))

# %%
tables.worst_tokens_of_solutions(rows, worst)

# %% [markdown]
# ## Train
# The loss is the mean negative log-likelihood of the completions' tokens; the prompts' tokens do not count.
# A base that never saw the tags starts high and falls fast. The tiny base saw them and starts low: the rest
# cannot be predicted, such as whether an example thinks or answers at once. A step with few examples at the
# end of an epoch may show as a spike. The probe is the accuracy on problems that no stage trains on.

# %%
log = sft.train_sft(model, tokenizer, rows, run, test, probe)
plots.training(log)

# %% [markdown]
# ## Before and after
# The greedy completions of a few held-out problems.

# %%
after = models.complete(model, tokenizer, examples, run.solver_settings().max_tokens)
tables.completions(examples, before=before, after=after)

# %% [markdown]
# ## Save
# The adapter stays in `trained`; merged with the model it started from, it becomes the folder `model`, with
# a card.

# %%
trainers.finish(run, tokenizer, log)
