# make demo   the whole loop on this machine          make test   ruff, mypy --strict, every test
# make install  only .venv                            make lint   ruff and mypy
# make soak   more than a hundred kills over the whole loop, its counts in benchmarks/results/soak.json
# make console   the page, built from its sources by Node (22 or 20); what it makes is committed
# make release-check   the wheel, built, looked at, installed into an empty environment, and the demo run from there
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin

.PHONY: demo test soak console release-check lint install constraints clean

demo: install
	$(BIN)/bco demo $(ARGS)

test: lint
	$(BIN)/pytest -n 2 --dist loadgroup $(ARGS)

soak: install
	$(BIN)/python benchmarks/soak.py $(ARGS)

console:
	cd bco_ray/console/source && npm ci --no-audit --no-fund && npm run build && npm test

release-check: install
	PYTHON=$(PYTHON) VENV=$(abspath $(VENV)) .ci/release-check

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

install: $(VENV)/installed

# torch first and by itself: asked for by another package it may come as another build, with gigabytes of CUDA.
$(VENV)/installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
		|| { echo "bco-ray needs Python 3.11 or newer; name one with: make PYTHON=python3.11 ..."; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --upgrade pip
	$(BIN)/pip install --quiet --constraint constraints.txt torch
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[dev]'
	@touch $@

# After an upgrade that passed `make test`: write down what was tested.
constraints: install
	$(BIN)/pip freeze --exclude-editable | sed 's/+cpu$$//' > constraints.txt

clean:
	rm -rf $(VENV) build dist .mypy_cache .ruff_cache .pytest_cache
