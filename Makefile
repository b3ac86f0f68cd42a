# Everything from a bare machine: `make demo` and `make test` set up what is missing by themselves.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet
CXX_SOURCES := $(shell find csrc examples apem_fast/include -name '*.cpp' -o -name '*.h' -o -name '*.cu' -o -name '*.cuh')
SOURCES := setup.py pyproject.toml $(CXX_SOURCES)
INSTALLED := $(VENV)/.installed
BUILT := $(VENV)/.built
DOCUMENTING := $(VENV)/.documenting
DEMO_OUTPUT ?= demo-output
# For the CUDA targets: NO_INSTALL=1 downloads nothing, builds in place and runs $(PYTHON) with what it has.
CUDA_PYTHON := $(if $(NO_INSTALL),$(PYTHON),$(abspath $(BIN)/python))
CUDA_BUILT := $(if $(NO_INSTALL),build/.in-place,$(BUILT))
CUDA_TESTS = $$(grep -lE '^from backends|mark\.cuda' python_tests/test_*.py)
DEBIAN := apt-get install -y g++ make python3-dev python3-venv

.PHONY: setup demo test test-slow test-reliability test-libraries test-matrix gpu-first test-cuda cuda-tests cuda-sanitizers cuda-agreement bench bench-cuda wheel test-wheel kernel-hub check docs pictures format clean

setup: $(BUILT)

# torch as the package index serves it: it carries CUDA, also runs without a GPU, and torchvision imports beside it.
$(INSTALLED): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "apem_fast needs Python 3.11 or newer as '$(PYTHON)': $(DEBIAN), or make PYTHON=/path/to/python3.11"; exit 1; }
	@$(PYTHON) -c 'import venv, ensurepip' 2>/dev/null || \
	  { echo "apem_fast needs Python's venv module: $(DEBIAN)"; exit 1; }
	@command -v $(firstword $(CXX)) >/dev/null && \
	  $(PYTHON) -c 'import os, sysconfig; os.stat(os.path.join(sysconfig.get_paths()["include"], "Python.h"))' 2>/dev/null || \
	  echo "apem_fast: no C++ compiler or no Python headers, so the slower reference backend will be used; for the compiled one: $(DEBIAN)"
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "Installing what apem_fast needs into $(VENV) (a few gigabytes, a few minutes) ..."
	@$(PIP) install --upgrade pip "setuptools>=77" wheel
	@$(PIP) install "torch>=2.11" torchvision
	@$(PIP) install $$($(BIN)/python -c 'import tomllib; p = tomllib.load(open("pyproject.toml", "rb"))["project"]; \
	  extras = p["optional-dependencies"]; \
	  wanted = ("explain", "experiment", "siamese", "demo", "test", "check"); \
	  print(*p["dependencies"], *{one for name in wanted for one in extras[name] if not one.startswith("apem_fast")})')
	@touch $@

$(BUILT): $(INSTALLED) $(SOURCES)
	@echo "Building the operators ..."
	@$(PIP) install --no-build-isolation --no-deps --editable . || \
	  { echo "apem_fast: the build failed (above); NO_CUDA=1 make leaves CUDA out"; exit 1; }
	@$(BIN)/python -c 'import apem_fast; print("apem_fast is ready, backend:", apem_fast.backend())'
	@touch $@

demo: $(BUILT)
	@$(BIN)/apem-fast study --quick --output $(DEMO_OUTPUT)

# One thread a process and a process a core: two threads beside another busy process are slower than one.
test: $(BUILT)
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m "not slow" -n auto --dist worksteal

test-slow: $(BUILT)
	@$(BIN)/python -m pytest -m slow

# Damaged files, kills, failing disks and models, examples by the thousand, a fuzzer, some fourteen minutes long (and the
# fuzzer's build, once): the figures of docs/reliability.md. Mutants are left out: $(BIN)/python -m reliability --only mutants.
test-reliability: $(BUILT)
	@OMP_NUM_THREADS=1 $(BIN)/python -m reliability

