# %% [markdown]
# # AIMO train: the stages of a profile

# %% [markdown]
# ## Settings

# %% tags=["parameters"]
overrides = []  # keys of the profile to change, each as KEY=VALUE

# %% tags=["profile"]

# %% [markdown]
# ## The package

# %% tags=["package"]
