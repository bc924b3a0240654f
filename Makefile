# Two commands do everything on a fresh machine: `make demo` and `make test`.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: demo test test-faults test-cluster bench lint clean

demo: $(VENV)/ready
	$(BIN)/python demo.py

test: $(VENV)/ready
	$(BIN)/python -m pytest

# Kills 200 runs at random; about 20 minutes on two cores. Its figures go to bench/results/faults.json.
test-faults: $(VENV)/ready
	FAULTS=200 $(BIN)/python -m pytest -s tests/faults/test_kills.py

# Job packages on a real Slurm, with jobs that are cut off by their time limits: about 15 minutes on two cores.
test-cluster: $(VENV)/ready
	$(BIN)/python -m pytest -m "slow or not slow" -rs tests/cluster

# All measurements, on a quiet machine, into bench/results/ and docs/benchmarks/; BENCH=--quick for a look.
bench: $(VENV)/ready
	$(BIN)/python -m bench $(BENCH)
	$(BIN)/python -m bench.report

lint: $(VENV)/ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

# Made once; made again when the pinned versions change.
$(VENV)/ready: requirements.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.txt
	touch $@

clean:
	rm -rf $(VENV) demo
