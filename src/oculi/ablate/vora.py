"""What the ablations of VoRA (arXiv 2503.20680) share: the recipe, its size, what counts as an effect.

Widths and depths shrink, so ranks do: 1024 of a width of 3584 becomes the recipe's 64 of 192, and 512
and 1536 half and one and a half of it. As in section 5.2 all rows of a seed see the same samples in the
same order, at a constant learning rate after 100 warm-up steps (5.1), both losses with a weight of one
(equation 4). 22,400 samples stand for the 8M.
"""

from __future__ import annotations

from oculi.recipe import DistillSpec, EvalSpec, LmSpec, LoraSpec, Recipe
from oculi.recipes.tiny import TEACHER, drawn, vora_tiny

STEPS = 700
LABELS = ("Vision Params", "Visual Attention Mask", "Distillation type")
KINDS = ("colour", "shape", "size", "position", "existence", "description")

# Smallest effects of interest. Half of the smallest difference of loss that the paper reads as one, and
# less than half of the gains in score and of the savings of steps that it names.
LOSS, SCORE, SAVED = 0.003, 0.01, 0.02
SHARE = 0.25  # of runs: one in four
TEXT_LOSS, TEXT = 0.05, 0.05  # nats per token; five questions of a hundred

NOTES = (
    "Playroom's level 1, an LLM of 2.6M parameters and a teacher of 5 blocks, instead of DataComp, 7B "
    "and 24 blocks.",
    "Scores are exact match by free generation on 2,000 held-out questions, asked of the merged model; "
    "the paper's are benchmarks, after fine-tuning.",
    "Pre-training is on questions and answers, not captions, and without the text that section 4.2 "
    "mixes in.",
)
EVALS = (
    EvalSpec(task="playroom:1", limit=2000, blind=False, only_at_end=True),
    EvalSpec(task="playroom:1:pairs", limit=600, blind=False, only_at_end=True),
)


def pretraining() -> Recipe:
    """The paper's pre-training on the testbed, every step logged.

    ``vora_tiny`` weighs words less and learns by Muon, which is not what the paper ablates.
    """
    recipe = vora_tiny()
    stage = recipe.stages[0].model_copy(
        update={
            "data": (drawn(level=1),),
            "steps": STEPS,
            "batch": 32,
            "objectives": (LmSpec(), DistillSpec(teacher=TEACHER, mode="block")),
            "warmup_steps": 100,
            "schedule": "constant",
            "muon": (),
            "trainable": {"llm.*.lora_?": None, "vision.*": None, "objectives.*": None},
            "log_every": 1,
            "checkpoint_every": 175,
        }
    )
    return recipe.model_copy(
        update={
            "name": "vora_ablation",
            "model": recipe.model.model_copy(update={"lora": LoraSpec(rank=64, blocks=5)}),
            "stages": (stage,),
            "evals": EVALS,
            "keep_last": 1,
        }
    )
