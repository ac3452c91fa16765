# The verbs. Each one sets up what it needs: .venv with the pinned environment, and the native build.
# On a machine without a GPU `make pretrain` compiles for the CPU alone; the tests, for every
# generation of GPUs as well, so that nothing rots uncompiled.
#
#   make pretrain [ARGS="--method vicreg"]    make test [ARGS="-k nll"]    make bench    make lint
#   make docs                                 the site, in build/docs
#   make gpu-check PYTHON=python3             uses that Python as it is: no .venv, no downloads
#                                             (ARGS="--steps build sanitizers": .ci/gpu_check.py)

PYTHON ?= python3
BIN := .venv/bin
GPU := $(shell nvidia-smi -L >/dev/null 2>&1 && echo yes)
CUDA_ARCHS ?= $(if $(GPU),native,80-real;90a-real;100-real;120)
NATIVE := CMakeLists.txt setup.py $(shell find csrc -type f)
EMULATION := $(shell find tests/emulation -name '*.h' -o -name '*.cpp' -o -name '*.cmake')

export PATH := $(CURDIR)/$(BIN):$(PATH)
export CMAKE_ARGS ?= -DCMAKE_CUDA_ARCHITECTURES="$(CUDA_ARCHS)"
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.PHONY: pretrain test lint format bench docs gpu-check clean
.NOTPARALLEL:  # there is one build folder

# The first time takes minutes: it downloads the packages and compiles.
pretrain: export MAST_EXT_CUDA ?= $(if $(GPU),AUTO,OFF)
pretrain: .venv/built$(if $(GPU),-for-gpus)
	mast-ext pretrain $(ARGS)

# The slow tests run beside the others, and print when these are through: threads with nothing to do
# must not keep the cores from them. Exit code 5: none chosen.
test: export OMP_WAIT_POLICY ?= passive
test: .venv/built-for-gpus build/emulation/built
	@log=$$(mktemp); \
	python -m pytest -m slow $(ARGS) >$$log 2>&1 & slow=$$!; \
	python -m pytest -m "not slow" $(ARGS); code=$$?; \
	wait $$slow; slow_code=$$?; cat $$log; rm $$log; \
	test $$code = 0 -o $$code = 5 && test $$slow_code = 0 -o $$slow_code = 5 && test $$code$$slow_code != 55

lint: .venv/installed
	ruff check .
	ruff format --check .
	find csrc tests -name '*.h' -o -name '*.cpp' -o -name '*.cu' -o -name '*.cuh' | xargs clang-format --dry-run -Werror
	mypy

format: .venv/installed
	ruff check --fix .
	ruff format .
	find csrc tests -name '*.h' -o -name '*.cpp' -o -name '*.cu' -o -name '*.cuh' | xargs clang-format -i

bench: .venv/built-for-gpus
	python -m pytest benchmarks/ops --benchmark-only $(ARGS)

docs: .venv/built
	NO_MKDOCS_2_WARNING=1 mkdocs build --strict

gpu-check:
	$(PYTHON) .ci/gpu_check.py $(ARGS)

clean:
	rm -rf .venv build mast_ext/*.so *.egg-info

# torch comes first: the extension is built against the installed one.
.venv/installed: pyproject.toml .ci/constraints.txt
	@echo "Installing PyTorch and the other packages into .venv (several GB)"
	$(PYTHON) -m venv .venv
	python -m pip install --quiet --constraint .ci/constraints.txt torch torchvision setuptools cmake ninja pybind11
	@echo "Compiling mast_ext (MAST_EXT_CUDA=$${MAST_EXT_CUDA:-AUTO}) and installing what it needs"
	python -m pip install --quiet --constraint .ci/constraints.txt --no-build-isolation --editable ".[dev]"
	touch $@

.venv/built: .venv/installed $(NATIVE)
	python setup.py --quiet build_ext --inplace
	touch $@

.venv/built-for-gpus: .venv/installed $(NATIVE)
	MAST_EXT_CUDA=$${MAST_EXT_CUDA:-AUTO} python setup.py --quiet build_ext --inplace
	touch $@ .venv/built

# For tests without a GPU, which build it themselves when asked alone.
build/emulation/built: .venv/installed $(NATIVE) $(EMULATION)
	python tests/emulation/build.py
	touch $@
