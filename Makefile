# Everything a user or developer runs; `make help` lists it. Each target makes .venv from env/ by itself.

# A Python 3.10 to 3.13 that makes .venv.
PYTHON ?= python3
# An extra package index for torch, such as https://download.pytorch.org/whl/cpu (smaller, no CUDA libraries).
TORCH_INDEX ?=
# Where `make demo` writes (`make report`: report_output, `make torture`: torture_output).
OUT ?= demo_output
# What `make report` segments: a folder of images (without one, the demo's), their labels if there are any, the task.
IN ?=
LABELS ?=
TASK ?= hippocampus
# How long `make torture` takes in seconds (300), the seed of its random choices (another each time), its parts (all).
TIME ?=
SEED ?=
PARTS ?=
# `make release`: the address under which files of more than 25 MB will lie.
LARGE_FILES ?=
# Extra arguments for pytest, the benchmark or the report's inference: make test ARGS="-k demo"
ARGS ?=

VENV := .venv
VENV_PYTHON := $(CURDIR)/$(VENV)/bin/python
REQUIREMENTS := env/requirements.txt env/requirements-dev.txt env/requirements-tracking.txt
# Installed without what they depend on.
ALONE := env/requirements-benchmarks.txt
# Named after the content, not the time: a checkout or a copied .venv does not install anew, a changed pin does.
STAMP := $(VENV)/.installed-$(shell cat $(REQUIREMENTS) $(ALONE) | cksum | tr ' ' '-')

INFERENCE_CONFIG = ['configs/inference.json','configs/tasks/$(TASK).json']
# As inference reads them: an overlay may say only what it changes.
TASK_FILES = configs/tasks/hippocampus.json configs/tasks/$(TASK).json
WRITE_DEMO_INPUT := from sys import argv; from pathlib import Path; from scripts.demo import load_template, write_inputs; \
	write_inputs(load_template(), Path(argv[1]))

BUNDLE_NAME := lightm_unet_segmentation
BUNDLE_OUTPUTS := output eval prediction runs mlruns demo_output
# torch and numba have packages for Linux, Windows and Macs with an M chip and macOS 14.
UNSERVED := import platform, sys; \
	mac = platform.mac_ver()[0] if sys.platform == "darwin" else ""; \
	intel = mac and platform.machine() == "x86_64"; \
	old = mac and int(mac.split(".")[0]) < 14; \
	sys.exit("Macs with an Intel chip" if intel else "macOS " + mac if old else 0)
READ_VERSION := import json; print(json.load(open("bundle/configs/metadata.json", encoding="utf-8"))["version"])

.DEFAULT_GOAL := help
.PHONY: help demo report test zoo torture lint bench mamba tables release clean

help:  ## list the targets
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z]+):.*## */  make \1\t/' | expand -t 18

demo: $(STAMP)  ## segment both hippocampi of an embedded brain image on the CPU with the shipped weights
	@cd bundle && $(VENV_PYTHON) -m scripts.demo --output_dir "$(abspath $(OUT))"

# Where the task's folds are trained, if they are.
TRAINED = $(wildcard bundle/output/$(TASK)/fold_*/model_final.pt)

report: OUT := report_output
report: INPUT = $(abspath $(or $(IN),$(OUT)/input))
report: $(STAMP)  ## segment a folder, with your training if there is one, and report: IN=images LABELS=labels OUT=folder TASK=name
	@$(if $(wildcard bundle/configs/tasks/$(TASK).json),,$(error TASK: there is no bundle/configs/tasks/$(TASK).json))
ifneq ($(TRAINED),)
	@echo "make: $(words $(TRAINED)) trained fold(s) of $(TASK) in bundle/output/$(TASK): python -m scripts.finish"
	@$(if $(IN),,cd bundle && $(VENV_PYTHON) -c '$(WRITE_DEMO_INPUT)' "$(INPUT)")
	@cd bundle && $(VENV_PYTHON) -m scripts.finish --config_file "['configs/train.json','configs/tasks/$(TASK).json']" \
	--input_dir "$(INPUT)" $(if $(LABELS),--labels "$(abspath $(LABELS))") --output_dir "$(abspath $(OUT))" --overwrite \
	$(ARGS)
else
	@test -z "$$(ls "$(abspath $(OUT))/prediction" 2>/dev/null)" || \
	test -e "$(abspath $(OUT))/prediction/predictions.json" || { \
	echo "make: $(OUT)/prediction holds files that no prediction wrote: move them away, or give another OUT" >&2; exit 1; }
	@$(if $(IN),,cd bundle && $(VENV_PYTHON) -c '$(WRITE_DEMO_INPUT)' "$(INPUT)")
	@cd bundle && $(VENV_PYTHON) -m monai.bundle run inference --config_file "$(INFERENCE_CONFIG)" \
	--input_dir "$(INPUT)" --output_dir "$(abspath $(OUT))/prediction" --overwrite true $(ARGS)
	@cd bundle && $(VENV_PYTHON) -m scripts.report --config_file $(TASK_FILES) --images "$(INPUT)" \
	--predictions "$(abspath $(OUT))/prediction" $(if $(LABELS),--labels "$(abspath $(LABELS))" --subset) \
	--output_dir "$(abspath $(OUT))/report" --overwrite
endif

