# Two commands do everything on a fresh machine: `make demo` and `make test`.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PYTEST := $(BIN)/python -m pytest

.PHONY: demo test test-fast test-faults test-cluster bench gpu-gate lint clean

demo: $(VENV)/ready
	$(BIN)/python demo.py

# Two workers: more than two cores can take more, as `make test WORKERS=8`.
WORKERS ?= 2
test: $(VENV)/ready
	$(PYTEST) -n $(WORKERS) --dist loadgroup

# Without tests that start processes.
test-fast: $(VENV)/ready
	$(PYTEST) -n $(WORKERS) --dist loadgroup -m "not process and not slurm and not slow"

# Kills 200 runs at random; about 20 minutes on two cores. Its figures go to bench/results/faults.json.
test-faults: $(VENV)/ready
	FAULTS=200 $(PYTEST) -s tests/faults/test_kills.py

# Job packages on a real Slurm, with jobs that are cut off by their time limits: about 15 minutes on two cores.
test-cluster: $(VENV)/ready
	$(PYTEST) -m "slow or not slow" -rs tests/cluster

# All measurements, on a quiet machine, into bench/results/ and docs/benchmarks/; BENCH=--quick for a look.
bench: $(VENV)/ready
	$(BIN)/python -m bench $(BENCH)
	$(BIN)/python -m bench.report

# On a GPU: checks and measurements, in less than nine minutes, into bench/results/; GATE="--only waits" for a part.
# Where PYTHON's own torch has CUDA it is used as it is, and nothing is installed.
gpu-gate:
	@if $(PYTHON) -c "import sys, torch; sys.exit(not torch.cuda.is_available())" 2>/dev/null; then \
		$(PYTHON) -m bench.gpu_gate $(GATE); \
	elif nvidia-smi >/dev/null 2>&1; then \
		$(MAKE) --no-print-directory $(VENV)/ready && $(BIN)/python -m bench.gpu_gate $(GATE); \
	else \
		echo "error: nvidia-smi finds no GPU here" >&2; exit 1; \
	fi

lint: $(VENV)/ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyrefly check --python-interpreter-path $(BIN)/python

# Made once; made again when the pinned versions change.
$(VENV)/ready: requirements.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.txt
	touch $@

clean:
	rm -rf $(VENV) demo
