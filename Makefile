# make demo    real processes find each other and finish real work although one of them is killed
# make test    every check, then every test against the built wheel
#
# Needs Python 3.11+ and make, no root. Everything is installed into .venv, once.

# The first Python that is new enough; `make test PYTHON=python3.13` picks another one for a new .venv.
PYTHON ?= $(firstword $(foreach p,python3 python3.14 python3.13 python3.12 python3.11 python,\
	$(shell $(p) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $(p))))
SEEDS ?= 100000
# One more than the two cores that the tests are made for: many of them wait for processes.
WORKERS ?= 3
# Extra words for the command at hand: make quick ARGS="-k outbox -x", make demo ARGS=some/folder
ARGS ?=

VENV := .venv
WHEEL := .venv-wheel
PY := $(VENV)/bin/python
WHEEL_PY := $(WHEEL)/bin/python
PIP := $(PY) -m pip --disable-pip-version-check
# worksteal: with loadgroup, pytest-xdist 3.8 waits for ever once a worker has died.
PYTEST := -m pytest -n $(WORKERS) --dist worksteal
# What a wheel is made of. Folders count too: a file removed changes its folder.
SOURCES := $(shell find meshmsg -name __pycache__ -prune -o -print 2>/dev/null) pyproject.toml README.md LICENSE

# Python must not put the current folder in front of what is installed, or the wheel would never be tested.
export PYTHONSAFEPATH := 1
unexport PYTHONPATH
# A thousand processes are started, and all import the same: compiled once, that takes half the time.
unexport PYTHONDONTWRITEBYTECODE
# pyright comes bundled with its wheel; without this it also asks the index for news at every start.
export PYRIGHT_PYTHON_IGNORE_WARNINGS := 1

.PHONY: help demo test quick lint format soak bench clean check-types check-tests-types check-style check-imports
.DELETE_ON_ERROR:

help:
	@echo "make demo                 watch real processes finish real work although one is killed"
	@echo "make test                 all checks and all tests, against the built wheel"
	@echo "make quick [ARGS=...]     the tests on the checkout, without checks and wheel"
	@echo "make lint, make format    the static checks; fix what a tool can fix"
	@echo "make soak SEEDS=n         the simulator with n seeds instead of a few thousand"
	@echo "make bench [ARGS=...]     side by side with raw pyzmq and other libraries"
	@echo "make clean                remove .venv and everything built"

demo: $(VENV)/.installed-run
	@$(VENV)/bin/meshmsg demo $(ARGS)

test: lint $(WHEEL)/.installed
	MESHMSG_TEST_WHEEL=1 $(WHEEL_PY) $(PYTEST) $(ARGS)

quick: $(VENV)/.installed-dev
	$(PY) $(PYTEST) $(ARGS)

# At the same time, as each of them uses one core.
lint: $(VENV)/.installed-dev
	@$(MAKE) --no-print-directory -j2 check-types check-tests-types check-style check-imports

check-types:
	$(PY) -m mypy --strict

check-tests-types:
	$(PY) -m pyright --pythonpath $(PY)

check-style:
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .

check-imports:
	$(VENV)/bin/lint-imports --no-logo

format: $(VENV)/.installed-dev
	$(PY) -m ruff check --fix .
	$(PY) -m ruff format .

soak: $(VENV)/.installed-dev
	MESHMSG_SEEDS=$(SEEDS) $(PY) $(PYTEST) -o faulthandler_timeout=0 tests/simulation $(ARGS)

bench: $(VENV)/.installed-bench
	$(PY) benchmarks/compare.py $(ARGS)

clean:
	rm -rf $(VENV) $(WHEEL) dist build .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# --- what the above need -------------------------------------------------------------------------------------------

$(PY):
	@test -n "$(PYTHON)" || { echo "meshmsg needs Python 3.11 or newer; say which: make PYTHON=/path/to/python3" >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip' 2>/dev/null || { \
		echo "$(PYTHON) cannot make virtual environments; install its venv package (Debian: python3-venv)" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)

# .venv/bin/python is a link to a Python that may be older or newer than anything here, so it only has to exist.
$(VENV)/.installed-run: pyproject.toml | $(PY)
	@echo "installing meshmsg into $(VENV) (once)"
	@$(PIP) install --quiet --editable '.[cli,speed]'
	@touch $@

$(VENV)/.installed-dev: pyproject.toml | $(PY)
	@echo "installing meshmsg and the tools that check it into $(VENV) (once)"
	@$(PIP) install --quiet --editable '.[dev]'
	@touch $@ $(VENV)/.installed-run

$(VENV)/.installed-bench: $(VENV)/.installed-dev
	@echo "installing what the benchmarks compare with (once)"
	@$(PIP) install --quiet --editable '.[dev,bench]'
	@touch $@

# The wheel gets an environment of its own, with nothing but the wheel in it: its dependencies are those of .venv, put
# behind it by a .pth file. (.pth files found that way are not followed, so .venv's editable install stays out.)
$(WHEEL)/.installed: $(SOURCES) $(VENV)/.installed-dev
	@rm -rf $(WHEEL)
	@$(PY) -m venv --without-pip $(WHEEL)
	$(PY) -m build --wheel --no-isolation --outdir $(WHEEL)/dist . > $(WHEEL)/build.log 2>&1 || { cat $(WHEEL)/build.log; exit 1; }
	@$(PIP) --python $(WHEEL_PY) install --quiet --no-index --no-deps $(WHEEL)/dist/*.whl
	@$(PY) -c 'import sysconfig; print(sysconfig.get_path("purelib"))' \
		> "$$($(WHEEL_PY) -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/dependencies.pth"
	@touch $@
