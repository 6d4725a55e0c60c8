# Two commands do everything: `make demo` and `make test`. Each sets up .venv first, and only once.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.PHONY: help demo test nightly fuzz soak check format starter accuracy bench bench-training bench-serving clean

help:
	@echo "make demo      fine-tune, evaluate, save, reload and predict on real reviews"
	@echo "make test      the whole test suite"
	@echo "make nightly   240 random kills of training runs, each resumed to the same bits"
	@echo "make fuzz      thousands of right, wrong and broken requests to a server (some five minutes)"
	@echo "make soak      20,000 requests to a server, and 20 times SIGTERM under load (some five minutes)"
	@echo "make check     lint, format, types, import rules"
	@echo "make format    format the code and mend what the linter can"
	@echo "make accuracy  train and judge every data set with every seed (about an hour)"
	@echo "make bench     measure inference beside its peers, on one core (about an hour)"
	@echo "make bench-training  measure training beside transformers' Trainer, on one core and on two (about an hour)"
	@echo "make bench-serving  measure a server under load beside FastAPI + pipeline (about fifteen minutes)"
	@echo "make starter   make the default classifier again"

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet -r constraints.txt
	$(BIN)/python -m pip install --quiet --no-deps --no-build-isolation --editable .
	touch $(READY)

demo: $(READY)
	$(BIN)/warmstart demo

# Two processes, one after the other: what the first loads does not weigh on the second, and kills have the machine alone.
HALF := tests/contract tests/docs tests/verbs
test: $(READY)
	$(BIN)/python -m pytest $(addprefix --ignore=,$(HALF))
	$(BIN)/python -m pytest $(HALF)

# Each of the eight cases of the pairwise cover and of the four recipes is killed 20 times at a random moment, and the
# example's loop 10 times, after a random step; saves, reports, fills of the cache and exports at every file operation.
# (`make test` kills each of the eight cases once at a random moment, and the others at some operations.)
nightly: $(READY)
	WARMSTART_KILLS=20 $(BIN)/python -m pytest -o timeout=1800 tests/verbs/test_kills.py tests/faults/test_k_snapshots.py \
		tests/faults/test_k_files.py tests/docs/test_own_loop.py

fuzz: $(READY)
	WARMSTART_FUZZ=60 WARMSTART_MUTATIONS=2000 $(BIN)/python -m pytest -s -o timeout=1800 \
		tests/serving/test_described_requests.py tests/serving/test_mutations.py

soak: $(READY)
	WARMSTART_SOAK=20000 WARMSTART_STOPS=20 $(BIN)/python -m pytest -s -o timeout=1800 tests/serving/test_soak.py

check: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python -m pytest tests/test_architecture.py

format: $(READY)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

starter: $(READY)
	$(BIN)/python scripts/make_starter.py

accuracy: $(READY)
	$(BIN)/python benchmarks/accuracy.py

bench: $(READY)
	$(BIN)/python benchmarks/inference.py speed batches memory scale cold

bench-training: $(READY)
	$(BIN)/python benchmarks/training.py
	$(BIN)/python benchmarks/training.py reviews --threads 2

# Two cores: the server is alone on the last one.
bench-serving: $(READY)
	$(BIN)/python benchmarks/serving.py speed overload ready

clean:
	rm -rf $(VENV)
