# make demo   from nothing to an opened report (a few minutes on two cores)
# make test   the whole test suite, in two processes (WORKERS=n for more)
# make coverage   the same, and which lines of mitigate/ it reaches (not counted: processes that tests start)
# make notebooks   run the notebooks and write them with what they show: about 3 minutes (needs Chromium)
# make properties   the tests of what holds of every text, on 5,000 texts each: about 15 minutes
# make soak   kill a tiny run 100 times at random and once at every rename: about 20 minutes (KILLS=10 RENAMES=8 for fewer)
# make lint   ruff (lint and format) and mypy
PYTHON ?= python3
VENV ?= .venv
CONSTRAINTS ?= constraints.txt
WORKERS ?= 2
KILLS ?= 100
RENAMES ?= all
JOBS ?= 2
SEED ?= 0
BIN := $(VENV)/bin
IN_PARALLEL := --numprocesses=$(WORKERS) --dist=loadfile --no-loadscope-reorder
DEMO_OUT ?= runs/quickstart

.PHONY: demo test coverage notebooks properties soak lint format clean

demo: $(VENV)/installed
	$(BIN)/mitigate run recipes/quickstart.yaml out=$(DEMO_OUT)
	@$(BIN)/python -m webbrowser -t "file://$(abspath $(DEMO_OUT))/report.html" >/dev/null 2>&1 || true
	@echo "open $(DEMO_OUT)/report.html"

test: $(VENV)/installed
	$(BIN)/python -m pytest $(IN_PARALLEL)

coverage: $(VENV)/installed
	$(BIN)/python -m pytest $(IN_PARALLEL) --cov=mitigate --cov-report=
	$(BIN)/python -m coverage report --skip-covered --sort=cover
	@echo "lines of mitigate/ that the tests reach: $$($(BIN)/python -m coverage report --format=total) %"

notebooks: $(VENV)/installed
	$(BIN)/python tests/run_notebooks.py

properties: $(VENV)/installed
	PROPERTIES=thorough OMP_NUM_THREADS=1 TOKENIZERS_PARALLELISM=false \
		$(BIN)/python -m pytest $$(grep -l '^from hypothesis' -r tests --include='test_*.py')

soak: $(VENV)/installed
	OMP_NUM_THREADS=1 TOKENIZERS_PARALLELISM=false KILLS=$(KILLS) RENAMES=$(RENAMES) JOBS=$(JOBS) SEED=$(SEED) \
		$(BIN)/python tests/soak.py

lint: $(VENV)/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(VENV)/installed
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# torch first and by exact version: a range would bring several GB of CUDA packages to a machine without a GPU
$(VENV)/installed: pyproject.toml $(CONSTRAINTS)
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check "$$(grep '^torch==' $(CONSTRAINTS))" -c $(CONSTRAINTS)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c $(CONSTRAINTS) -e '.[dev]'
	touch $@

clean:
	rm -rf $(VENV) build dist .coverage .hypothesis .pytest_cache .ruff_cache .mypy_cache
