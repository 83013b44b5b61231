# On a fresh machine: Python 3.10 or newer with its venv module, and make. `make help` lists what there is.
PYTHON ?= python3
VENV ?= .venv
# Tests run in this many processes of one thread each: importing torch and timm is most of what many of them do.
JOBS ?= 2
TESTFLAGS ?=
MUTANTS ?=
# The longest files first, so that no process waits for the other one's last.
LONG := $(wildcard tests/test_detectron2_tools.py tests/test_timm_suite.py tests/test_stock_scripts.py)
TESTS := $(LONG) $(filter-out $(LONG),$(sort $(wildcard tests/test_*.py)))

BIN := $(VENV)/bin
STAMP := $(VENV)/.randwire_zoo_installed
SMALL_STAMP := $(VENV)/.randwire_zoo_quickstart

# Without bytecode every import of torch and timm takes seconds longer, and the tests start many interpreters.
unexport PYTHONDONTWRITEBYTECODE

.DEFAULT_GOAL := help
.PHONY: help install quickstart test check mutants upstream benchmark docs dist clean test-oldest test-newest

help:  ## this list
	@echo 'make TARGET [PYTHON=python3.12]; the targets:'
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  \1|\2/p' $(MAKEFILE_LIST) | awk -F '|' '{ printf "%-13s %s\n", $$1, $$2 }'

# $(1): the extras to install. pip would compile twenty thousand files, one after the other, in a minute or more, of which
# few are ever imported; what is imported gets its bytecode then.
define environment
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and \
	  "Python >= 3.10 is needed and $(PYTHON) is " + sys.version.split()[0] + "; choose one: make PYTHON=python3.12")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --no-compile -c constraints.txt -e '.[$(1)]'
	@touch $@
endef

install: $(STAMP)  ## make .venv and install the project with everything the tests need

$(STAMP): pyproject.toml constraints.txt
	$(call environment,dev)

# It needs little of that; an environment that has everything serves as well.
quickstart: $(if $(wildcard $(STAMP)),$(STAMP),$(SMALL_STAMP))  ## train on handwritten digits, evaluate, reload, draw
	$(BIN)/randwire-zoo quickstart

$(SMALL_STAMP): pyproject.toml constraints.txt
	$(call environment,digits)

test: install  ## run all tests; TESTFLAGS='-k graphs' narrows them
	@$(BIN)/python tests/upstream.py --install
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(JOBS) --dist loadfile --no-loadscope-reorder $(TESTFLAGS) $(TESTS)

# $(1): oldest or newest, $(2): Python, $(3): which versions of what is needed
define test_on
	uv venv --quiet --allow-existing --python $(2) .venv-$(1)
	uv pip install --quiet --python .venv-$(1)/bin/python $(3) -e '.[cluster,digits,search]' \
	  hypothesis pytest pytest-timeout pytest-xdist
	OMP_NUM_THREADS=1 .venv-$(1)/bin/python -m pytest -n $(JOBS) --dist loadfile $(TESTFLAGS) $(TESTS)
endef

test-oldest:  ## the same on the oldest versions that pyproject.toml allows, with uv
	$(call test_on,oldest,3.10,-c constraints-oldest.txt)

test-newest:  ## the same on the newest versions there are, with uv; records them in constraints-newest.txt
	$(call test_on,newest,3.13,--upgrade)
	{ sed '/^#/!d' constraints-newest.txt; uv pip freeze --python .venv-newest/bin/python | \
	  grep -E "^($$(sed -n 's/==.*//p' constraints-oldest.txt | paste -sd '|'))=="; } > constraints-newest.new
	mv constraints-newest.new constraints-newest.txt

check: install  ## lint and type-check
	$(BIN)/python -m ruff check
	$(BIN)/python -m mypy

mutants: install  ## mutation testing, hours; MUTANTS='graphs hub/' narrows it
	$(BIN)/python -m pip install -q -c constraints.txt -e '.[dev,mutants]'
	nice -n 19 $(BIN)/python tests/mutants.py $(MUTANTS)

upstream: install  ## fetch timm's scripts and detectron2, and build its wheel, for the tests that need them
	$(BIN)/python tests/upstream.py

benchmark: install  ## measure speed, memory and imports into docs/data; PEERS='DIR DIR' are clones of the others
	PYTHON=$(BIN)/python sh benchmarks/all.sh docs/data $(PEERS)

docs: install  ## fill the figures of the documents in from docs/data, docs/studies and the package's data
	$(BIN)/python docs/render.py

dist: install  ## build what goes to PyPI, and check it
	rm -rf dist
	$(BIN)/python -m build --no-isolation --outdir dist .
	$(BIN)/python -m twine check --strict dist/*

clean:  ## remove the environment and everything built
	rm -rf $(VENV) .venv-oldest .venv-newest build dist *.egg-info .pytest_cache .ruff_cache .mypy_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
