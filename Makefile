# demo, test, parity, fuzz, ranks, lint, wheel: each sets up what it needs in .venv, on a machine with Python 3.11 or newer, pip and make.
# uv is used where it is there. Stamps under .venv/stamps keep a second run from installing anything again.

# The first interpreter that is new enough; `make PYTHON=...` chooses another.
PYTHON ?= $(shell for p in python3 python3.13 python3.12 python3.11 python; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$p && break; done)
UV := $(shell command -v uv 2>/dev/null)
BIN := .venv/bin
STAMPS := .venv/stamps
# In an environment that uv made there is no pip; in one that pip made, uv may have come later.
INSTALL = $(if $(wildcard $(BIN)/pip),$(BIN)/python -m pip install -q,uv pip install -q --python $(BIN)/python)

.PHONY: demo test parity fuzz ranks lint wheel clean

# All cores; a file's tests stay in one process, so that what they share is made once.
PYTEST = $(BIN)/python -m pytest -n auto --dist loadfile
# What `ruff format` has gone through.
FORMATTED = .

demo: $(STAMPS)/run $(STAMPS)/blas
	$(BIN)/mlx-imagegen generate "a small red circle left of a large blue square on a white background" --seed 1 -o demo.png --overwrite

test: $(STAMPS)/dev $(STAMPS)/blas
	$(PYTEST)

parity: $(STAMPS)/parity $(STAMPS)/blas
	$(PYTEST) -m parity

# As many damaged files, kills, failing calls and faults of a hub as one likes: make fuzz N=10000 SEED=7
N ?= 2000
SEED ?= 1
fuzz: $(STAMPS)/dev $(STAMPS)/blas
	$(BIN)/python -m tests.fuzz.runner $(N) $(SEED)
	$(BIN)/python -m tests.fuzz.faults kills $$(($(N) / 20)) $(SEED)
	$(BIN)/python -m tests.fuzz.faults calls $$(($(N) / 20)) $(SEED)
	$(BIN)/python -m tests.fuzz.hub $$(($(N) / 30)) $(SEED)

# Every family drawn by 2 and 4 ranks on this machine, next to one process: minutes.
ranks: $(STAMPS)/dev $(STAMPS)/blas
	$(BIN)/python -m tests.distributed.every_family

lint: $(STAMPS)/dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check $(FORMATTED)
	$(BIN)/mypy

wheel: $(STAMPS)/dev
	$(BIN)/python -m hatchling build -t wheel

clean:
	rm -rf .venv build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache

$(BIN)/python:
	@test -n "$(PYTHON)" || { echo "Python 3.11 or newer is needed; install it, or name it: make PYTHON=/path/to/python3"; exit 1; }
ifneq ($(UV),)
	uv venv -q --python $(PYTHON) .venv
else
# Debian's python3 comes without ensurepip; virtualenv brings a pip of its own and is kept out of the system's packages.
	$(PYTHON) -m venv .venv || { rm -rf .venv; $(PYTHON) -m pip install -q --target build/virtualenv virtualenv \
		&& PYTHONPATH=build/virtualenv $(PYTHON) -m virtualenv -q .venv; }
endif

$(STAMPS)/run: pyproject.toml | $(BIN)/python
	$(INSTALL) -e .
	@mkdir -p $(STAMPS) && touch $@

$(STAMPS)/dev: pyproject.toml | $(BIN)/python
	$(INSTALL) -e '.[dev]'
	@mkdir -p $(STAMPS) && touch $(STAMPS)/run $@

# torch by itself first: a plain request takes the build that this machine's package sources offer.
$(STAMPS)/parity: pyproject.toml | $(BIN)/python
	$(INSTALL) torch==2.13.0
	$(INSTALL) -e '.[dev,parity]'
	@mkdir -p $(STAMPS) && touch $(STAMPS)/run $(STAMPS)/dev $@

# On Linux MLX's own BLAS is a reference one, about 80x slower than OpenBLAS; everything works without it.
$(STAMPS)/blas: | $(BIN)/python
	@if [ "$$(uname)" = Linux ] && ! $(BIN)/python -c 'import ctypes; ctypes.CDLL("libopenblas.so.0")' 2>/dev/null; then \
		if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
			{ apt-get install -y -qq libopenblas0-pthread || { apt-get update -qq && apt-get install -y -qq libopenblas0-pthread; }; } \
				>/dev/null 2>&1 || echo "libopenblas0-pthread could not be installed; MLX's CPU backend will be slow."; \
		else echo "libopenblas0-pthread is not installed; MLX's CPU backend will be slow."; fi; fi
	@mkdir -p $(STAMPS) && touch $@
