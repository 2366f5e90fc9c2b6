# %% [markdown]
# # AIMO evaluate: the submission's solver on problems with known answers
#
# Answers each file as the kernel `submission` would, in the passes of the competition, and scores it by its
# points: what to run before a submission is spent. Leaves `evaluation.html`, `evaluation.json`, the settings
# and a journal of each pass with every sample.
#
# Attach as inputs: a model folder that `aimo run` made, the output of the kernel `wheels`, and data sets with
# the files.

# %% [markdown]
# ## Settings

# %% tags=["parameters"]
competition = "aimo3"  # aimo1, aimo2 or aimo3
model = "/kaggle/input/aimo-model/transformers/default/1"  # a model folder
# CSV or JSON lines with id, problem (or question) and answer. Answers that the competition does not take are
# left out.
files = ["/kaggle/input/aimo-problems/reference.csv"]
time_limit_s = 17400  # for all files: 4 h 50 min of the 5 h of a submission
seed = 0
adapter = None  # a folder with a LoRA adapter for the model
# Over those that the model folder has (aimo.json, generation_config.json). Lines that begin with # show the
# other keys and their defaults.
settings = {}

# %% [markdown]
# ## The package
# The modules of `aimo` in folded cells, written by `aimo kernel build`: an archive, then those that decide an
# answer, to read and to change.

# %% tags=["package"]

# %% [markdown]
# ## Start

# %%
from aimo.inference import startup

model, files, adapter = startup.find_input([model, files, adapter])
startup.read_ahead(model)  # in threads, while the rest goes on
with startup.step("wheels"):
    startup.install_wheels(startup.imports())  # of the modules above
with startup.step("imports"):
    from aimo.evaluation import submission

# %% [markdown]
# ## Evaluate

# %%
evaluation = submission.evaluate_submission(competition, model, files, time_limit_s, settings, adapter, seed)

# %%
from aimo.report import tables

tables.table(evaluation)