test: $(STAMP)  ## the whole test suite, in two processes
	@$(VENV_PYTHON) -m pytest -n 2 --dist loadfile $(ARGS)

zoo: $(STAMP)  ## what the continuous integration of MONAI's model zoo asks of a bundle
	@$(VENV_PYTHON) -m pytest tests/bundle/test_zoo.py $(ARGS)

torture: OUT := torture_output
torture: $(STAMP)  ## kill, break and starve the commands, and print one table: TIME=seconds SEED=number OUT=folder
	@TIME="$(TIME)" SEED="$(SEED)" OUT="$(abspath $(OUT))" PARTS="$(PARTS)" $(VENV_PYTHON) -m tests.torture

lint: $(STAMP)  ## style: ruff check and ruff format --check
	@$(VENV_PYTHON) -m ruff check .
	@$(VENV_PYTHON) -m ruff format --check .

bench: $(STAMP)  ## time the selective scan's backends on this machine; whole networks: benchmarks/networks.py
	@$(VENV_PYTHON) benchmarks/selective_scan.py $(ARGS)

# As env/requirements-mamba.txt and bundle/docs/README.md say; always anew, since an old build fits an old torch.
mamba: $(STAMP)  ## compile mamba-ssm against the installed torch (nvcc of its CUDA version) and check that it runs
	@$(VENV_PYTHON) -m pip install -q --disable-pip-version-check setuptools wheel packaging ninja
	@MAMBA_FORCE_BUILD=TRUE MAMBA_KEEP_CUDA_BUILD=TRUE CAUSAL_CONV1D_FORCE_BUILD=TRUE \
	$(VENV_PYTHON) -m pip install --disable-pip-version-check --no-build-isolation --no-cache-dir \
	--force-reinstall --no-deps -r env/requirements-mamba.txt
	@$(VENV_PYTHON) -m pip install -q --disable-pip-version-check -r env/requirements-mamba.txt
	@cd bundle && $(VENV_PYTHON) -m scripts.doctor --device cuda --require mamba_ssm

tables: $(STAMP)  ## write the figures of all documents anew from benchmarks/results
	@$(VENV_PYTHON) benchmarks/tables.py

# git knows what belongs to the bundle; outside a checkout it is everything but caches and run outputs.
release: $(STAMP)  ## zip the bundle for the model zoo into dist/
	@set -e; version=$$($(VENV_PYTHON) -c '$(READ_VERSION)'); \
	zip=$(BUNDLE_NAME)_v$$version.zip; stage=dist/$(BUNDLE_NAME); \
	rm -rf "$$stage" "dist/$$zip"; mkdir -p "$$stage"; \
	if git -C bundle ls-files --error-unmatch LICENSE >/dev/null 2>&1; then git -C bundle ls-files -z; \
	else (cd bundle && find . -type f $(patsubst %,! -path './%/*',$(BUNDLE_OUTPUTS)) ! -name '*.pyc' -print0); \
	fi >dist/.files; \
	(cd bundle && xargs -0 cp --parents -t "../$$stage" <../dist/.files); \
	$(VENV_PYTHON) env/large_files.py "$$stage" "$(LARGE_FILES)"; \
	(cd dist && $(VENV_PYTHON) -m zipfile -c "$$zip" $(BUNDLE_NAME)/ && rm -r $(BUNDLE_NAME) .files); \
	echo "dist/$$zip"

clean:  ## remove .venv, dist, the demo's output and caches
	@rm -rf $(VENV) dist demo_output torture_output .pytest_cache .hypothesis .ruff_cache
	@find . -name __pycache__ -type d -not -path './.git/*' -prune -exec rm -rf {} +

$(STAMP):
	@$(PYTHON) -c 'pass' 2>/dev/null || { \
	echo "make: '$(PYTHON)' does not run: install Python 3.10 to 3.13 or name one: make $(MAKECMDGOALS) PYTHON=python3.12" >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 13))' || { \
	echo "make: $$($(PYTHON) --version) is outside 3.10 to 3.13: name another: make $(MAKECMDGOALS) PYTHON=python3.12" >&2; exit 1; }
	@unserved=$$($(PYTHON) -c '$(UNSERVED)' 2>&1) || { \
	echo "make: torch and numba have no packages for $$unserved: use macOS 14 or later on an M chip, Linux, or env/Dockerfile" >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { \
	echo "make: $(PYTHON) cannot make a virtual environment: install its venv module (Debian, Ubuntu: apt install python3-venv)" >&2; exit 1; }
	@test ! -L $(VENV) || { \
	echo "make: $(VENV) is a link, and what it leads to would be emptied: remove the link (rm $(VENV))" >&2; exit 1; }
	@echo "Making $(VENV) with $$($(PYTHON) --version) ..."
	@$(PYTHON) -m venv --clear $(VENV)
	@echo "Installing the pinned packages of env/requirements-dev.txt (several minutes on a fresh machine) ..."
	@$(VENV_PYTHON) -m pip install -qq --disable-pip-version-check \
	$(if $(TORCH_INDEX),--extra-index-url $(TORCH_INDEX)) -r env/requirements-dev.txt
	@$(VENV_PYTHON) -m pip install -qq --disable-pip-version-check --no-deps -r $(ALONE)
	@touch $@
