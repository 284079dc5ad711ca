# make run: the quickstart. make test: the tests. Both set up .venv first, once.
PYTHON ?= python3
QUICKSTART = quickstart/ncsnpp_vanilla,quickstart/ncsnpp_pds,quickstart/ncsnpp_sde,quickstart/ncsn_vanilla,quickstart/ncsn_pds
PIP = .venv/bin/python -m pip --disable-pip-version-check

.PHONY: run test lint clean

run: .venv/ready
	.venv/bin/python experiments/run.py -m experiment=$(QUICKSTART)

# The tests start Python some forty times; bytecode on disk spares each start a compilation of the sources.
test: export PYTHONDONTWRITEBYTECODE =
test: .venv/ready
	.venv/bin/python -m pytest -n 2 --dist worksteal

lint: .venv/ready
	.venv/bin/ruff format --check .
	.venv/bin/ruff check .
	.venv/bin/mypy

.venv/ready: pyproject.toml .ci/constraints.txt
	$(PYTHON) -m venv .venv
	$(PIP) install -q -c .ci/constraints.txt -e '.[dev]'
	touch $@

clean:
	rm -rf .venv
