# Everything happens in the project's own environment, .venv. uv reads pyproject.toml, where the metadata of the
# packages whose declared pins contradict each other is corrected; constraints.txt fixes every version.
PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
# uv does not read pip's settings: hand over where pip finds packages that lie on disk.
export UV_FIND_LINKS ?= $(PIP_FIND_LINKS)
INSTALL := $(BIN)/uv pip install --quiet --compile-bytecode --python $(VENV) --constraint constraints.txt --editable '.[download]'

.PHONY: install metadrive demo docs test test-long test-current lint clean

install: $(VENV)/.installed  ## Make .venv with everything that running needs

metadrive: $(VENV)/.metadrive  ## Add MetaDrive, the simulator of the nine driving tasks

demo: install  ## Run the built-in suite "demo" and print its leaderboard
	$(BIN)/lspc-bench run demo --devices cpu:2 --results results/runs/demo
	@$(BIN)/lspc-bench leaderboard results/runs/demo

docs: $(VENV)/.documented  ## Write the manual as a site into site/; whatever is wrong with it ends the build
	$(BIN)/mkdocs build --strict

test: $(VENV)/.tested  ## Run linters and all tests but the long ones
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/codespell
	$(BIN)/python -m pytest --numprocesses auto --dist loadfile -m "not long"

test-long: $(VENV)/.tested  ## Run the tests that start clusters, kill whole runs and go through every simulator
	$(BIN)/python -m pytest --numprocesses auto --dist loadfile -m long

# What trains and judges, with today's releases and no simulators: what is not at home there is left out. Any Python that
# pyproject.toml admits will do: make test-current CURRENT_PYTHON=python3.13
CURRENT := .venv-current
CURRENT_PYTHON ?= $(PYTHON)
TRAINING := tests/algorithms $(addprefix tests/harness/, data/test_augmentation.py data/test_dataset.py \
	data/test_draws.py data/test_filters.py data/test_sampling.py data/test_trajectories.py test_engine.py \
	test_fqe.py test_statistics.py test_timing.py report) tests/test_split.py

test-current: $(VENV)/.made  ## Run the training side's tests on current releases of its packages, without simulators
	test -d $(CURRENT) || $(CURRENT_PYTHON) -m venv $(CURRENT)
	$(BIN)/uv pip install --quiet --upgrade --python $(CURRENT) --override requirements/current.txt --group test --editable .
	$(CURRENT)/bin/python -m pytest $(TRAINING)

lint: $(VENV)/.tested
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .
	$(BIN)/mypy
	$(BIN)/codespell

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

$(VENV)/.documented: $(VENV)/.made pyproject.toml constraints.txt
	$(INSTALL) --group docs
	@touch $@

$(VENV)/.tested: $(VENV)/.made pyproject.toml constraints.txt
	$(INSTALL) --group simulators --group metadrive --group dev
	@touch $@ $(VENV)/.installed $(VENV)/.metadrive $(VENV)/.documented

clean:
	rm -rf $(VENV) $(CURRENT) site .mypy_cache .ruff_cache .pytest_cache .hypothesis
