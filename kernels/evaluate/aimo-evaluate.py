# %% [markdown]
# # AIMO evaluate: the solver on problems with known answers

# %% [markdown]
# ## Settings

# %% tags=["parameters"]
competition = "aimo3"  # aimo1, aimo2 or aimo3
model = "/kaggle/input/aimo-model/transformers/default/1"  # a model folder
seed = 0
settings = {}

# %% [markdown]
# ## The package

# %% tags=["package"]
