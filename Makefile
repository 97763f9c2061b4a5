# Every target sets up what it needs: nothing but Python (>= 3.11) and make has to be there.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
# A new home for every demo: a ledger is never deleted to get a fresh budget.
DEMO_HOME := $(CURDIR)/demo/$(shell date +%Y%m%d-%H%M%S)

export RAY_USAGE_STATS_ENABLED := 0
export MLFLOW_DISABLE_TELEMETRY := true
export DO_NOT_TRACK := 1

.PHONY: help setup demo test slow cluster faults lint bench house ray-versions clean

help:
	@echo "make demo   a private synthetic data set from real digits, end to end"
	@echo "make test   linters, type checker, import walls and all tests but the slow ones"
	@echo "make slow   the slow tests: whole runs, crashes, races, damage"
	@echo "make cluster the tests that start clusters of several machines: some ten minutes"
	@echo "make faults 40 whole runs, each with one injected fault: about an hour"
	@echo "make lint   the first three only"
	@echo "make house  the size of the code in numbers, and its tree"
	@echo "make ray-versions the tests of Ray against the oldest and the newest that is supported"
	@echo "make bench  ratios against peers on this machine: at most twenty minutes; BENCH=--quick"

setup: $(READY)

# torch first and by its exact version, so that a local CPU build is taken where there is one.
$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet "$$(grep '^torch==' constraints.txt)"
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[test,postgres,s3]'
	touch $@

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports
	$(BIN)/mypy

demo: export UMBRA_HOME = $(DEMO_HOME)
demo: $(READY)
	$(BIN)/umbra budget declare digits --epsilon 10 --delta 1e-4 --public
	$(BIN)/umbra submit examples/digits.yaml
	$(BIN)/umbra export digits $(DEMO_HOME)/export
	$(BIN)/umbra audit $(DEMO_HOME)/export

bench: $(READY)
	$(BIN)/python -m benchmarks $(BENCH)

house: $(READY)
	$(BIN)/python -m benchmarks.house

test: lint
	$(BIN)/python -m pytest -n 2 --dist worksteal -m "not slow and not cluster"

slow: $(READY)
	$(BIN)/python -m pytest -n 2 --dist worksteal -m slow

cluster: $(READY)
	$(BIN)/python -m pytest -m cluster

faults: $(READY)
	$(BIN)/python -m tests.pipeline.faults --count 40

# The oldest and the newest Ray that are supported, each in an environment of its own that takes
# everything else from ours.
RAY_VERSIONS := 2.52.0 2.60.0

build/ray-%/.ready: $(READY)
	$(BIN)/python -m venv build/ray-$*
	$(BIN)/python -c "import sysconfig; print(sysconfig.get_path('purelib'))" > \
		"$$(build/ray-$*/bin/python -c "import sysconfig; print(sysconfig.get_path('purelib'))")/ours.pth"
	build/ray-$*/bin/python -m pip install --quiet --no-deps "ray==$*"
	touch $@

ray-versions: $(RAY_VERSIONS:%=build/ray-%/.ready)
	for version in $(RAY_VERSIONS); do \
		PYTHONPATH=$(CURDIR) build/ray-$$version/bin/python -m pytest -m "not cluster" \
			tests/pipeline/cluster tests/pipeline/runs/test_engine_run.py || exit 1; \
	done

clean:
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis
