# make demo: the main job.  make test: the tests.  Both make their own environment first.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo test test-faults test-dist lint docs bench-report study-quick clean

demo: .venv/ready
	$(BIN)/adaptive-warmup demo $(ARGS)

test: .venv/ready
	$(BIN)/python -m pytest -n 2 --dist worksteal $(ARGS)

# The suite that injects faults, its two longest tests in full: 100 kills, 1,000,000 steps.
test-faults: .venv/ready
	FAULTS=all $(BIN)/python -m pytest tests/faults $(ARGS)

# Builds the wheel and the sdist, and tries each as a user installs it, outside of the checkout.
test-dist: .venv/ready
	$(BIN)/python -m tools.dist

lint: .venv/ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

docs: .venv/ready
	$(BIN)/zensical build --strict --clean

bench-report: .venv/ready
	for name in $(notdir $(wildcard benchmarks/experiments/*)); do \
		$(BIN)/python -m benchmarks.experiments.$$name.analysis || exit 1; done
	$(BIN)/python -m benchmarks.plots

# A small part of the stability study, ten minutes on two cores: one held-out task, three arms.
study-quick: .venv/ready
	$(BIN)/python -m benchmarks.experiments.stability.run --results build/study-quick --jobs 2 --seeds 4 \
		--tasks chain_sum --arms ours "ratio 0" "ratio 0.285"
	$(BIN)/python -m benchmarks.experiments.stability.analysis build/study-quick

.venv/ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --constraint constraints.txt torch
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@

clean:
	rm -rf .venv build dist *.egg-info
