# %% [markdown]
# # AIMO submission: many samples, one vote
#
# Answers each question with a majority vote over many vLLM samples, behind Kaggle's inference server. In a
# competition rerun the server starts at once and the model loads while it waits. Elsewhere the questions of
# `test_csv` are answered through a local gateway that makes the same calls and the same checks, and
# `submission.parquet` is written.
#
# Attach as inputs: the competition, a model folder that `aimo run` made, and the output of the kernel
# `wheels`.

# %% [markdown]
# ## Settings

# %% tags=["parameters"]
competition = "aimo3"  # aimo1, aimo2 or aimo3
model = "/kaggle/input/aimo-model/transformers/default/1"  # a model folder
test_csv = "/kaggle/input/ai-mathematical-olympiad-progress-prize-3/test.csv"
time_limit_s = 17400  # of the whole session: 4 h 50 min of the 5 h with a GPU
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

model, test_csv, adapter = startup.find_input([model, test_csv, adapter])
startup.read_ahead(model)  # in threads, while the rest goes on
needed = startup.imports()  # by the modules above
with startup.step("wheels"):
    startup.install_wheels(needed)
startup.check_modules(*needed)
with startup.step("imports"):
    from aimo.inference import gateway

# %% [markdown]
# ## Answer

# %%
solutions = gateway.serve_submission(competition, model, test_csv, time_limit_s, settings, adapter, seed)
