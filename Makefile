# The tasks of a checkout. `make` alone lists them.

PYTHON ?= python3
PORT ?= 8000
# For example: make test PYTEST_ARGS='-k replay'
PYTEST_ARGS ?=
# For example: make bench BENCH_ARGS='--database sqlite'
BENCH_ARGS ?=
# For example: make lock LOCK_ARGS=--upgrade
LOCK_ARGS ?=

# For example: make pytest VENV=.venv-3.12 PYTHON=python3.12
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet
PACKAGES := gateway schema resolvers storage

# The development lock holds all of the running lock in the same versions, so installing it satisfies both.
RUN_READY := $(VENV)/.run-ready
DEV_READY := $(VENV)/.dev-ready

# The programs of others that `make conformance` runs; npm writes the last file when it is done.
AUDITS := tests/conformance
AUDITS_READY := $(AUDITS)/node_modules/.package-lock.json
# graphql-core's source, which has its tests; its version is the installed one's.
CORE_READY := build/graphql-core/.ready

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help run test test-programs pytest quick coverage test-pythons fuzz conformance torture citus bench \
	lint lint-format lint-style lint-spelling lint-types lint-imports lint-dependencies hooks audit format lock graphiql clean

help: ## List the targets.
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-14s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))

run: $(RUN_READY) ## Serve a demo at PORT (8000).
	@exec $(BIN)/tollgate serve --demo --port $(PORT)

PYTEST := $(BIN)/pytest -n auto --maxprocesses 4 --dist worksteal

test: SUITE := --no-programs
test: lint pytest ## Run `lint`, then the tests of one process, on SQLite and on PostgreSQL.

test-programs: SUITE := --programs
test-programs: pytest ## Run the other tests: they start commands, servers and browsers, and kill them.

pytest: $(DEV_READY)
	@echo 'pytest'
	@$(PYTEST) $(SUITE) $(PYTEST_ARGS)

quick: $(DEV_READY) ## Run the tests of a minute: SQLite, no other process, one case of each.
	@# Loading that plugin takes a second, and no test here needs it.
	@$(PYTEST) -p no:schemathesis --quick $(PYTEST_ARGS)

coverage: $(DEV_READY) ## Show how much of each room the tests of one process run.
	@mkdir -p build
	@$(PYTEST) --once \
		--cov --cov-report=json:build/coverage.json $(PYTEST_ARGS)
	@$(BIN)/python -m tests.covered build/coverage.json

# The versions that pyproject.toml promises. One is looked for in PATH, then among those of pyenv.
PROMISED := $(shell sed -n 's/.*Python :: \(3\.[0-9]*\)".*/\1/p' pyproject.toml)

test-pythons: $(DEV_READY) ## Run the tests on each other Python that is promised and found, but for `one_python`.
	@own=$$($(BIN)/python -c 'import sys; print("%d.%d" % sys.version_info[:2])'); \
	passed=; failed=; missing=; \
	for version in $(PROMISED); do \
		[ "$$version" != "$$own" ] || continue; \
		found=; \
		for each in "python$$version" "$${PYENV_ROOT:-$$HOME/.pyenv}/versions/$$version".*/bin/python; do \
			"$$each" -c 'import venv' 2>/dev/null && found=$$each; done; \
		if [ -z "$$found" ]; then missing="$$missing $$version"; continue; fi; \
		echo "Python $$version is $$found."; \
		if $(MAKE) --no-print-directory pytest "VENV=.venv-$$version" "PYTHON=$$found" \
			"PYTEST_ARGS=-m 'not one_python' $(PYTEST_ARGS)"; \
		then passed="$$passed $$version"; else failed="$$failed $$version"; fi; \
	done; \
	echo "Python $$own is that of \`make test\`. Others that passed:$${passed:- none}."; \
	[ -z "$$missing" ] || echo "NOT FOUND, AND SO NOT TESTED: Python$$missing."; \
	[ -z "$$failed" ] || { echo "FAILED: Python$$failed."; exit 1; }

conformance: $(AUDITS_READY) $(CORE_READY) ## Run others' programs: audits, the lint of the schema, clients.
	@$(BIN)/pytest --capture=no $(AUDITS)/conformance.py $(PYTEST_ARGS)

fuzz: $(DEV_READY) ## Draw thousands of operations and requests, where the other tests draw some hundred.
	@$(BIN)/pytest --fuzz tests/test_fuzz.py tests/test_executor.py tests/test_rest.py::TestDescription tests/test_costliest_http.py \
		tests/test_abuse.py::test_every_bad_value_of_every_argument_is_refused_or_harmless $(PYTEST_ARGS)

