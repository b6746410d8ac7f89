# Everything happens in the project's own environment, .venv. uv reads pyproject.toml, where the metadata of the
# packages whose declared pins contradict each other is corrected; constraints.txt fixes every version.
PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
# uv does not read pip's settings: hand over where pip finds packages that lie on disk.
export UV_FIND_LINKS ?= $(PIP_FIND_LINKS)
INSTALL := $(BIN)/uv pip install --quiet --compile-bytecode --python $(VENV) --constraint constraints.txt --editable .

.PHONY: install metadrive demo test test-current lint clean

install: $(VENV)/.installed  ## Make .venv with everything that running needs

metadrive: $(VENV)/.metadrive  ## Add MetaDrive, the simulator of the nine driving tasks

demo: install  ## Run the built-in suite "demo" and print its leaderboard
	$(BIN)/lspc-bench run demo --results results/runs/demo
	@$(BIN)/lspc-bench leaderboard results/runs/demo

test: $(VENV)/.tested  ## Run all tests and linters
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python -m pytest

# What trains and judges, with today's releases and no simulators: what is not at home there is left out.
CURRENT := .venv-current
TRAINING := tests/algorithms $(addprefix tests/harness/, data/test_augmentation.py data/test_dataset.py \
	data/test_draws.py data/test_filters.py data/test_sampling.py data/test_trajectories.py test_engine.py \
	test_fqe.py test_statistics.py report)

test-current: $(VENV)/.made  ## Run the training side's tests on current releases of its packages, without simulators
	test -d $(CURRENT) || $(PYTHON) -m venv $(CURRENT)
	$(BIN)/uv pip install --quiet --upgrade --python $(CURRENT) --override requirements/current.txt --group dev --editable .
	$(CURRENT)/bin/python -m pytest $(TRAINING)

lint: $(VENV)/.tested
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .
	$(BIN)/mypy

$(VENV)/.made:
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check uv
	@touch $@

$(VENV)/.installed: $(VENV)/.made pyproject.toml constraints.txt
	$(INSTALL) --group simulators
	@touch $@

$(VENV)/.metadrive: $(VENV)/.made pyproject.toml constraints.txt
	$(INSTALL) --group simulators --group metadrive
	@touch $@ $(VENV)/.installed

$(VENV)/.tested: $(VENV)/.made pyproject.toml constraints.txt
	$(INSTALL) --group simulators --group metadrive --group dev
	@touch $@ $(VENV)/.installed $(VENV)/.metadrive

clean:
	rm -rf $(VENV) $(CURRENT) .mypy_cache .ruff_cache .pytest_cache .hypothesis
