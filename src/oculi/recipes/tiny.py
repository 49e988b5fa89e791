"""The same methods on the testbed: 2.6M-parameter checkpoints, two CPU cores, no downloads."""

from oculi.recipe import (
    DistillSpec,
    EvalSpec,
    ImageSpec,
    LmSpec,
    LoraSpec,
    ModelSpec,
    PlayroomSource,
    Recipe,
    Stage,
    VisionSpec,
)

LLM = "testbed:llm"
TEACHER = "testbed:aimv2"


def vora_tiny() -> Recipe:
    """VoRA on Playroom's level 1: pre-training with block-wise distillation, merge, fine-tuning.

    oculi train vora_tiny --out RUN
    """
    data = (PlayroomSource(level=1, samples=1_000_000),)
    pretrain = Stage(
        name="pretrain",
        data=data,
        steps=1000,
        batch=32,
        length=640,
        pack_length=256,
        micro_rows=64,
        single_turns=0.8,
        objectives=(LmSpec(), DistillSpec(teacher=TEACHER, mode="block")),
        lr=2e-3,
        warmup_steps=100,
        schedule="cosine",
        trainable={"llm.*.lora_?": None, "vision.*": None, "objectives.*": None},
        workers=0,  # on two cores a loader process brings nothing, docs/log.md
        log_every=20,
        checkpoint_every=500,
        merge_lora=True,
    )
    finetune = pretrain.model_copy(
        update={
            "name": "finetune",
            "steps": 2000,
            "objectives": (LmSpec(),),
            "lr": 2e-3,
            "trainable": {"llm.*": None, "vision.*": None},
            "merge_lora": False,
        }
    )
    return Recipe(
        name="vora_tiny",
        summary="VoRA on the testbed: Playroom, a 2.6M-parameter Qwen2, a tiny AIMv2 teacher",
        model=ModelSpec(
            llm=LLM,
            vision=VisionSpec(init_from=TEACHER),
            images=ImageSpec(mode="native", min_patches=16, max_patches=64),
            lora=LoraSpec(rank=64, blocks=5),
        ),
        stages=(pretrain, finetune),
        evals=(
            EvalSpec(task="playroom:1", limit=600),
            EvalSpec(task="playroom:1:pairs", limit=300),
        ),
    )
