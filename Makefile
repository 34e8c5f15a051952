# Two commands do everything on a fresh machine: `make demo` and `make test`.
# They install the torch of constraints.txt. Where another has to stay as it is (a CUDA image), in its environment:
# pip install -e ".[dev]"

PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin
TESTS ?= tests

.PHONY: setup demo test lint clean

setup: $(VENV)/.installed

$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[dev]"
	touch $@

demo: setup
	$(BIN)/pgolf run quickstart

test: setup
	$(BIN)/python -m pytest -n 2 --dist worksteal $(TESTS)

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

clean:
	rm -rf $(VENV) build *.egg-info src/*.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
