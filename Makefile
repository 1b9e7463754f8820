# make demo   sets up an environment and runs the whole main job on phantoms it makes itself
# make test   sets up the same environment and runs the checks and the quick tests
#
# PYTHON=python3.12 chooses the interpreter; PIP_ARGS passes options to pip, such as the index of PyTorch's CPU
# builds (pytorch.org, "Start locally", Compute Platform: CPU), which saves gigabytes on a machine without a GPU.

PYTHON ?= python3
PIP_ARGS ?=
VENV := .venv
BIN := $(VENV)/bin
DEMO := demo
DEMO_EPOCHS ?= 20

.DELETE_ON_ERROR:
.PHONY: help venv test test-slow lint demo clean

help:
	@sed -n 's/^# \{0,1\}//p;/^$$/q' Makefile

venv: $(VENV)/installed

# Installed anew only when what is to be installed has changed.
$(VENV)/installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "needs Python 3.11 or newer, got " + sys.version.split()[0] + ": give another by PYTHON=")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet $(PIP_ARGS) --constraint constraints.txt --editable ".[test]"
	@touch $@

lint: venv
	$(BIN)/ruff check .
	$(BIN)/lint-imports
	$(BIN)/mypy

test: lint
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto -m "not slow"

test-slow: venv
	$(BIN)/python -m pytest -m slow

# From nothing to a score: phantoms, their check; the small model that ships, as it is; its decoder fine-tuned by
# L1DFL; both on the test cases, from one simulated click per lesion; evaluation with figures.
demo: venv
	rm -rf $(DEMO)
	mkdir -p $(DEMO)/clicks
	$(BIN)/sammed3d-ft phantom --out $(DEMO)/data --cases 12 --val 2 --test 2 --seed 1 --field pelvis
	$(BIN)/sammed3d-ft check $(DEMO)/data/manifest.json
	$(BIN)/accelerate launch --num_processes 1 --num_machines 1 --mixed_precision no --dynamo_backend no \
		finetune.py --config configs/demo.yaml run.dir=$(DEMO)/run \
		data.manifest=$(DEMO)/data/manifest.json optim.epochs=$(DEMO_EPOCHS)
	set -e; for label in $(DEMO)/data/labelsTs/*.nii.gz; do \
		case=$$(basename $$label .nii.gz); \
		$(BIN)/sammed3d-ft prompts make $$label --out $(DEMO)/clicks/$$case.json; \
		for when in before after; do \
			checkpoint="mini --spacing-mm 1.5"; \
			if [ $$when = after ]; then checkpoint=$(DEMO)/run/export/model.safetensors; fi; \
			$(BIN)/sammed3d-ft predict --image $(DEMO)/data/imagesTs/$${case}_0001.nii.gz \
				--clicks $(DEMO)/clicks/$$case.json --checkpoint $$checkpoint \
				--out $(DEMO)/$$when/masks/$$case.nii.gz --table $(DEMO)/$$when/lesions/$$case.csv; \
		done; \
	done
	set -e; for when in before after; do \
		$(BIN)/sammed3d-ft evaluate --pred $(DEMO)/$$when/masks --gt $(DEMO)/data/manifest.json --split test \
			--out $(DEMO)/$$when/scores --figures > $(DEMO)/$$when/scores.txt; \
	done
	@echo
	@echo "Test cases, one click per lesion, before fine-tuning:"; grep -E "dice |f1_iou0.1" $(DEMO)/before/scores.txt | head -2
	@echo "and after:"; grep -E "dice |f1_iou0.1" $(DEMO)/after/scores.txt | head -2
	@echo
	@echo "Phantoms         $(DEMO)/data"
	@echo "Training         $(DEMO)/run (curves.png, metrics.jsonl, export/model.safetensors)"
	@echo "Masks, tables    $(DEMO)/before and $(DEMO)/after: masks, lesions, scores"
	@echo "Figures          $(DEMO)/after/scores/figures (projections of truth and prediction), and in before/"

clean:
	rm -rf $(VENV) $(DEMO) build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