# APEM beside Quantus and torch-cam themselves. Quantus asks for the OpenCV that draws windows; the other one serves it.
test-libraries: $(BUILT)
	@$(PIP) install "torchcam>=0.5" cachetools opencv-python-headless
	@$(PIP) install --no-deps "quantus>=0.5.3"
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m libraries python_tests/test_real_libraries.py

# The tests that a processor or a library could change, as on other machines; PYTHONS="a b": other interpreters as well.
test-matrix: $(BUILT)
	@$(BIN)/python -m bench.matrix --pythons $(PYTHONS)

build/.in-place: $(SOURCES)
	@FORCE_CUDA=1 $(PYTHON) -m bench.gpu_first --build
	@touch $@

# The first minutes on a machine with an NVIDIA GPU, with the Python that is there and nothing else: all that one wants to
# know, into a folder, step by step. STEPS="build kernels" runs some; SECONDS_IN_ALL limits it; DEVICE=cpu is a dry run.
gpu-first:
	@test -n "$(OUT)" || { echo "make gpu-first OUT=folder"; exit 1; }
	@$(PYTHON) -m bench.gpu_first "$(OUT)" --device $(or $(DEVICE),cuda) --seconds $(or $(SECONDS_IN_ALL),570) \
	  $(if $(STEPS),--steps $(STEPS))

# On a machine with an NVIDIA GPU: its tests, then every operator under compute-sanitizer.
test-cuda: cuda-tests cuda-sanitizers cuda-agreement

cuda-tests: $(CUDA_BUILT)
	@$(CUDA_PYTHON) -m pytest -q -m "cuda and not slow" $(CUDA_TESTS)

cuda-sanitizers: $(CUDA_BUILT)
	@PYTHON=$(CUDA_PYTHON) bash bench/cuda_checks.sh

cuda-agreement: $(CUDA_BUILT)
	@$(CUDA_PYTHON) -m bench.agreement

bench: $(BUILT)
	@$(BIN)/python -m bench

# On a machine with an NVIDIA GPU: checks first, then operators against a copy, then the engine over the bare model.
bench-cuda: $(CUDA_BUILT)
	@$(CUDA_PYTHON) -m pytest -q -m cuda python_tests/test_cuda.py
	@$(CUDA_PYTHON) -m bench.operators --device cuda
	@$(CUDA_PYTHON) -m bench.throughput --device cuda

# Style and types; `make format` mends what can be mended.
check: $(INSTALLED)
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/clang-format --dry-run --Werror $(CXX_SOURCES)
	@$(BIN)/mypy

# The documentation's site, into build/site: open build/site/index.html. A warning is an error.
docs: $(DOCUMENTING)
	@NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs --quiet build --strict
	@echo "build/site/index.html; its search box wants a server: python3 -m http.server -d build/site"

$(DOCUMENTING): pyproject.toml | $(BUILT)
	@$(PIP) install $$($(BIN)/python -c 'import tomllib; print(*tomllib.load(open("pyproject.toml", "rb"))["project"]["optional-dependencies"]["docs"])')
	@touch $@

# The documentation's pictures, from real runs: some minutes.
pictures: $(BUILT)
	@$(BIN)/python -m bench.pictures

format: $(INSTALLED)
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .
	@$(BIN)/clang-format -i $(CXX_SOURCES)

# The source package, and wheels for the CPU and for CUDA, audited: into dist/.
wheel: $(INSTALLED)
	@bash packaging/wheels.sh $(BIN)/python

# Each wheel, installed into environments with several versions of Python and torch: see packaging/test_wheel.sh.
test-wheel:
	@for wheel in dist/*.whl; do bash packaging/test_wheel.sh $$wheel || exit 1; done

# The operators as a repository of the Hugging Face kernel hub, into build/kernel-hub; `kernels` loads it from there.
kernel-hub: $(BUILT)
	@$(BIN)/python packaging/kernel_hub.py build/kernel-hub

clean:
	rm -rf $(VENV) build dist *.egg-info apem_fast/lib/*.so $(DEMO_OUTPUT)
