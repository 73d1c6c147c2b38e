# `make demo` and `make test` work on a machine with nothing but Python 3.11+ and a package registry.
PYTHON ?= python3
TESTS ?= tests/test_recipes.py tests/test_scripts.py tests/test_api.py tests/test_names.py
VENV ?= .venv
BIN = $(VENV)/bin
export MPLBACKEND = Agg

.PHONY: help demo check test test-newest test-no-bf16 faults docs clean
help:
	@echo 'make demo          train on the embedded data: about a minute on two cores'
	@echo 'make test          everything that must pass: linter, export, notebooks and their outputs, tests'
	@echo 'make check         what takes less than a minute of it, for the loop of an author'
	@echo 'make docs          README.md, and the documentation site in docs/_build/html: no network, no notebook runs'
	@echo 'make test-newest   some tests with the newest fastai and fastcore, in an environment of its own; TESTS=tests: all'
	@echo 'make faults        kill runs, damage their files, give bad values: a quarter of an hour on two cores, and a table'
	@echo 'make test-no-bf16  what depends on the precision, as on a processor without bf16 instructions'

$(VENV)/.ready: settings.ini setup.py pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info<(3,11) and "cifar_fast needs Python 3.11 or newer: make PYTHON=python3.12 ...")'
	$(PYTHON) -m venv $(VENV)
	@echo 'Installing PyTorch, fastai and the rest: some gigabytes, a few minutes'
	$(BIN)/pip install --quiet --disable-pip-version-check -e '.[dev]'
	touch $@

demo: $(VENV)/.ready
	$(BIN)/cifar_fast_train --recipe demo

check: $(VENV)/.ready
	$(BIN)/ruff check
	$(BIN)/python tests/check_export.py
	$(BIN)/python -m pytest -q tests/test_names.py tests/test_api.py tests/test_outputs.py

test: $(VENV)/.ready
	$(BIN)/ruff check
	$(BIN)/python tests/check_export.py
	OMP_NUM_THREADS=1 $(BIN)/python tests/check_outputs.py
	$(BIN)/python -m pytest -q -n 2 --dist loadfile tests

# fastcore 2 and nbdev 2.4 exclude each other, so this environment has the library and pytest only
$(VENV)-newest/.ready: settings.ini setup.py pyproject.toml
	$(PYTHON) -m venv $(VENV)-newest
	$(VENV)-newest/bin/pip install --quiet --disable-pip-version-check 'fastai>=2.8.12' 'fastcore>=2' '.[onnx]' pytest pytest-xdist
	touch $@
test-newest: $(VENV)-newest/.ready
	$(VENV)-newest/bin/pip install --quiet --disable-pip-version-check --no-deps --force-reinstall .
	$(VENV)-newest/bin/python -m pytest -q -n 2 --dist loadfile $(TESTS)

test-no-bf16: $(VENV)/.ready
	CIFAR_FAST_NO_BF16=1 OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q tests/test_api.py tests/test_bad_input.py
	for n in 08a_parts 09_learner 19_train 20_report 24_cli; do \
		CIFAR_FAST_NO_BF16=1 OMP_NUM_THREADS=1 $(BIN)/python tests/check_outputs.py nbs/$$n.ipynb || exit 1; done

# Not a part of `make test`, which has a small part of it; FAULTS='--seed 1 --every 3': others, fewer
faults: $(VENV)/.ready
	OMP_NUM_THREADS=1 $(BIN)/python tests/faults.py $(FAULTS)

docs: $(VENV)/.ready
	$(BIN)/python docs/tables.py
	$(BIN)/python docs/make_readme.py
	$(BIN)/python -m sphinx -q -E -W --keep-going -c docs -d docs/_build/doctrees . docs/_build/html

clean:
	rm -rf $(VENV) $(VENV)-newest build docs/_build *.egg-info
