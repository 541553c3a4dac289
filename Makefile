# make demo: the main job.  make test: the tests.  Both make their own environment first.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo test lint bench-report clean

demo: .venv/ready
	$(BIN)/adaptive-warmup demo $(ARGS)

test: .venv/ready
	$(BIN)/python -m pytest -n 2 --dist worksteal $(ARGS)

lint: .venv/ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench-report: .venv/ready
	for analysis in benchmarks/experiments/*/analysis.py; do $(BIN)/python $$analysis || exit 1; done

.venv/ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --constraint constraints.txt torch
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@

clean:
	rm -rf .venv build dist *.egg-info
