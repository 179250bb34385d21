# The one door: everything a person or a machine runs here is a target below.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
SETUP := PYTHON="$(PYTHON)" bash deployment/setup.sh
SHELL_FILES = $(wildcard deployment/*.sh tests/deployment/*.sh) .ci/run tests/smoke.sh

.DEFAULT_GOAL := help
.PHONY: help install model run chat test test-training fuzz check format heads bench bench-full bench-traffic bench-speculation bench-rows bench-peers bench-latency bench-gateway prove-faults prove-overload prove-repeat prove-strangers torture soak sanitize dist up down docker-check audit docker-test lock clean

help: ## Show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-17s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)
	@echo
	@echo '  make model && make run MODEL=vicuna-7b      fetches Vicuna-7B with Medusa heads, serves it'
	@echo '  make run MODEL=/path/to/any.gguf            serves that file instead of the demo model'
	@echo '  make run PORT=8010 MODEL_SERVER_PORT=8011   uses other ports'
	@echo '  make run CMAKE_ARGS="-DGGML_CUDA=on"        builds llama.cpp for NVIDIA GPUs'
	@echo '  PYTHON=python3.12 make ...                  chooses the interpreter (3.10 to 3.13)'

install: ## Make .venv and install what serving needs, llama.cpp built from source
	@$(SETUP) serve

model: install ## Fetch Vicuna-7B and its heads, QUANT=Q4_K_M quantized, or MODEL=OWNER/REPO/FILE
	@exec $(BIN)/python -m model_server.tools.download "$(or $(MODEL),vicuna-7b)" $(if $(QUANT),--quant "$(QUANT)")

run: install ## Serve the demo model, or MODEL=/path.gguf, or a name in models/, until Ctrl-C
	@MODEL="$(MODEL)" QUANT="$(QUANT)" exec $(BIN)/python deployment/run.py

chat: ## Talk to a running service in this terminal (ARGS=--complete: continue texts)
	@$(SETUP) gateway
	@exec $(BIN)/python -m deployment.chat $(ARGS)

test: ## Run the whole test suite
	@$(SETUP) dev
	@$(BIN)/python -m pytest -n 2 --dist loadfile

test-training: ## Run the tests that need PyTorch (installs it into .venv)
	@$(SETUP) dev
	@$(SETUP) train
	@$(BIN)/python -m pytest tests/training

fuzz: ## Throw 5,000 requests made from the OpenAPI document at both tiers
	@$(SETUP) dev
	@$(BIN)/python -m tests.fuzz $(ARGS)

check: ## Lint, formatting and types
	@$(SETUP) dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/shellcheck $(SHELL_FILES)

format: ## Format the code and fix what the linter can
	@$(SETUP) dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

heads: ## Train Medusa heads: make heads ARGS="base.gguf heads.gguf --prompts prompts.txt"
	@$(SETUP) train
	$(BIN)/python -m model_server.training $(ARGS)

bench: ## Measure what README says, in ten minutes; the report and its pictures
	@$(SETUP) dev
	$(BIN)/python -m tests.benchmarks $(ARGS)

bench-full: ## Measure everything, for hours (ARGS="--compare OLD.json": did it get worse?)
	@$(SETUP) dev
	$(BIN)/python -m tests.benchmarks --full $(ARGS)

bench-traffic: ## How long do people wait? ARGS="--url URL --rate 2 4 --clients 1 4", of any server
	@$(SETUP) dev
	$(BIN)/python -m tests.benchmarks.traffic $(ARGS)

bench-speculation: ## Medusa on against off under load: is it never slower?
	@$(SETUP) dev
	$(BIN)/python -m tests.benchmarks.speculation $(ARGS)

bench-rows: ## What rows cost by our kernels, against llama.cpp's and the machine's limits
	@$(SETUP) dev
	$(BIN)/python -m tests.benchmarks.rows $(ARGS)

bench-peers: ## Compare with llama.cpp's own server (ARGS="--quick" for a short run)
	@$(SETUP) dev
	$(BIN)/python -m tests.benchmarks.peers $(ARGS)

bench-latency: ## Measure who waits for whom: TTFT and inter-token times under load
	@$(SETUP) dev
	$(BIN)/python -m tests.benchmarks.latency $(ARGS)

bench-gateway: ## Measure the gateway alone, on a core of its own, before a stub
	@$(SETUP) dev
	$(BIN)/python -m tests.benchmarks.gateway $(ARGS)

prove-faults: ## kill -9 the model server under streaming clients: nothing may be lost
	@$(SETUP) dev
	$(BIN)/python -m tests.benchmarks.faults $(ARGS)

prove-overload: ## A minute of ten times what the service can carry
	@$(SETUP) dev
	$(BIN)/python -m tests.benchmarks.overload $(ARGS)

prove-repeat: ## Ask the same chats at temperature 0 again and again: one text each?
	@$(SETUP) dev
	$(BIN)/python -m tests.benchmarks.repeat $(ARGS)

prove-strangers: ## Slow, silent and half-closed clients beside others: do these notice?
	@$(SETUP) dev
	$(BIN)/python -m tests.benchmarks.strangers $(ARGS)

torture: ## Faults of processes and of the network under load, for an hour: what is lost?
	@$(SETUP) dev
	$(BIN)/python -m tests.fire $(ARGS)

soak: ## 45 minutes of mixed traffic: is it at the end what it was at the start?
	@$(SETUP) dev
	$(BIN)/python -m tests.fire.soak $(ARGS)

sanitize: ## Run the kernels' tests under the address and undefined-behaviour sanitizers
	@$(SETUP) dev
	$(BIN)/python -m tests.benchmarks.sanitize $(ARGS)

dist: ## Build the wheel that `pip install` takes, into dist/
	@$(SETUP) dev
	@$(BIN)/python -m hatchling build --target wheel --directory dist

up: ## Serve with Docker Compose, in the background; builds the images the first time
	docker compose up --build --detach --wait

down: ## Stop what `make up` started
	docker compose down

docker-check: ## Check Dockerfiles, compose and stack files, Kubernetes manifests and alerts
	@$(SETUP) checks
	@$(BIN)/python -m pytest -rs tests/deployment

# No diskcache is without this hole; llama-cpp-python imports it, and nothing here lets it write.
audit: ## Compare the locked packages with PyPI's list of known security holes
	@$(SETUP) checks
	$(BIN)/pip-audit --strict --no-deps --disable-pip --ignore-vuln CVE-2025-69872 \
		$(patsubst %,--requirement=requirements/%.txt,gateway model-server traces)

docker-test: ## Build the images, run them, break them (needs a running Docker with Compose)
	@docker compose version >/dev/null 2>&1 && docker info >/dev/null 2>&1 || \
		{ echo "make: Docker with Compose v2 is not running here, so nothing was tested." >&2; exit 1; }
	@$(SETUP) dev
	@$(BIN)/python -m pytest -m docker tests/docker $(ARGS)

lock: ## Write requirements/*.txt anew from requirements/*.in
	@$(SETUP) lock

clean: ## Remove .venv and everything that was built or cached
	rm -rf $(VENV) dist .cache .mypy_cache .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
