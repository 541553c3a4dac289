# make demo: the main job.  make test: the tests.  Both make their own environment first.
PYTHON ?= python3
BIN := .venv/bin
VERL := .venv-verl/bin

.PHONY: demo test test-faults test-verl test-dist test-matrix lint docs bench-report study-quick clean

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

# The tests at both ends of the range of versions in pyproject.toml, in environments of their own, of some gigabytes.
# One of them: `make test-matrix ARGS=newest`. Without CUDA: UV_TORCH_BACKEND=cpu.
test-matrix: .venv/ready
	$(BIN)/python -m tools.matrix $(ARGS)

# The verl integration, in an environment of its own.
test-verl: .venv-verl/ready
	$(VERL)/python -m pytest tests/verl $(ARGS)

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

# What verl 0.9 itself fails to ask for: TransferQueue and the five after it.
.venv-verl/ready: pyproject.toml constraints-verl.txt
	$(PYTHON) -m venv .venv-verl
	$(VERL)/pip install --quiet --constraint constraints-verl.txt torch
	$(VERL)/pip install --quiet --constraint constraints-verl.txt verl TransferQueue cachetools fastapi uvicorn pyzmq \
		msgspec scipy hypothesis pytest
	$(VERL)/pip install --quiet --no-deps --editable .
	touch $@

clean:
	rm -rf .venv .venv-verl build dist *.egg-info
