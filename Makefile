# Every target sets up what it needs: a fresh machine with Python 3.11 and make is enough.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
RUN ?= runs/demo
# Shorter than the recipe's own, so that the whole demo takes minutes.
DEMO_PRETRAIN ?= 600
DEMO_FINETUNE ?= 400

.PHONY: env demo test lint format nightly clean

env: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit("oculi needs Python 3.11 or newer") if sys.version_info < (3, 11) else None'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	# torch first and pinned: a plain torch pulls gigabytes of CUDA packages.
	$(BIN)/pip install -q -c constraints.txt torch
	$(BIN)/pip install -q -c constraints.txt -e '.[log,diffusion,edge,export,dev]'
	touch $(STAMP)

# The main job: pre-train with distillation, merge, score, fine-tune, score, report, one answer.
demo: $(STAMP)
	rm -rf $(RUN)
	$(BIN)/oculi train vora_tiny stages.0.steps=$(DEMO_PRETRAIN) stages.1.steps=$(DEMO_FINETUNE) --out $(RUN)
	$(BIN)/oculi eval $(RUN)/stages/0-pretrain --task playroom:1 --limit 600 --above-blind
	# A picture with a colour-shape pair that no training picture held, its question and the true answer:
	$(BIN)/oculi testbed sample --split pairs --n 1 --out $(RUN)/unseen.png
	$(BIN)/oculi chat $(RUN) --image $(RUN)/unseen.png "What shape is the object?"
	$(BIN)/oculi chat $(RUN) --image $(RUN)/unseen.png "What colour is the object?"
	@echo "the report: $(RUN)/report.html"

test: $(STAMP)
	$(BIN)/pytest -n 2

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(STAMP)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

nightly: $(STAMP)
	OCULI_LONG=1 $(BIN)/pytest -m "slow or not slow"

clean:
	rm -rf $(VENV) build dist src/*.egg-info
