# %% [markdown]
# # AIMO train: the stages of a profile, in one session or in several
#
# Prepares the data, trains the profile's stages and leaves in `run/` a merged model of each stage
# (`run/STAGE/model`), the report (`run/report.html`), the executed notebooks, and the state from which the
# next version goes on.
#
# A stage that does not end in time is saved and merged before the session's end. To go on, attach this
# kernel's output to it as an input and push it again, with the same settings.
#
# Attach as inputs: the output of the kernel `wheels`, and the base model where it is not downloaded.

# %% [markdown]
# ## Settings

# %% tags=["parameters"]
overrides = []  # keys of the profile to change, each as KEY=VALUE, such as "grpo.max_steps=300"
session_s = 41400  # 11 h 30 min of the 12 h: the rest is for merging and saving

# %% [markdown]
# ## The profile

# %% tags=["profile"]

# %% [markdown]
# ## The package
# The modules of `aimo` and its notebooks as an archive in a folded cell, written by `aimo kernel build`:
# change them in the repository.

# %% tags=["package"]

# %% [markdown]
# ## Start

# %%
from aimo.inference import startup

with startup.step("wheels"):
    startup.install_wheels()
with startup.step("imports"):
    from aimo import pipeline

# %% [markdown]
# ## Train

# %%
model = pipeline.train_in_session("profile.yaml", overrides, session_s)
print(f"model: {model}")

# %%
from pathlib import Path

from aimo.report import tables
from aimo.run import runs

tables.table([{"model": name} | row for name, row in runs.figures(Path("run")).items()])
