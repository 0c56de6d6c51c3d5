# Needs Python 3.11 to 3.13 and a C++20 compiler; everything else goes into .venv.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.requirements

.PHONY: demo test test-sweep test-all test-aarch64 cuda cuda-all sanitize cases check lint format build clean

$(STAMP): pyproject.toml requirements/constraints.txt
	@echo "Fetching what afnext is built and tested with into $(VENV): some minutes the first time."
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install -q -c requirements/constraints.txt -r requirements/development.txt
	touch $(STAMP)

# Editable: Python comes from this checkout, the compiled module is rebuilt where its sources changed.
build: $(STAMP)
	$(BIN)/pip install -q --no-build-isolation --no-deps -e .

# With CUDA kernels for the GPU present, or for ARCHS="80;90a": needs nvcc, no GPU.
cuda: $(STAMP)
	$(BIN)/pip install -q --no-build-isolation --no-deps -e . -C cmake.define.AFNEXT_CUDA=on \
	  -C cmake.define.AFNEXT_CUDA_ARCHS="$(ARCHS)" -C build-dir=build/cuda-module

# Compiles the kernels for all GPUs they are written for, and prints what they take of one.
cuda-all: $(STAMP)
	$(BIN)/python -m tests.cuda.resources --archs 80 90a 100 120

demo: build
	@for question in "What sounds do you hear, and when?" "Transcribe the speech."; do \
	  echo "> $$question" && $(BIN)/afnext ask examples/scene.flac "$$question" || exit 1; \
	done

test: build
	$(BIN)/python -m pytest

# Sweeps too long for every change; a run without any is no failure of theirs.
test-sweep: build
	$(BIN)/python -m pytest -m "sweep and not long"

test-all: test
	$(BIN)/python -m pytest -m sweep

# The C++ interface alone: reference cases through a driver (tests/cpp), as a preset of CMakePresets.json
# builds it. The first argument is the preset.
define run_preset
	PATH="$(CURDIR)/$(BIN):$$PATH" && cmake --preset $(1) && cmake --build --preset $(1) && ctest --preset $(1)
endef

cases: build
	$(BIN)/python -m tests.cpp.make_cases build/cpp/cases

sanitize: cases
	$(call run_preset,sanitize)
	$(call run_preset,sanitize-threads)

# Needs a cross compiler and QEMU: Debian's g++-aarch64-linux-gnu and qemu-user.
test-aarch64: cases
	$(call run_preset,aarch64)

check: build
	$(BIN)/python -m pytest -m "not slow and not sweep"

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/clang-format --dry-run --Werror $$(git ls-files '*.cpp' '*.cu' '*.h')

format: $(STAMP)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/clang-format -i $$(git ls-files '*.cpp' '*.cu' '*.h')

clean:
	rm -rf build dist $(VENV)
