# `make` alone lists the targets. Everything is installed into .venv; nothing outside this folder changes.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# The choice is kept in the stamp's name, so that `make test` after `make setup TORCH=cpu` stays with it.
TORCH ?= $(or $(patsubst $(VENV)/.ready-%,%,$(firstword $(wildcard $(VENV)/.ready-*))),default)
READY := $(VENV)/.ready-$(TORCH)
PIP := $(BIN)/python -m pip --disable-pip-version-check install --constraint constraints.txt
CPU_WHEELS := https://download.pytorch.org/whl/cpu

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help setup demo up down status test check lint types format protos bench images mlflow clean \
	render secrets deploy smoke undeploy

help: ## List the targets
	@echo "Usage: make TARGET [PYTHON=python3.12] [TORCH=default|cpu] [ENV=cpu|gpu|dev]"
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  \1|\2/p' $(firstword $(MAKEFILE_LIST)) \
		| awk -F '|' '{ printf "%-10s %s\n", $$1, $$2 }'

setup: $(READY) ## Make .venv with all dependencies; TORCH=cpu takes PyTorch's CPU wheels

demo: $(READY) ## Restore degraded copies of a photo over gRPC, into out/demo/
	$(BIN)/python -m services.restorer.demo

up: $(READY) ## Start the whole cluster on this machine; ARGS="--gateway-port 50100" is passed on
	@$(BIN)/python -m services.launcher up $(ARGS)

down: $(READY) ## Stop the cluster; what it stored stays in runs/cluster/
	@$(BIN)/python -m services.launcher down $(ARGS)

status: $(READY) ## Show the cluster's parts, their health, memory and addresses
	@$(BIN)/python -m services.launcher status $(ARGS)

test: $(READY) ## Run the tests; ARGS="-k tiles" is passed to pytest
	$(BIN)/python -m pytest $(ARGS)

check: lint types ## Everything that is checked without running the tests
	$(BIN)/python protos/generate.py --check

lint: $(READY) ## Check style and formatting
	$(BIN)/python -m ruff check .
	$(BIN)/python -m ruff format --check .

types: $(READY) ## Check types
	$(BIN)/python -m mypy

format: $(READY) ## Format the code
	$(BIN)/python -m ruff check --fix-only .
	$(BIN)/python -m ruff format .

protos: $(READY) ## Generate vlmir/v1 from protos/
	$(BIN)/python protos/generate.py

bench: $(READY) ## Measure speed; DATA=folder with bench/ and captioned/ measures quality, too
	@mkdir -p out
	$(BIN)/vlmir bench --json out/bench.json $(ARGS)
ifneq ($(DATA),)
	$(BIN)/python -m training.evaluate --data $(DATA)
	$(BIN)/python -m training.table out/evaluation.json
endif

# Docker's older image store cannot hold SBOM and provenance: `ATTEST=false make images` leaves them out.
images: export REVISION ?= $(shell git rev-parse HEAD 2>/dev/null)
images: ## Build the images with docker buildx; ARGS="gpu --push" is passed on (default: cpu --load)
	docker buildx bake --file deploy/docker/docker-bake.hcl $(or $(ARGS),cpu --load)

# Kubernetes; ENV names an overlay of deploy/k8s/overlays, see the README there.
render: ## Print the manifests of a cluster; ENV=cpu, gpu, dev or training
	@command -v kubectl >/dev/null || { echo "kubectl is not on the PATH; install it." >&2; exit 1; }
	@test -n "$(ENV)" -a -d "deploy/k8s/overlays/$(ENV)" || { \
		echo "ENV=$(ENV) is no environment; say ENV=cpu, gpu, dev or training." >&2; exit 1; }
	@kubectl kustomize "deploy/k8s/overlays/$(ENV)"

secrets: $(READY) ## Make the Secrets that a cluster lacks, with random values; ENV=cpu, gpu or dev
	@$(BIN)/python -m deploy.manifests secrets $(or $(ENV),"")

deploy: $(READY) ## Check the manifests, apply them, wait, restore a picture; ENV=cpu, gpu or dev
	@$(BIN)/python -m deploy.manifests deploy $(or $(ENV),"") $(ARGS)

smoke: $(READY) ## Restore a picture through a deployed cluster; ENV=cpu, gpu or dev
	@$(BIN)/python -m deploy.manifests smoke $(or $(ENV),"")

undeploy: $(READY) ## Delete all but volumes and Secrets; ENV=cpu, gpu or dev; ARGS=--delete-data, volumes too
	@$(BIN)/python -m deploy.manifests undeploy $(or $(ENV),"") $(ARGS)

# What the commands record without a server lies in the same database and folder: they show up here, and go on using
# both while it runs. Job runners, which only evaluate language models, would cost a gigabyte.
mlflow: export MLFLOW_SERVER_ENABLE_JOB_EXECUTION := false
mlflow: export MLFLOW_DISABLE_TELEMETRY := true
mlflow: $(READY) ## Show runs and registry at http://127.0.0.1:5000; ARGS="--port 5001" is passed on
	@mkdir -p runs/mlflow
	$(BIN)/mlflow server --host 127.0.0.1 --port 5000 --workers 1 --no-serve-artifacts \
		--backend-store-uri "sqlite:///$(CURDIR)/runs/mlflow/mlflow.db" \
		--default-artifact-root "$(CURDIR)/runs/mlflow/files" $(ARGS)

clean: ## Remove .venv, caches and out/
	rm -rf $(VENV) out build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# Another choice of PyTorch starts from an empty environment: pip would take the wheel that is there for the same.
$(READY): pyproject.toml constraints.txt
	@case "$(TORCH)" in default|cpu) ;; *) \
		echo "TORCH=$(TORCH) is unknown; choose default or cpu." >&2; exit 1;; esac
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
		echo "vlmir needs Python 3.11 or newer; '$(PYTHON) --version' says: $$($(PYTHON) --version 2>&1)" >&2; \
		echo "Install one and name it, for example: make setup PYTHON=python3.12" >&2; exit 1; }
	@for other in $(filter-out $(READY),$(wildcard $(VENV)/.ready-*)); do rm -rf $(VENV); done
	@$(PYTHON) -m venv $(VENV) || { \
		echo "$(PYTHON) cannot make a virtual environment; on Debian and Ubuntu install python3-venv." >&2; \
		exit 1; }
ifeq ($(TORCH),cpu)
	$(PIP) --no-deps --force-reinstall --index-url $(CPU_WHEELS) torch torchvision
endif
	$(PIP) --editable '.[cluster,train,dev]'
	@touch $@
