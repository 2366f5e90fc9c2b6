# The verbs a user types. `make demo` and `make test` set everything up first; nothing is installed twice.
SHELL := /bin/bash
.DEFAULT_GOAL := help
PROFILE ?= tiny
PYTHON ?= $(firstword $(foreach p,python3 python3.12 python3.11,$(shell $(p) -c 'import sys; sys.exit(sys.version_info[:2] not in ((3, 11), (3, 12)))' 2>/dev/null && echo $(p))))
LOCK := $(if $(shell nvidia-smi -L >/dev/null 2>&1 && echo gpu),requirements.txt,requirements-cpu.txt)
TORCH := $(shell grep -s '^torch==' $(LOCK))
PIP := .venv/bin/pip install -qq --no-deps
# Where a container sets this, each process would compile the sources and pytest rewrite every test again.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: help setup demo smollm2 demo-real fast test run jupyter online pictures sync lint docs lock kernels push bench rehearsal gpu-check

help: ## this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /\1\t/' | expand -t 10

setup: .venv/.installed ## install the lock file that fits this machine (CPU or NVIDIA GPU) into .venv

.venv/.installed: $(LOCK) pyproject.toml
	@test -n "$(PYTHON)" || { echo "aimo: no Python 3.11 or 3.12 here; install one, or name it: make setup PYTHON=/path/to/python3.12"; exit 2; }
	@echo "Installing $$(grep -c == $(LOCK)) packages from $(LOCK) into .venv; this takes a few minutes."
	@$(PYTHON) -m venv .venv
	@# Where pip's own index has no CPU build of torch, uv knows PyTorch's.
	@$(PIP) '$(TORCH)' 2>/dev/null || { $(PIP) "$$(grep '^uv==' $(LOCK))" && .venv/bin/uv pip install -q --python .venv/bin/python --no-deps --torch-backend $(if $(findstring cpu,$(TORCH)),cpu,auto) '$(TORCH)'; }
	@$(PIP) -r $(LOCK)
	@$(PIP) --no-build-isolation -e .
	@# Notebooks that were run show no change, and are committed without their outputs.
	@git config filter.notebook.clean 'python3 docs/clean.py' 2>/dev/null || true
	@touch $@

demo: setup ## the notebooks from problems to a submission, on a laptop CPU
	.venv/bin/aimo run --profile tiny

smollm2: setup ## SmolLM2-135M-Instruct, a real model, into data/ (270 MB), and problems for it
	.venv/bin/python data/smollm2/make.py
	.venv/bin/python data/smollm2/problems.py

demo-real: smollm2 ## the notebooks with SmolLM2-135M-Instruct, on a laptop CPU in half an hour
	.venv/bin/aimo run --profile smollm2

# One thread for each process of the tests: with more, they wait for each other's.
fast: setup ## the tests without an engine and without training, in about 75 seconds
	OMP_NUM_THREADS=1 .venv/bin/pytest -q -n 3 --dist loadfile -m "not slow"

test: fast ## all tests, in about 11 minutes
	@# Three processes, because engines wait while they start.
	OMP_NUM_THREADS=1 VLLM_CPU_OMP_THREADS_BIND=nobind .venv/bin/pytest -n 3 --dist loadfile --no-loadscope-reorder -m slow

run: setup ## make run PROFILE=qwen3-4b
	.venv/bin/aimo run --profile $(PROFILE)

jupyter: setup ## the notebooks in JupyterLab
	@# Jupyter refuses root, which containers and Kaggle's image use, unless it is told to run.
	.venv/bin/jupyter lab $(if $(filter 0,$(shell id -u)),--allow-root) --LabApp.default_url=/lab/tree/notebooks/01_data_prep.ipynb

online: ## write the GitHub repository of git's origin where Kaggle's and Colab's editors and the badges need it
	sed -i "s#/OWNER/aimo\b#/$$(git remote get-url origin | sed -E 's#.*github\.com[:/]##; s#\.git$$##')#" notebooks/*.py notebooks/*.ipynb README*.md docs/notebooks.md

pictures: setup ## the pictures of the notebooks in docs/, from JupyterLab in a browser, in about ten minutes
	.venv/bin/python docs/pictures.py

sync: setup ## make each notebook's .ipynb and .py equal again
	.venv/bin/jupytext --sync notebooks/*.py

lint: setup ## style, types, imports between modules, dependencies, spelling, notebook pairs
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/lint-imports
	.venv/bin/deptry --no-ansi .
	.venv/bin/codespell
	.venv/bin/mypy
	.venv/bin/pytest -q tests/test_notebooks.py

docs: setup ## the pages of docs/ as a site, which opens from site/index.html
	.venv/bin/python docs/profiles.py
	@# The variable: no notice of the theme's successor.
	NO_MKDOCS_2_WARNING=1 .venv/bin/mkdocs build -q

bench: setup ## the figures of the whole pipeline for seeds 0, 1 and 2
	.venv/bin/python benchmarks/road.py

gpu-check: setup ## ten minutes of everything that only a GPU can show (docs/training.md); without one, on a CPU
	.venv/bin/python benchmarks/gpu.py

kernels: setup ## build the Kaggle kernels from the sources; PROFILE=NAME puts its settings in
	.venv/bin/aimo kernel build $(if $(filter-out tiny,$(PROFILE)),--profile $(PROFILE))

rehearsal: setup ## every step from wheels to a score, against a stand-in for Kaggle (docs/kaggle.md)
	.venv/bin/python benchmarks/rehearsal.py

push: kernels ## push the submission kernel to Kaggle (docs/kaggle.md)
	.venv/bin/aimo kaggle push submission

# jsonschema checks a format with it that nothing here has, and builds its grammars in a second of each process.
NOWHERE := rfc3987-syntax
# unsloth on a CPU needs none of these: the CUDA builds break CPU torch, torchao's costs a second of each process.
NO_CPU := torchao torchvision torchaudio torchcodec triton xformers
WITHOUT = --override <(printf "%s ; sys_platform == 'never'\n" $(1))
# Where pip finds CPU torch by itself, uv looks in the same place; elsewhere it knows PyTorch's own index.
CPU_TORCH := $(if $(PIP_FIND_LINKS),--find-links $(PIP_FIND_LINKS),--torch-backend cpu)
COMPILE := .venv/bin/uv pip compile -q pyproject.toml --extra dev --universal --python-version 3.11 --no-annotate $(if $(UPGRADE),--upgrade) --custom-compile-command 'make lock; install with: pip install --no-deps -r THIS_FILE'

lock: ## bring both lock files up to pyproject.toml, for Python 3.11 and 3.12; with UPGRADE=1 newer packages too
	@test -x .venv/bin/uv || { $(PYTHON) -m venv .venv && $(PIP) uv; }
	$(COMPILE) --extra gpu -o requirements.txt $(call WITHOUT,$(NOWHERE))
	$(COMPILE) --extra cpu -o requirements-cpu.txt $(CPU_TORCH) $(call WITHOUT,$(NOWHERE) $(NO_CPU))
