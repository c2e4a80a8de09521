# `make` lists the targets.
PYTHON ?= python3
BIN := .venv/bin
ARGS ?=
OUT ?= outputs/gpu
DATA ?= data
INSTALLED := .venv/.installed
# Of all plugins that are installed, pytest would rewrite the sources, Hydra's and hypothesis's, too.
PYTEST := $(BIN)/python -m pytest --disable-plugin-autoload -p xdist -p hypothesispytest
# The study's networks, and those on or near its front, which have three seeds.
STUDY := plain16 plain24 plain32 cifarnet16 cifarnet32 cifarnet64 repvgg resnet8 resnet20 \
	shufflenetv2_half mobilenetv3_half mobilenetv3 mobilenetv4
FRONT := plain16 plain24 plain32 cifarnet16 resnet8
presets = experiment=$(subst $() ,$(comma),$(addprefix study/,$(1)))
comma := ,

.DEFAULT_GOAL := help
.PHONY: help setup demo train test test-slow gpu-check perf perf-long bench-latency study rank results report docs lint tensorboard clean

help: ## list the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## (.*)/\1\t\2/' | expand -t 14

setup: $(INSTALLED) ## make .venv and install the project with pinned versions

$(INSTALLED): requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' \
		|| { echo "error: $(PYTHON) is $$($(PYTHON) -V), needed is Python 3.11 to 3.13; say make PYTHON=python3.11 ..." >&2; exit 2; }
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check -r requirements.lock
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps -e .
	@touch $@

demo: setup ## train on handwritten digits, about a minute after the installation, no download
	$(BIN)/python train.py experiment=demo $(ARGS)

train: setup ## train: make train ARGS="model=shufflenetv2 optim=adamw"
	$(BIN)/python train.py $(ARGS)

test: setup ## run the fast tests
	$(PYTEST) -n 2 --dist worksteal $(ARGS)

test-slow: setup ## run the tests that take minutes
	$(PYTEST) -m slow $(ARGS)

gpu-check: ## on a machine with a GPU: gpu tests, then latencies: ARGS="--backbones resnet8 --protocol full"
	LIMIT=0 perf/gpu_steps.sh 1 $(OUT)
	LIMIT=0 perf/gpu_steps.sh 2 $(OUT) $(ARGS)

perf: setup ## measure input, overhead, training, start-up and many runs, on a quiet machine: about 40 minutes
	for part in input overhead startup throughput busy scale; do $(BIN)/python -m perf.$$part 2>/dev/null || exit 1; done

perf-long: setup ## time to 80 % and 85 % against the baseline recipe: about 2 hours, ARGS="data=..."
	$(BIN)/python -m perf.time_to_accuracy experiment=b1_progressive epochs=18 $(ARGS)

bench-latency: setup ## a hundred benchmarks: what is told apart, and what should be; hours, the same command goes on
	$(BIN)/python -m perf.ranking $(ARGS)

study: setup ## the project's answer: 13 networks, 30 minutes of 2 cores each, then one benchmark; goes on where it was
	$(BIN)/python train.py -m $(call presets,$(STUDY)) 'benchmark.variants=[]' outputs=outputs/study data.root=$(DATA) $(ARGS)
	$(BIN)/python train.py -m $(call presets,$(FRONT)) seed=1,2 'benchmark.variants=[]' outputs=outputs/study data.root=$(DATA) $(ARGS)
	for threads in 1 2; do $(BIN)/python -m cifar_lightning.measure run=all rerun=false 'variants=[fp32,fused,onnx,int8]' \
		"threads=[$$threads]" outputs=outputs/study data_root=$(DATA) || exit 1; done
	$(BIN)/python -m cifar_lightning.report min_acc=85 outputs=outputs/study

rank: setup ## the study's networks on your machine: no training, no data; goes on where it was
	@test -d docs/results/runs || { echo "error: docs/results/runs: the study's runs are not there yet" >&2; exit 2; }
	@mkdir -p outputs/rank/runs
	@for run in $(wildcard docs/results/runs/* docs/results/found/runs/*); do \
		test -e outputs/rank/runs/$${run##*/} || cp -R $$run outputs/rank/runs || exit 1; done
	$(BIN)/python -m cifar_lightning.measure outputs=outputs/rank run=all 'variants=[fused,onnx,int8]' rerun=false $(ARGS)
	$(BIN)/python -m cifar_lightning.report outputs=outputs/rank

results: setup ## write the study's tables and plot in README.md and docs/ anew from docs/results
	$(BIN)/python -m cifar_lightning.report outputs=docs/results,docs/results/found to=outputs/results
	$(BIN)/python docs/tables.py
	cp outputs/results/accuracy-latency-*-t1.svg docs/results/accuracy-latency.svg

report: setup ## compare all runs: tables, plots and outputs/report/index.html
	$(BIN)/python -m cifar_lightning.report $(ARGS)

docs: setup ## write docs/configuration.md anew from conf/
	$(BIN)/python docs/configuration.py > docs/configuration.md

lint: setup ## check style and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

tensorboard: setup ## watch the training curves at http://localhost:6006
	$(BIN)/tensorboard --logdir outputs/tensorboard $(ARGS)

clean: ## remove caches and the virtual environment; outputs and data stay
	rm -rf .venv build .pytest_cache .mypy_cache .ruff_cache .hypothesis *.egg-info
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
