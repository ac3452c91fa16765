# The verbs. Each one sets up what it needs: .venv with the pinned environment, and the native build.
# `make pretrain` compiles for this machine alone, its CPU and the GPU it may have; the tests, for
# every CPU and every generation of GPUs, so that nothing rots uncompiled.
#
#   make pretrain [ARGS="--method vicreg"]    make test [ARGS="-k nll"]    make bench    make lint
#   make docs                                 the site, in build/docs
#   make wheel                                for all recent PyTorchs and Pythons, in dist/
#   make wheel-check [ARGS="--python python3.10 python3.13"]   installs it and tests it
#   make gpu-check PYTHON=python3             uses that Python as it is: no .venv, no downloads
#                                             (ARGS="--steps build sanitizers": .ci/gpu_check.py)

PYTHON ?= python3
BIN := .venv/bin
PIP := python -m pip install --quiet --constraint .ci/constraints.txt
GPU := $(shell nvidia-smi -L >/dev/null 2>&1 && echo yes)
CUDA_ARCHS ?= $(if $(GPU),native,80-real;90a-real;100-real;120)
NATIVE := CMakeLists.txt setup.py $(shell find csrc -type f)
EMULATION := $(shell find tests/emulation -name '*.h' -o -name '*.cpp' -o -name '*.cmake')

export PATH := $(CURDIR)/$(BIN):$(PATH)
export CMAKE_ARGS ?= -DCMAKE_CUDA_ARCHITECTURES="$(CUDA_ARCHS)"
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.PHONY: pretrain test lint format bench docs wheel wheel-check gpu-check clean
.NOTPARALLEL:  # there is one build folder

# The first time takes minutes: it downloads the packages and compiles. Where there is a build for
# the tests it is used.
pretrain: $(or $(wildcard .venv/built),.venv/built-here$(if $(GPU),-for-gpus))
	mast-ext pretrain $(ARGS)

# Half of the tests run beside the others, and print when these are through: threads with nothing to
# do must not keep the cores from them. Exit code 5: none chosen.
test: export OMP_WAIT_POLICY ?= passive
test: .venv/built build/emulation/built
	@log=$$(mktemp); \
	python -m pytest -m beside $(ARGS) >$$log 2>&1 & beside=$$!; trap "kill $$beside" INT TERM; \
	python -m pytest -m "not beside" $(ARGS); code=$$?; \
	wait $$beside; other=$$?; cat $$log; rm $$log; \
	test $$code = 0 -o $$code = 5 && test $$other = 0 -o $$other = 5 && test $$code$$other != 55

lint: .venv/installed
	ruff check .
	ruff format --check .
	find csrc tests -name '*.h' -o -name '*.cpp' -o -name '*.cu' -o -name '*.cuh' | xargs clang-format --dry-run -Werror
	mypy

format: .venv/installed
	ruff check --fix .
	ruff format .
	find csrc tests -name '*.h' -o -name '*.cpp' -o -name '*.cu' -o -name '*.cuh' | xargs clang-format -i

bench: .venv/built
	python -m pytest benchmarks/ops --benchmark-only $(ARGS)

docs: .venv/built
	NO_MKDOCS_2_WARNING=1 mkdocs build --strict

# The kernels that are compiled for the tests are those of the wheel.
wheel: .venv/built
	python .ci/wheel.py build $(ARGS)

wheel-check:
	$(PYTHON) .ci/wheel.py check $(ARGS)

gpu-check:
	$(PYTHON) .ci/gpu_check.py $(ARGS)

clean:
	rm -rf .venv build mast_ext/lib *.egg-info

# What the extension is compiled with. The packages that torch needs in turn, of several GB, are not
# among them: they come with the others.
.venv/tools: .ci/constraints.txt
	@echo "Installing PyTorch and the other packages into .venv (several GB)"
	$(PYTHON) -m venv .venv
	$(PIP) --no-deps torch setuptools cmake ninja
	touch $@

# The package and what it needs are installed while the extension compiles.
.venv/installed: EXTRA := dev
.venv/installed-to-train: EXTRA := train
.venv/installed .venv/installed-to-train: .venv/tools pyproject.toml
	@MAST_EXT_BUILD=later $(PIP) --no-build-isolation --editable ".[$(EXTRA)]" & \
	packages=$$!; trap "kill $$packages" INT TERM; \
	python setup.py --quiet build_ext --inplace || { kill $$packages; exit 1; }; \
	wait $$packages || { echo "Installing the packages failed: pip says why, above" >&2; exit 1; }
	touch $@

.venv/built: .venv/installed $(NATIVE)
	python setup.py --quiet build_ext --inplace
	touch $@

.venv/built-here .venv/built-here-for-gpus: export MAST_EXT_CPU ?= native
.venv/built-here: export MAST_EXT_CUDA ?= OFF
.venv/built-here .venv/built-here-for-gpus: .venv/installed-to-train $(NATIVE)
	python setup.py --quiet build_ext --inplace
	rm -f .venv/built-here*
	touch $@

# For tests without a GPU, which build it themselves when asked alone.
build/emulation/built: .venv/installed $(NATIVE) $(EMULATION)
	python tests/emulation/build.py
	touch $@
