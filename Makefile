# `make ablation` and `make test` are all a newcomer needs; each makes the environment first if it is missing.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
# Tests run in so many processes, one thread each, which take tests from one another when they run out of them.
WORKERS ?= 2
PARALLEL := -n $(WORKERS) --dist worksteal
# What also runs under Triton's interpreter, as Python.
INTERPRETED := tests/kernels/power/triton tests/kernels/delta/triton tests/kernels/rwkv7/triton \
	tests/kernels/cache_attention tests/kernels/causal_convolution tests/kernels/test_cross_entropy_rows.py tests/kernels/test_opcheck.py tests/kernels/test_compile.py

# What has tests for a GPU.
ON_GPU := tests/generation tests/kernels tests/models tests/training/test_gpu.py

.PHONY: ablation test lint types unit test-thorough test-gpu test-browser kernels faults clean

## Compare softmax, linear, power and gated-power attention on real text: a table, plots and a page under runs/.
ablation: $(STAMP)
	$(BIN)/zoo ablate four-mixers

## Lint, types and tests, as continuous integration runs them.
test: lint types unit

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(STAMP)
	$(BIN)/mypy zoo

unit: $(STAMP)
	$(BIN)/python -m pytest $(PARALLEL) -m "not slow and not browser and not gpu"
	TRITON_INTERPRET=1 $(BIN)/python -m pytest $(PARALLEL) -m "not slow" $(INTERPRETED)

## The deep profile of every property test, and the tests that take minutes.
test-thorough: $(STAMP)
	$(BIN)/python -m pytest $(PARALLEL) -m "not browser and not gpu" --hypothesis-profile=thorough --timeout=7200
	TRITON_INTERPRET=1 $(BIN)/python -m pytest $(PARALLEL) --hypothesis-profile=thorough --timeout=7200 $(INTERPRETED)

# Processes that share the GPU: most of their time is compilation. Each test is told as it ends, should a run be cut short.
GPU_WORKERS ?= 12

## The tests that need a GPU: ten minutes beside 16 cores.
test-gpu: $(STAMP)
	$(BIN)/python -m pytest -n $(GPU_WORKERS) --dist worksteal -vv -m gpu $(ON_GPU)

## Build the Triton kernels for GPUs that are not here, and hold their registers and spills against the budget.
kernels: $(STAMP)
	$(BIN)/python -m pytest tests/kernels/power/triton/test_ahead_of_time.py tests/kernels/power/triton/hopper \
		tests/kernels/delta/triton/test_ahead_of_time.py tests/kernels/rwkv7/triton/test_ahead_of_time.py \
		tests/kernels/causal_convolution/test_ahead_of_time.py

## Kill, stop, damage and race small runs, hundreds of times; SEED=1 draws other cases.
SEED ?= 0
faults: $(STAMP)
	$(BIN)/python -m tests.faults $(SEED)

## Open the study page in a headless browser (needs chromium).
test-browser: $(STAMP)
	$(BIN)/python -m pytest -m browser

$(STAMP): pyproject.toml constraints.txt
	@test -d zoo/kernels/power || { echo "zoo/kernels must be a symbolic link to kernels/: clone with 'git -c core.symlinks=true clone'"; exit 1; }
	$(PYTHON) -c "import sys; sys.exit(0 if sys.version_info >= (3, 11) else 'Python 3.11 or newer is needed, this is ' + sys.version.split()[0])"
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[dev]"
	touch $(STAMP)

clean:
	rm -rf $(VENV) build dist *.egg-info
