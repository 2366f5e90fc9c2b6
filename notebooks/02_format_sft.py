# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # 2. Format SFT
#
# A base model continues text; it does not know that it should think between our tags and put its answer where we can find
# it. A short supervised fine-tuning (SFT) on a few worked examples is enough to teach that. It is not meant to make the
# model smarter: it gives reinforcement learning something it can score.
#
# Only small adapter matrices (LoRA) are trained, next to frozen weights; at the end they are merged into a plain model.

# %% tags=["parameters"]
profile = "tiny"  # a name in notebooks/profiles, or a path to a YAML file
run_dir = None  # everything this run makes; None is runs/PROFILE
overrides = []  # keys of the profile to change, each as KEY=VALUE

# %%
from aimo import hub, runs
from aimo.data import prepare
from aimo.report import plots, tables
from aimo.training import models, trainers

run = runs.begin("sft", profile, run_dir, overrides)
rows = prepare.read(run.dir / "data", "sft")
test, probe = (prepare.set_aside(run.dir / "data", name) for name in ("sft", "grpo"))
examples = prepare.read(run.dir / "data", "heldout")[:4]
base = hub.local_folder(run.profile.model.base)

# %% [markdown]
# ## Load

# %%
model = models.load(base, run.profile)
tokenizer = models.load_tokenizer(base, run.profile)
before = trainers.complete(model, tokenizer, examples, run.profile.inference.max_tokens)

# %% [markdown]
# ## Train
# The loss says how surprised the model is by each next token of the completions (the problems themselves do not count).
# A base that never saw the tags starts high and falls fast. The tiny base has seen them, so it starts low: what remains is
# what cannot be foreseen, such as whether this example thinks or answers at once. (A spike between two epochs is a last batch
# with few examples in it.) The probe answers problems that no stage trains on, as the model goes.

# %%
log = trainers.sft(model, tokenizer, rows, run.profile, run.folder, run.progress, test, probe)
plots.training(log)

# %% [markdown]
# ## Before and after
# The most likely completion of a few held-out problems. Look at the form first, at the answers second.

# %%
after = trainers.complete(model, tokenizer, examples, run.profile.inference.max_tokens)
tables.completions(examples, base=before, sft=after)

# %% [markdown]
# ## Save
# The adapter stays in `trained`; merged with the base it makes a plain model folder, with a card.

# %%
figures = trainers.summary(log)
models.save(
    run.folder / "trained", base, tokenizer, run.profile, run.folder / "model", figures | run.data_hash()
)
hub.push(run.folder / "model", run.profile)
run.finish(**figures)