torture: $(DEV_READY) ## Kill, cut and restart under load, a million hostile requests, the model for many more rounds.
	@$(BIN)/pytest --torture tests/test_torture.py tests/test_model.py tests/test_credits.py tests/test_credit_torture.py tests/test_abuse.py $(PYTEST_ARGS)

citus: $(DEV_READY) ## Run the tests of a database of several machines, at TOLLGATE_TEST_CITUS_URL.
	@if [ -n "$$TOLLGATE_TEST_CITUS_URL" ]; then \
		$(BIN)/pytest -rs tests/citus/division.py tests/citus/copying.py tests/citus/operations.py $(PYTEST_ARGS) \
		&& $(PYTEST) --citus $(PYTEST_ARGS); \
	else echo 'NOTHING WAS RUN: set TOLLGATE_TEST_CITUS_URL to the URL of a coordinator of Citus.'; fi

bench: $(DEV_READY) ## Measure beside the comparators. QUICK=1 takes two minutes.
	@$(BIN)/python -m benchmarks.run $(if $(QUICK),--quick) $(BENCH_ARGS)

# The examples; npm writes the first file when it is done. The client's generator has an environment of its own.
FRONTEND := examples/frontend
FRONTEND_READY := $(FRONTEND)/node_modules/.package-lock.json
CLIENT := examples/python-client
CLIENT_READY := $(CLIENT)/.venv/.ready
LLM_PROXY := examples/llm-proxy
LLM_PROXY_READY := $(LLM_PROXY)/.venv/.ready

RECEIVERS := examples/receiver-python examples/stripe
RECEIVERS_READY := $(addsuffix /.venv/.ready,$(RECEIVERS))
TS_RECEIVER := examples/receiver-typescript
TS_RECEIVER_READY := $(TS_RECEIVER)/node_modules/.package-lock.json

.PHONY: examples
examples: $(FRONTEND_READY) $(CLIENT_READY) $(LLM_PROXY_READY) $(RECEIVERS_READY) $(TS_RECEIVER_READY) ## Build the examples from the schema, and test them.
	@PATH="$(CURDIR)/$(BIN):$$PATH" && pytest tests/examples/frontend.py tests/examples/python_client.py \
		tests/examples/llm_proxy.py tests/examples/receivers.py tests/examples/stripe_payments.py \
		tests/examples/deploy.py $(PYTEST_ARGS)

$(FRONTEND_READY) $(TS_RECEIVER_READY): %/node_modules/.package-lock.json: %/package.json %/package-lock.json %/.npmrc $(DEV_READY)
	@echo 'npm ci'
	@PATH="$(CURDIR)/$(BIN):$$PATH" && cd $* && npm ci --loglevel=error
	@touch $@

$(CLIENT_READY): $(CLIENT)/requirements.lock $(DEV_READY)
	@echo 'Installing $(CLIENT)/requirements.lock into $(CLIENT)/.venv ...'
	@$(BIN)/python -m venv --clear $(CLIENT)/.venv
	@$(CLIENT)/.venv/bin/python -m pip --disable-pip-version-check --quiet install --require-hashes \
		--requirement $(CLIENT)/requirements.lock
	@touch $@

# Those of the proxy are half a gigabyte, which uv installs in a third of pip's time.
$(LLM_PROXY_READY) $(RECEIVERS_READY): %/.venv/.ready: %/requirements.lock $(DEV_READY)
	@echo 'Installing $*/requirements.lock into $*/.venv ...'
	@$(BIN)/python -m venv --clear --without-pip $*/.venv
	@$(BIN)/uv pip install --quiet --compile-bytecode --require-hashes --python $*/.venv/bin/python \
		--requirement $*/requirements.lock
	@touch $@

lint: lint-format lint-style lint-spelling lint-types lint-imports lint-dependencies ## Check format, style, spelling, types and imports.

lint-format: $(DEV_READY)
	@echo 'ruff format --check'
	@$(BIN)/ruff format --check --quiet . || { echo 'Run `make format`.' >&2; exit 1; }

lint-style: $(DEV_READY)
	@echo 'ruff check'
	@$(BIN)/ruff check --quiet .

lint-spelling: $(DEV_READY)
	@echo 'codespell'
	@$(BIN)/codespell

lint-types: $(DEV_READY)
	@echo 'mypy'
	@$(BIN)/mypy

lint-imports: $(DEV_READY)
	@echo 'lint-imports'
	@$(BIN)/lint-imports --no-logo

