# make benchmark   set up .venv, build, run the 12x12 benchmark's quick preset (a few minutes)
# make test        the same set-up, then the tests
# make bench       kernel timings against PyTorch (pytest-benchmark)
# make -j2 solve   train the two small planners whose weights come with the package anew, a core each (goes on where
#                  interrupted); SEED=1 is another training
# make lint        ruff
# Needs Python >= 3.11; a C++20 compiler for the kernels (without one the PyTorch fallback is installed).
# PYTHON=python3.12 chooses an interpreter, PIP_ARGS passes options to pip (an index, say).
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt $(PIP_ARGS)
READ_BUILD_REQUIRES := import tomllib; print(*tomllib.load(open("pyproject.toml", "rb"))["build-system"]["requires"], sep="\n")
SOURCES := setup.py CMakeLists.txt $(wildcard csrc/* csrc/*/*)

SEED ?= 0

.PHONY: benchmark test bench solve solve-looped_baseline solve-poh lint install clean
benchmark: install
	$(BIN)/python experiments/run_12x12_8m_benchmark.py --quick --overwrite --output experiments/results/quick

test: install
	$(BIN)/python -m pytest

bench: install
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

lint: install
	$(BIN)/ruff check .

install: $(VENV)/.installed

# Dependencies first and apart, so that an edited source does not install them again.
$(VENV)/.dependencies: constraints.txt pyproject.toml
	@echo "setting up $(VENV) (about a minute the first time)"
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -c '$(READ_BUILD_REQUIRES)' > $(VENV)/build-requires.txt
	$(PIP) -r $(VENV)/build-requires.txt
	touch $@

$(VENV)/.installed: $(VENV)/.dependencies $(SOURCES)
	@echo "building the C++ kernels (about a minute the first time)"
	PATH="$(abspath $(BIN)):$$PATH" $(PIP) --no-build-isolation -e '.[test]'
	@$(BIN)/python -W ignore -m poh_ext --brief
	touch $@

clean:
	rm -rf build dist *.egg-info poh_ext/*.so poh_ext/_build_status.json $(VENV)/.installed
