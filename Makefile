# Each target installs what it needs, except Python 3.11 to 3.14. `make` alone lists the targets.
.DEFAULT_GOAL := help
.PHONY: help install demo dev test test-waiting test-rest test-newest test-debian-postgres test-fast crash-test distributed-test bench lint format clean chromium pgbouncer redis iproute2 faketime

PYTHON ?= python3
PORT ?= 3000
DEMO ?=
CRASH ?=
BENCH ?=
CHROMIUM ?= /usr/bin/chromium
PGBOUNCER ?= /usr/sbin/pgbouncer
REDIS ?= /usr/bin/redis-server
DISTRIBUTED ?=
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/ready

help: ## List the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-16s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

install: $(READY) ## Only set up .venv

demo: $(READY) ## Send a sample campaign through the real job, against mock providers (DEMO="--count 50")
	@$(BIN)/campaign-pipeline demo $(DEMO)

dev: $(READY) ## Dagster's UI on http://127.0.0.1:3000 (PORT=3001 for another port)
	@$(BIN)/campaign-pipeline dev --port $(PORT)

test: test-waiting test-rest ## All tests. Installs Debian's chromium, pgbouncer, redis-server and iproute2, if need be

test-waiting: $(READY) chromium pgbouncer redis iproute2
	$(BIN)/python -m pytest campaign_pipeline_tests/browser  # they share one UI, so one worker
	$(BIN)/python -m pytest campaign_pipeline_tests/distributed  # its hosts use both cores

test-rest: $(READY) pgbouncer
	$(BIN)/python -m pytest -n 3 --ignore campaign_pipeline_tests/browser --ignore campaign_pipeline_tests/distributed  # tests wait for processes: three workers fill two cores

test-newest: $(READY) ## Core, adapters and a whole job on the newest supported Python of this machine
	@.ci/test-newest-python $(BIN)/python

test-debian-postgres: $(READY) ## The tests of SQL and beside the CRM on Debian's PostgreSQL; installs it, if need be
	@.ci/test-debian-postgres $(BIN)/python

test-fast: $(READY) ## Core, SQL and adapters, without slow tests and with few generated examples: for the edit loop
	$(BIN)/python -m pytest -n 3 --dist loadfile -m "not slow" --hypothesis-profile few campaign_pipeline_tests/core campaign_pipeline_tests/sql campaign_pipeline_tests/adapters

chromium: ## Install the browser for the UI's tests from Debian's packages, if allowed
	@.ci/debian-package chromium $(CHROMIUM) "the tests of the UI"

pgbouncer: ## Install the pooler for the tests, likewise
	@.ci/debian-package pgbouncer $(PGBOUNCER) "the tests through a pooler"

redis: ## Install the broker for the tests on several hosts, likewise
	@.ci/debian-package redis-server $(REDIS) "the tests on several hosts" REDIS

iproute2: ## Install the tool that creates their hosts (network namespaces), likewise
	@.ci/debian-package iproute2 "$$(command -v ip || echo /usr/sbin/ip)" "the tests on several hosts" PATH

faketime: ## Install the tool that shifts a host's clock, likewise
	@.ci/debian-package faketime /usr/bin/faketime "the hosts with a wrong clock"

crash-test: $(READY) ## Kill and suspend processes at random, and verify all invariants (CRASH="--messages 20000 --kills 200 --seed 7")
	$(BIN)/python -m campaign_pipeline_tests.crash.campaign $(CRASH)

distributed-test: $(READY) redis iproute2 faketime ## The same on several hosts: network, workers, clocks, broker, store (DISTRIBUTED="--messages 5000 --deaths 60 --seed 7")
	$(BIN)/python -m campaign_pipeline_tests.distributed.campaign $(DISTRIBUTED)

bench: $(READY) ## Compare with Celery, procrastinate and others; writes RESULTS.md and README's figures (about 40 minutes)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[dev,bench]' -c constraints.txt
	$(BIN)/python -m benchmarks $(BENCH)

lint: $(READY) ## Check style, types, import contracts, declared dependencies, and that Dagster loads the code location
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --config setup.cfg
	$(BIN)/deptry .  # every import is declared, and every dependency used
	$(BIN)/deptry campaign_pipeline --optional-dependencies-dev-groups dev,bench  # the product uses none of them
	DAGSTER_DISABLE_TELEMETRY=1 $(BIN)/dagster definitions validate -w workspace.yaml

format: $(READY) ## Fix style automatically
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean: ## Remove the virtual environments and caches; the data under .campaign stays
	rm -rf $(VENV) .venv-3.* build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; (3, 11) <= v <= (3, 14) or sys.exit("Python 3.11 to 3.14 is needed, but $(PYTHON) is %d.%d; name another: make PYTHON=python3.12" % v)'
	@$(BIN)/python -c '' 2>/dev/null || $(PYTHON) -m venv --clear $(VENV)
	@echo "Installing into $(VENV), once"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[dev]' -c constraints.txt
	@touch $@
