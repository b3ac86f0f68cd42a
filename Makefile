# Everything from a bare machine: `make demo` and `make test` set up what is missing. `make help` lists the targets.

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

.PHONY: setup help demo test test-slow test-reliability test-libraries test-matrix gpu-first test-cuda cuda-tests cuda-sanitizers cuda-agreement bench bench-cuda wheel test-wheel kernel-hub check docs pictures format clean

setup: $(BUILT)  ## install everything into .venv and build the operators

help:  ## list the targets
	@sed -n 's/^\([a-z][a-z-]*\):.*  ## \(.*\)/\1|\2/p' Makefile | while IFS='|' read -r name text; do printf '%-18s %s\n' "$$name" "$$text"; done

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

demo: $(BUILT)  ## the demonstration: a table and a page in some minutes, into demo-output
	@$(BIN)/apem-fast study --quick --output $(DEMO_OUTPUT)

# One thread a process and a process a core: two threads beside another busy process are slower than one.
test: $(BUILT)  ## every test that is not slow
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m "not slow" -n auto --dist worksteal

test-slow: $(BUILT)  ## the slow tests
	@$(BIN)/python -m pytest -m slow

# Damaged files, kills, failing disks and models, thousands of random examples and a fuzzer: some fourteen minutes, and once
# the fuzzer's build. It gives the figures of docs/reliability.md. Mutants are extra: $(BIN)/python -m reliability --only mutants.
test-reliability: $(BUILT)  ## damaged files, kills, faults and a fuzzer
	@OMP_NUM_THREADS=1 $(BIN)/python -m reliability

# With Quantus and torch-cam themselves. Quantus requires the OpenCV with windows; the headless one is enough.
test-libraries: $(BUILT)  ## the adapters with Quantus and torch-cam installed
	@$(PIP) install "torchcam>=0.5" cachetools opencv-python-headless
	@$(PIP) install --no-deps "quantus>=0.5.3"
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m libraries python_tests/test_real_libraries.py

# The tests whose result a processor or a library could change, as on other machines; PYTHONS="a b" adds interpreters.
test-matrix: $(BUILT)  ## the same tests as on other processors and libraries
	@$(BIN)/python -m bench.matrix --pythons $(PYTHONS)

build/.in-place: $(SOURCES)
	@FORCE_CUDA=1 $(PYTHON) -m bench.gpu_first --build
	@touch $@

# The first minutes on a machine with an NVIDIA GPU: builds, tests and measures with the Python that is there, into the
# folder OUT, step by step. STEPS="build kernels" runs some; SECONDS_IN_ALL limits it; DEVICE=cpu is a dry run.
gpu-first:  ## a first report on a machine with a GPU, into OUT=folder
	@test -n "$(OUT)" || { echo "make gpu-first OUT=folder"; exit 1; }
	@$(PYTHON) -m bench.gpu_first "$(OUT)" --device $(or $(DEVICE),cuda) --seconds $(or $(SECONDS_IN_ALL),570) \
	  $(if $(STEPS),--steps $(STEPS))

# On a machine with an NVIDIA GPU: its tests, then every operator under compute-sanitizer.
test-cuda: cuda-tests cuda-sanitizers cuda-agreement  ## the tests that need a GPU

cuda-tests: $(CUDA_BUILT)
	@$(CUDA_PYTHON) -m pytest -q -m "cuda and not slow" $(CUDA_TESTS)

cuda-sanitizers: $(CUDA_BUILT)
	@PYTHON=$(CUDA_PYTHON) bash bench/cuda_checks.sh

cuda-agreement: $(CUDA_BUILT)
	@$(CUDA_PYTHON) -m bench.agreement

bench: $(BUILT)  ## the benchmarks
	@$(BIN)/python -m bench

# On a machine with an NVIDIA GPU: checks first, then operators against a copy, then the engine over the bare model.
bench-cuda: $(CUDA_BUILT)  ## the benchmarks on a GPU
	@$(CUDA_PYTHON) -m pytest -q -m cuda python_tests/test_cuda.py
	@$(CUDA_PYTHON) -m bench.operators --device cuda
	@$(CUDA_PYTHON) -m bench.throughput --device cuda

# Style and types; `make format` fixes what can be fixed.
check: $(INSTALLED)  ## style and types
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/clang-format --dry-run --Werror $(CXX_SOURCES)
	@$(BIN)/mypy

# The documentation's site, into build/site: open build/site/index.html. A warning is an error.
docs: $(DOCUMENTING)  ## the documentation as a site, into build/site
	@NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs --quiet build --strict
	@echo "build/site/index.html; its search box needs a server: python3 -m http.server -d build/site"

$(DOCUMENTING): pyproject.toml | $(BUILT)
	@$(PIP) install $$($(BIN)/python -c 'import tomllib; print(*tomllib.load(open("pyproject.toml", "rb"))["project"]["optional-dependencies"]["docs"])')
	@touch $@

# The documentation's pictures, from real runs: some minutes.
pictures: $(BUILT)  ## the documentation's pictures
	@$(BIN)/python -m bench.pictures

format: $(INSTALLED)  ## fix style
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .
	@$(BIN)/clang-format -i $(CXX_SOURCES)

# The source package, and wheels for the CPU and for CUDA, audited: into dist/.
wheel: $(INSTALLED)  ## the source package and the wheels, into dist
	@bash packaging/wheels.sh $(BIN)/python

# Each wheel, installed into environments with several versions of Python and torch: see packaging/test_wheel.sh.
test-wheel:
	@for wheel in dist/*.whl; do bash packaging/test_wheel.sh $$wheel || exit 1; done

# The operators as a repository of the Hugging Face kernel hub, into build/kernel-hub; `kernels` loads it from there.
kernel-hub: $(BUILT)
	@$(BIN)/python packaging/kernel_hub.py build/kernel-hub

clean:  ## remove everything that was built
	rm -rf $(VENV) build dist *.egg-info apem_fast/lib/*.so $(DEMO_OUTPUT)
