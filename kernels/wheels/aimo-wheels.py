# %% [markdown]
# # AIMO wheels: what a submission installs without internet
#
# Collects the wheels of `requirements.txt` for this Python and Harmony's vocabulary, installs them without
# an index into a fresh environment, and writes `wheels.json`: name, version, file, hash and tags of each.
# Attach this kernel's output to the other kernels.

# %% [markdown]
# ## Settings

# %% tags=["parameters"]
requirements = "requirements.txt"  # the repository's own, in a cell below

# %% [markdown]
# ## The package
# Files of the repository in folded cells, written by `aimo kernel build`: change them there.

# %% tags=["package"]

# %% [markdown]
# ## Collect

# %%
from aimo.inference import wheels

manifest = wheels.collect(requirements)
