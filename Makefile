# Everything a developer or a user does here. 'make help' lists it.
#
# Variables:
#   ARGS          flags for the command, e.g. make serve ARGS="--port 9101 --model vit_b --checkpoint FILE"
#   PYTHON        the Python to build .venv with, 3.11 or later
#   TORCH         cpu (default) or cuda: which build of torch is installed; kept until another is named
#   TORCH_INDEX   where pip finds that build, if its own configuration does not: a URL, see tools/install_torch.sh
#   WORKERS       make test: how many processes run tests side by side
#   TABLE         make faults, make hostile, make compose-test: the Markdown file whose table is written anew, e.g. TABLE=docs/reliability.md
#   DURATION      make soak: how long, in seconds; 600 if not said
#   PIP_ARGS      more options for every pip install, e.g. --find-links or --index-url in a closed network

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help

ARGS ?=
PYTHON ?= $(shell tools/find_python.sh)
TORCH_INDEX ?=
PIP_ARGS ?=
WORKERS ?= 2
TABLE ?=
DURATION ?= 600

VENV := .venv
# What .venv was made with, so that TORCH=cuda need not be said again.
TORCH ?= $(or $(patsubst $(VENV)/.torch-%,%,$(firstword $(wildcard $(VENV)/.torch-*))),cpu)
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip -qq --disable-pip-version-check
CODE := sam encoder_service decoder_service gateway samovar starter bench protos tests tools
BUF_VERSION := 1.75.0
COMPILED := sam/compiled decoder_service/fused encoder_service/fused
# Where hostile input is tried: a folder of its own, and the tests of the rooms that meet it first.
HOSTILE := tests/hostile tests/encoder_service/test_addresses.py tests/encoder_service/test_images.py \
	$(wildcard tests/encoder_service/test_fetch*.py) tests/gateway/test_arrays.py tests/gateway/test_hostile_bodies.py

.PHONY: help serve test acceptance faults gpu hostile operate compose-test soak audit sbom lint proto docs bench clean

help: ## Show this list
	@echo "Samovar. The two to begin with: make serve, make test."
	@sed -nE 's/^([a-z-]+):.*## (.*)/  make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 21
	@sed -nE 's/^#   ([A-Z_]+ .*)/  \1/p' $(MAKEFILE_LIST)

serve: $(VENV)/.ready-serve $(VENV)/.compiled ## Set up if need be, and serve everything from one process (ARGS="--help" lists flags)
	@exec $(BIN)/python -m samovar serve $(ARGS)

test: $(VENV)/.ready-dev $(VENV)/.compiled ## Set up if need be, and run the tests (ARGS="-k words" picks some)
	@tools/ensure_redis.sh
	@tools/ensure_chromium.sh
	@$(BIN)/python -m pytest -q --numprocesses $(WORKERS) --dist loadfile --no-loadscope-reorder $(ARGS)

acceptance: $(VENV)/.ready-dev $(VENV)/.compiled ## Drive it with real clients, the demo page in a browser among them
	@tools/ensure_redis.sh
	@tools/ensure_chromium.sh
	@tools/ensure_acceptance.sh $(BIN)/python
	@$(BIN)/python -m pytest -q -m acceptance $(ARGS)

faults: $(VENV)/.ready-dev $(VENV)/.compiled ## Inject every fault of the catalogue, and print what came of it (TABLE=FILE writes it, too)
	@tools/ensure_redis.sh
	@tools/ensure_dnsmasq.sh
	@$(BIN)/python -m pytest -q -m faults tests/faults tests/sam/test_redis_topologies.py $(if $(TABLE),--table $(TABLE)) $(ARGS)

hostile: $(VENV)/.ready-dev ## Send hostile input of all kinds, and print what came of it (TABLE=FILE writes it, too)
	@tools/ensure_redis.sh
	@tools/ensure_atheris.sh $(BIN)/python
	@$(BIN)/python -m pytest -q -m "" --hypothesis-profile=hostile $(HOSTILE) $(if $(TABLE),--table $(TABLE)) $(ARGS)

gpu: $(VENV)/.ready-dev ## Try out all that runs on a GPU without one: kernels, their machine code, the benchmark
	@$(BIN)/python -m pytest -q -m "" tests/encoder_service/gpu tests/bench/test_gpu.py $(ARGS)

