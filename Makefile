# make demo       set up .venv, make phantoms, fine-tune the small model on them, and compare before and after
# make test       set up .venv, run linting and type checks, then the quick tests
# make test-slow  slow tests: end to end, several processes
# make docs       build the documentation site into site/
# make lint       linting, formatting, import contracts and type checks
#
# PYTHON=python3.12 chooses the interpreter. PIP_ARGS passes options to pip, such as the index of PyTorch's CPU builds
# (pytorch.org, "Start locally", Compute Platform: CPU), which saves gigabytes on a machine without a GPU.

PYTHON ?= python3
PIP_ARGS ?=
VENV := .venv
BIN := $(VENV)/bin
DEMO := demo
DEMO_EPOCHS ?= 10

.DELETE_ON_ERROR:
.PHONY: help venv test test-slow lint docs demo clean

help:
	@sed -n 's/^# \{0,1\}//p;/^$$/q' Makefile

venv: $(VENV)/installed

# Reinstalled only when the requirements change.
$(VENV)/installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "needs Python 3.11 or newer, got " + sys.version.split()[0] + ": choose another with PYTHON=")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet $(PIP_ARGS) --constraint constraints.txt --editable ".[test]"
	@touch $@

lint: venv
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports
	$(BIN)/mypy

test: lint
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto -m "not slow"

test-slow: venv
	$(BIN)/python -m pytest -m slow

docs: venv
	@$(BIN)/python -m pip install --quiet $(PIP_ARGS) --constraint constraints.txt --editable ".[docs]"
	@NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

# What fine-tuning gains: makes phantoms of another kind than those the shipped model was trained on (an older scanner,
# lesions outlined at 25 % of their maximum), fine-tunes the model's decoder on some of them, and segments the others
# before and after, with one and three simulated clicks per lesion. The result is two figures.
demo: venv
	rm -rf $(DEMO)
	$(BIN)/sammed3d-ft phantom --out $(DEMO)/data --cases 22 --val 4 --test 8 --seed 1 \
		--field pelvis --scanner older --outline 25%
	$(BIN)/accelerate launch --num_processes 1 --num_machines 1 --mixed_precision no --dynamo_backend no \
		finetune.py --config configs/demo.yaml run.dir=$(DEMO)/run \
		data.manifest=$(DEMO)/data/manifest.json optim.epochs=$(DEMO_EPOCHS)
	$(BIN)/python scripts/demo_figures.py $(DEMO)/data/manifest.json $(DEMO)/run/export/model.safetensors --out $(DEMO)
	@echo
	@echo "Before and after    $(DEMO)/gain.png (every test lesion), $(DEMO)/lesions.png (three of them)"
	@echo "Training            $(DEMO)/run (curves.png, metrics.jsonl, export/model.safetensors)"
	@echo "With your own cases: docs/how-to/few-cases.md"

clean:
	rm -rf $(VENV) $(DEMO) build dist site .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
