# Needs Python 3.11 to 3.13 and a C++20 compiler; everything else goes into .venv.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.requirements

.PHONY: demo test test-sweep test-all check lint format build clean

$(STAMP): pyproject.toml requirements/constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install -q -c requirements/constraints.txt -r requirements/development.txt
	touch $(STAMP)

# Editable: Python comes from this checkout, the compiled module is rebuilt where its sources changed.
build: $(STAMP)
	$(BIN)/pip install -q --no-build-isolation --no-deps -e .

demo: build
	$(BIN)/python -m afnext.training.synthesis demo $(VENV)/demo.wav
	$(BIN)/afnext ask $(VENV)/demo.wav "What sounds do you hear, and when?"

test: build
	$(BIN)/python -m pytest

# Sweeps too long for every change; a run without any is no failure of theirs.
test-sweep: build
	$(BIN)/python -m pytest -m sweep

test-all: test test-sweep

check: build
	$(BIN)/python -m pytest -m "not slow and not sweep"

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/clang-format --dry-run --Werror $$(git ls-files 'csrc/*.cpp' 'csrc/*.h')

format: $(STAMP)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/clang-format -i $$(git ls-files 'csrc/*.cpp' 'csrc/*.h')

clean:
	rm -rf build dist $(VENV)
