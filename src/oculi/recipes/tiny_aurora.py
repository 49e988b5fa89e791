"""AuroraEdge-V on the testbed: 36 patches become 9 tokens, four to one as in the paper."""

from __future__ import annotations

from oculi.recipe import (
    EvalSpec,
    FusionSpec,
    ImageSpec,
    MlpSpec,
    ModelSpec,
    Recipe,
    Stage,
    TowerSpec,
)
from oculi.recipes.tiny import LLM, drawn

TOWER = "testbed:aimv2"
PATCHES, TOKENS = 36, 9


def aurora_tiny() -> Recipe:
    """AuroraEdge-V on Playroom's levels 1 and 2, mixed: the paper's three stages.

    oculi train aurora_tiny --out RUN

    Level 1 at 99 %, level 2 at 87 % after 29 minutes on two cores (docs/results.md). As table 2 says,
    tower and LLM are frozen first, then the tower alone, then nothing. Several questions about a
    picture are one conversation, as the paper advises (section 4.3): so it learns more from fewer of
    them. Level 2, relations above all, is what is hard, so there is more of it once the LLM learns
    (docs/log.md). Rates are those that tiny models learn at, a lower one for the LLM; the last stage
    keeps the paper's distance to the second, one to twenty.
    """
    return Recipe(
        name="aurora_tiny",
        summary="AuroraEdge-V on the testbed: Playroom's levels 1 and 2, 36 patches to 9 tokens",
        model=ModelSpec(
            llm=LLM,
            vision=TowerSpec(init_from=TOWER, layer=-1, final_norm=True),
            images=ImageSpec(mode="native", min_patches=PATCHES, max_patches=PATCHES),
            compress=MlpSpec(patches=PATCHES, tokens=TOKENS),
            fusion=FusionSpec(kind="combined"),
            image_attention="causal",
            attention="blocked",  # faster than SDPA on a CPU, docs/log.md
        ),
        stages=_stages(),
        evals=(
            EvalSpec(task="playroom:1", limit=600),
            EvalSpec(task="playroom:2", limit=1200, only_at_end=True),
            EvalSpec(task="playroom:1:pairs", limit=300, only_at_end=True),
        ),
    )


def _stages() -> tuple[Stage, Stage, Stage]:
    data = tuple(drawn(level=n, questions=5) for n in (1, 2))
    harder = (
        drawn(level=1, questions=5, weight=0.3),
        drawn(level=2, questions=6, weight=0.9),
        drawn(level=2, questions=4, weight=0.35, kinds=("relation",)),
        drawn(level=2, questions=4, weight=0.2, kinds=("count",)),
    )
    connectors = {"vision.connector.*": None, "compress.*": None, "fusion.*": None}
    vision = Stage(
        name="vision",
        data=data,
        steps=300,
        batch=16,
        length=640,
        pack_length=256,  # attention is half of a step, so short rows are faster, docs/log.md
        micro_rows=64,
        lr=2e-3,
        warmup_steps=50,
        schedule="cosine",
        trainable=dict(connectors),
        workers=0,  # on two cores a loader process brings nothing, docs/log.md
        log_every=20,
        checkpoint_every=500,
    )
    llm = vision.model_copy(
        update={
            "name": "llm",
            "data": harder,
            "steps": 6600,
            "batch": 8,
            "lr": 1e-3,
            "warmup_steps": 60,
            "trainable": {**connectors, "llm.*": 2.8e-4},
            "weight_decay": 0.1,
        }
    )
    joint = llm.model_copy(
        update={
            "name": "joint",
            "steps": 150,
            "warmup_steps": 5,
            "lr": 5e-5,
            "trainable": {"vision.*": None, "compress.*": None, "fusion.*": None, "llm.*": 1.4e-5},
        }
    )
    return vision, llm, joint
