# Every target sets up what it needs: a fresh machine with Python 3.11 and make is enough.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
RUN ?= runs/demo
RECIPE ?= vora_tiny
# A recipe's demo: settings that make it minutes, and the stage that is scored beside a blind model.
DEMO_PRETRAIN ?= 300
DEMO_FINETUNE ?= 500
DEMO_SET_vora_tiny := stages.0.steps=$(DEMO_PRETRAIN) stages.1.steps=$(DEMO_FINETUNE) \
  evals.1.limit=300 evals.2.limit=150 evals.3.limit=100 evals.4.limit=100 evals.5.limit=100
DEMO_SCORED_vora_tiny := stages/1-finetune
DEMO_SET_aurora_tiny := stages.0.steps=200 stages.1.steps=800 stages.2.steps=50 \
  evals.0.limit=200 evals.1.limit=200 evals.2.limit=100
DEMO_SCORED_aurora_tiny := stages/2-joint
DEMO_SET ?= $(DEMO_SET_$(RECIPE))
DEMO_SCORED ?= $(DEMO_SCORED_$(RECIPE))

.PHONY: env demo test lint format nightly clean

env: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit("oculi needs Python 3.11 or newer") if sys.version_info < (3, 11) else None'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	# torch first and pinned: a plain torch pulls gigabytes of CUDA packages.
	$(BIN)/pip install -q -c constraints.txt torch
	$(BIN)/pip install -q -c constraints.txt -e '.[log,diffusion,edge,export,dev]'
	touch $(STAMP)

# The main job: train (vora_tiny: pre-train with distillation, merge, fine-tune), score, report, answer,
# export, answer again without torch. Another recipe: make demo RECIPE=aurora_tiny.
demo: $(STAMP)
	rm -rf $(RUN)
	$(BIN)/oculi train $(RECIPE) $(DEMO_SET) --out $(RUN)
	$(BIN)/oculi eval $(RUN)/$(DEMO_SCORED) --task playroom:1 --limit 600 --above-blind
	# A picture with a colour-shape pair that no training picture held, its question and the true answer:
	$(BIN)/oculi testbed sample --split pairs --n 1 --out $(RUN)/unseen.png
	$(BIN)/oculi chat $(RUN) --image $(RUN)/unseen.png "What shape is the object?"
	$(BIN)/oculi chat $(RUN) --image $(RUN)/unseen.png "What colour is the object?"
	# The same model for onnxruntime, int8:
	$(BIN)/oculi export $(RUN) --to onnx --int8 --out $(RUN)/edge
	$(BIN)/python -m oculi.edge answer $(RUN)/edge --image $(RUN)/unseen.png "What colour is the object?"
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