operate: $(VENV)/.ready-dev $(VENV)/.compiled ## Try out what operators rely on: alerts and dashboard with a real Prometheus, and more
	@tools/ensure_redis.sh
	@tools/ensure_promtool.sh
	@$(BIN)/python -m pytest -q -m "" tests/operate $(ARGS)

compose-test: $(VENV)/.ready-dev $(VENV)/.compiled ## Build the images, run the compose file in containers, scale and kill them (root; TABLE=FILE)
	@tools/ensure_containers.sh
	@exec $(BIN)/python -m tests.compose $(if $(TABLE),--table $(TABLE)) $(ARGS)

soak: $(VENV)/.ready-dev ## Mix all kinds of clients for DURATION seconds, and hold memory, files and threads flat
	@tools/ensure_redis.sh
	@DURATION=$(DURATION) $(BIN)/python -m pytest -q -s -m soak tests/faults $(if $(TABLE),--table $(TABLE)) $(ARGS)

audit: $(VENV)/.ready-dev ## Look the installed packages up in a database of known vulnerabilities
	@tools/ensure_audit.sh $(BIN)/python
	@tools/audit.sh $(VENV)

sbom: $(VENV)/.ready-dev ## Write build/sbom.json, a CycloneDX list of the installed packages
	@tools/ensure_audit.sh $(BIN)/python
	@build/audit/bin/cyclonedx-py environment --pyproject pyproject.toml --mc-type application \
		--output-reproducible --of JSON -o build/sbom.json $(BIN)/python
	@echo "build/sbom.json"

lint: $(VENV)/.ready-dev ## Check style, types and the contract's form
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy $(sort $(dir $(wildcard $(CODE:=/*.py))))
	BUF_VERSION=$(BUF_VERSION) tools/buf.sh lint protos
	BUF_VERSION=$(BUF_VERSION) tools/buf.sh format --diff --exit-code protos

proto: $(VENV)/.ready-dev ## Generate sam/v1/ from protos/
	$(BIN)/python protos/generate.py

docs: $(VENV)/.ready-dev ## Write README's tables and the references of docs/ anew
	$(BIN)/python -m tools.readme_tables
	$(BIN)/python -m tools.http_reference
	$(BIN)/python -m tools.grpc_reference
	$(BIN)/python -m tools.metrics_reference

bench: $(VENV)/.ready-dev $(VENV)/.compiled ## List the benchmarks, each of which prints a table
	@echo "Run one with: $(BIN)/python -m bench.NAME"; ls bench/*.py 2>/dev/null || echo "(none yet)"

clean: ## Remove the environment and everything generated, but not downloaded weights
	rm -rf $(VENV) build dist node_modules .mypy_cache .ruff_cache .pytest_cache .hypothesis *.egg-info
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# A stamp is younger than what it was made from, so a second run installs nothing.

$(BIN)/python:
	@test -n "$(PYTHON)" || { echo "Samovar needs Python 3.11 or later: install it, or name it with PYTHON=..."; exit 1; }
	@echo "Creating $(VENV) with $$($(PYTHON) --version)"
	@$(PYTHON) -m venv $(VENV)

$(VENV)/.torch-$(TORCH): tools/install_torch.sh | $(BIN)/python
	@rm -f $(VENV)/.torch-*
	@TORCH=$(TORCH) TORCH_INDEX="$(TORCH_INDEX)" tools/install_torch.sh $(BIN)/python $(PIP_ARGS)
	@touch $@

$(VENV)/.ready-serve: pyproject.toml $(VENV)/.torch-$(TORCH)
	@echo "Installing Samovar"
	@$(PIP) install $(PIP_ARGS) -e '.[all]'
	@touch $@

$(VENV)/.ready-dev: pyproject.toml $(VENV)/.torch-$(TORCH)
	@echo "Installing Samovar and what its tests need"
	@$(PIP) install $(PIP_ARGS) -e '.[dev]'
	@touch $(VENV)/.ready-serve $@

# After the environment, of which only the Python is needed; built anew where a source has changed.
$(VENV)/.compiled: $(wildcard $(COMPILED:%=%/*.cpp) $(COMPILED:%=%/*.h)) sam/compiled/build.py | $(VENV)/.torch-$(TORCH)
	@$(BIN)/python -m sam.compiled.build
	@touch $@