lint-dependencies: $(DEV_READY)
	@echo 'deptry'
	@$(BIN)/deptry $(PACKAGES)

audit: $(DEV_READY) ## Ask whether an advisory is known for what is locked; needs the internet.
	@$(BIN)/pip-audit --strict --require-hashes --disable-pip --requirement requirements-otel.lock

hooks: $(DEV_READY) ## Check format, style and spelling before each commit from now on.
	@$(BIN)/pre-commit install

format: $(DEV_READY) ## Format, and fix what can be fixed.
	@$(BIN)/ruff check --fix-only --quiet .
	@$(BIN)/ruff format .

# Versions already locked stay unless pyproject.toml or LOCK_ARGS say otherwise.
UV_COMPILE = $(BIN)/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes \
	--custom-compile-command 'make lock' $(LOCK_ARGS)

lock: $(DEV_READY) ## Write the lock files anew from pyproject.toml and the examples' requirements.
	@$(UV_COMPILE) pyproject.toml --group build --output-file requirements.lock
	@$(UV_COMPILE) pyproject.toml --group dev --all-extras --constraint requirements.lock --output-file requirements-dev.lock
	@$(UV_COMPILE) pyproject.toml --group build --extra otel --constraint requirements-dev.lock \
		--output-file requirements-otel.lock
	@for example in $(CLIENT) $(LLM_PROXY) $(RECEIVERS); do \
		$(UV_COMPILE) $$example/requirements.in --output-file $$example/requirements.lock || exit 1; done
	@if grep -n '://' requirements.lock requirements-dev.lock requirements-otel.lock examples/*/requirements.lock; then \
		echo 'The lock files may not name an address: any mirror must serve.' >&2; exit 1; fi

# Its node and npm are those of the environment.
graphiql: $(DEV_READY) ## Build GraphiQL's page from its source.
	@cd gateway/pages/graphiql/source && export PATH="$(CURDIR)/$(BIN):$$PATH" && npm ci && npm run build

clean: ## Remove the environment, caches and builds; databases stay.
	@rm -rf $(VENV) .venv-* $(AUDITS)/node_modules gateway/pages/graphiql/source/node_modules dist build .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
	@find $(wildcard $(PACKAGES) tests) -name __pycache__ -type d -prune -exec rm -rf {} +
	@rm -rf $(CLIENT)/tollgate_client $(addsuffix /.venv,$(CLIENT) $(LLM_PROXY) $(RECEIVERS))
	@rm -rf $(TS_RECEIVER)/node_modules $(TS_RECEIVER)/events.ts
	@rm -rf $(FRONTEND)/node_modules $(FRONTEND)/dist $(FRONTEND)/*/gql $(FRONTEND)/persisted-documents.json

$(RUN_READY): requirements.lock pyproject.toml
	$(call install,requirements.lock)
	@touch $@

$(DEV_READY): requirements-dev.lock requirements.lock pyproject.toml
	$(call install,requirements-dev.lock)
	@touch $(RUN_READY) $@

$(AUDITS_READY): $(AUDITS)/package.json $(AUDITS)/package-lock.json $(AUDITS)/.npmrc $(DEV_READY)
	@echo 'npm ci'
	@PATH="$(CURDIR)/$(BIN):$$PATH" && cd $(AUDITS) && npm ci --loglevel=error
	@touch $@

$(CORE_READY): $(DEV_READY)
	@echo 'pip download graphql-core'
	@rm -rf $(@D) && mkdir -p $(@D)
	@$(PIP) download --no-deps --no-binary graphql-core --dest $(@D) \
		"graphql-core==$$($(BIN)/python -c 'import graphql; print(graphql.__version__)')"
	@tar -xzf $(@D)/*.tar.gz -C $(@D)
	@touch $@

# Makes the environment if there is no usable one, then installs a lock file and the project over it.
define install
@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
	echo 'Tollgate needs Python 3.11 or newer, and $(PYTHON) is:' "$$($(PYTHON) --version 2>&1)." \
		'Name another one: make PYTHON=python3.12 ...' >&2; exit 1; }
@$(BIN)/python -c 'import pip, sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || \
	$(PYTHON) -m venv --clear $(VENV) >/dev/null 2>&1 || { \
	rm -rf $(VENV); \
	echo '$(PYTHON) cannot make an environment; on Debian and Ubuntu: apt install python3-venv' >&2; exit 1; }
@echo 'Installing $(1) into $(VENV) ...'
@$(PIP) install --require-hashes --requirement $(1)
@$(PIP) install --no-build-isolation --no-deps --editable .
endef
