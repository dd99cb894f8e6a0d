# make run | lab | test | check | notebooks | bench | base | guard | gpu    e.g. make run ARGS="--seed 1"
PYTHON ?= python3
# An index with other torch wheels, e.g. smaller ones for CPUs; empty: the default one.
TORCH_INDEX ?=
ARGS ?=
BIN = .venv/bin
QUIET = LLAMA3_LAB_PROGRESS=0 HF_HUB_OFFLINE=1 LLAMA3_LAB_PREDICTIONS='$(CURDIR)/build/predictions.json'
BROWSER = tests/test_browser.py
PIP = $(BIN)/python -m pip --disable-pip-version-check -q install -c constraints.txt
NBVAL = --nbval-lax --nbval-current-env --nbval-cell-timeout 300

.PHONY: run lab test check notebooks bench base guard gpu
.DEFAULT_GOAL := run

run: .venv/ready
	$(BIN)/llama3-lab run $(ARGS)

lab: .venv/ready
	$(BIN)/jupyter lab notebooks $(ARGS)

test: check
	$(QUIET) OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile tests --ignore $(BROWSER) $(ARGS)
	$(if $(wildcard notebooks/*.ipynb),$(QUIET) OMP_NUM_THREADS=2 $(BIN)/python -m pytest $(NBVAL) notebooks)
	$(QUIET) OMP_NUM_THREADS=2 $(BIN)/python -m pytest -rs $(BROWSER)  # after the notebooks: it uses their stages

check: .venv/ready
	$(BIN)/ruff check .
	$(BIN)/mypy llama3_lab
	$(BIN)/lint-imports

notebooks: .venv/ready
	$(QUIET) OMP_NUM_THREADS=2 $(BIN)/python tools/build_notebooks.py $(ARGS)

bench: .venv/ready
	$(BIN)/python tools/bench.py $(ARGS)

base: .venv/ready
	$(BIN)/python tools/pretrain_base.py $(ARGS)

guard: .venv/ready
	$(BIN)/python tools/train_guard.py $(ARGS)

gpu: .venv/ready
	$(BIN)/python tools/measure_gpu.py $(ARGS)

.venv/ready: pyproject.toml constraints.txt
	@echo "setting up .venv (once; a minute or two)"
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(if $(TORCH_INDEX),$(PIP) --no-deps --index-url $(TORCH_INDEX) torch)
	$(PIP) -e '.[dev]'
	@touch $@
