# Two commands do everything on a fresh machine: `make demo` and `make test`.
# They install the torch of constraints.txt. Where another has to stay as it is (a CUDA image), in its
# environment: pip install -e ".[dev]"

PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin
TESTS ?= tests
WORKERS ?= 2
BUDGET ?= 420
PYTEST = $(BIN)/python -m pytest -n $(WORKERS) --dist worksteal

.PHONY: setup demo test test-times test-long lint gpu-check images clean

setup: $(VENV)/.installed

$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[dev]"
	touch $@

demo: setup
	$(BIN)/pgolf run quickstart

test: setup
	$(PYTEST) -m "not slow" $(TESTS)

# The same, with a table of the slowest.
test-times: setup
	$(PYTEST) -m "not slow" --slowest 20 $(TESTS)

# The slow ones too, and many random cases for each property.
test-long: setup
	$(PYTEST) --hypothesis-profile nightly $(TESTS)

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# On a machine with a GPU, in the environment of its torch (PYTHON): everything there is to measure, in minutes.
gpu-check:
	PYTHONPATH=src $(PYTHON) -m pgolf.bench.gpu --budget-seconds $(BUDGET) --out gpu.json

# Where there is a builder of container images.
images:
	docker build -f docker/cpu.Dockerfile -t pgolf:cpu .
	docker build -f docker/cuda.Dockerfile -t pgolf:cuda .

clean:
	rm -rf $(VENV) build *.egg-info src/*.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
