"""The same methods on the testbed: 2.6M-parameter checkpoints, two CPU cores, no downloads."""

from typing import Any

from oculi.recipe import (
    DistillSpec,
    EvalSpec,
    ImageSpec,
    LanguageSource,
    LmSpec,
    LoraSpec,
    ModelSpec,
    PatchEmbedSpec,
    PlayroomSource,
    Recipe,
    Stage,
    TowerSpec,
)

LLM = "testbed:llm"
TEACHER = "testbed:aimv2"


def vora_tiny() -> Recipe:
    """VoRA on Playroom's level 1: pre-training with block-wise distillation, merge, fine-tuning.

    oculi train vora_tiny --out RUN

    About half an hour on two cores. Most draws of a conversation learn one turn alone: later answers
    could be read off earlier ones, and a model that can read does not look (docs/log.md). Fine-tuning
    drops the question of some of them, for the same reason.
    """
    data = (PlayroomSource(level=1, samples=1_000_000),)
    pretrain = Stage(
        name="pretrain",
        data=data,
        steps=500,
        batch=32,
        length=640,
        pack_length=256,
        micro_rows=64,
        single_turns=0.9,
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
            "steps": 3500,
            "single_turns": 0.95,
            "plain_turns": 0.5,
            "objectives": (LmSpec(),),
            "lr": 2e-3,
            "trainable": {"llm.*": None, "vision.*": None},
            "weight_decay": 0.1,
            "merge_lora": False,
        }
    )
    return Recipe(
        name="vora_tiny",
        summary="VoRA on the testbed: Playroom, a 2.6M-parameter Qwen2, a tiny AIMv2 teacher",
        model=ModelSpec(
            llm=LLM,
            vision=PatchEmbedSpec(init_from=TEACHER),
            images=ImageSpec(mode="native", min_patches=16, max_patches=64),
            attention="eager",  # faster than SDPA on a CPU, docs/log.md
            lora=LoraSpec(rank=64, blocks=5),
        ),
        stages=(pretrain, finetune),
        evals=(
            EvalSpec(task="playroom:1", limit=600),
            EvalSpec(task="playroom:1:pairs", limit=300),
        ),
    )


def vora_see_tiny() -> Recipe:
    """VoRA on Playroom's levels 1 and 2 that sees first and keeps its words: 97 and 75 %.

    oculi train vora_see_tiny --out RUN

    About 27 minutes on two cores (docs/results.md). Pre-training is mostly distillation, with Muon on
    LoRA of three blocks; the last three stay as they are (the teacher's five are all distilled, two of
    them through such blocks). Words weigh a twentieth, which is enough to keep them, and text is mixed
    in as in the paper (section 4.2): without either the LLM comes out of it speechless and hardly
    learns to answer again (docs/log.md). Captions say all of a picture at once. Then everything learns
    from several questions about each picture.
    """
    plain = vora_tiny()
    pretrain, finetune = plain.stages
    pretrain = pretrain.model_copy(
        update={
            "data": (
                *(drawn(level=n, kinds=("description",)) for n in (1, 2)),
                *(drawn(level=n) for n in (1, 2)),
                _text(0.7),
            ),
            "steps": 650,
            "batch": 64,
            "plain_turns": 0.5,
            "objectives": (LmSpec(weight=0.05), DistillSpec(teacher=TEACHER, mode="block")),
            "warmup_steps": 40,
            "muon": ("llm.*.lora_?",),
            "trainable": {"llm.*.lora_?": 1.5e-2, "vision.*": None, "objectives.*": None},
        }
    )
    finetune = finetune.model_copy(
        update={
            "data": (
                drawn(level=1, questions=5, weight=0.5),
                drawn(level=2, questions=6, weight=0.8),
                drawn(level=2, questions=4, weight=0.25, kinds=("relation",)),
                drawn(level=2, questions=4, weight=0.15, kinds=("count",)),
                _text(0.2),
            ),
            "steps": 2600,
            "batch": 16,
            "warmup_steps": 60,
            "lr": 1e-3,
            "muon": ("llm.*proj.weight",),
        }
    )
    return plain.model_copy(
        update={
            "name": "vora_see_tiny",
            "summary": "VoRA on the testbed that sees first: levels 1 and 2, distillation weighs most",
            "model": plain.model.model_copy(update={"lora": LoraSpec(rank=64, blocks=3)}),
            "stages": (pretrain, finetune),
            "evals": (
                EvalSpec(task="playroom:1", limit=600),
                EvalSpec(task="playroom:2", limit=1200),
                EvalSpec(task="playroom:1:pairs", limit=300),
            ),
        }
    )


def drawn(**settings: Any) -> PlayroomSource:
    """Playroom without end, for recipes of the testbed."""
    return PlayroomSource(samples=1_000_000, **settings)


def _text(weight: float) -> LanguageSource:
    """What the LLM was pre-trained on."""
    return LanguageSource(samples=1_000_000, weight=weight)


def llava_tiny() -> Recipe:
    """LLaVA beside ``vora_tiny``: the same LLM, ViT, samples, order and steps; only the way in differs.

    oculi train llava_tiny --out RUN

    The connector is trained alone first, then with the LLM; the tower (vora_tiny's teacher) is frozen.
    """
    beside = vora_tiny()
    pretrain, finetune = beside.stages
    pretrain = pretrain.model_copy(
        update={
            "objectives": (LmSpec(),),
            "trainable": {"vision.connector.*": None},
            "merge_lora": False,
        }
    )
    finetune = finetune.model_copy(
        update={"trainable": {"vision.connector.*": None, "llm.*": None}}
    )
    model = beside.model.model_copy(
        update={
            "vision": TowerSpec(init_from=TEACHER, layer=-1),  # the state that it was trained on
            "lora": None,
            "image_attention": "causal",
        }
    )
    return beside.model_copy(
        update={
            "name": "llava_tiny",
            "summary": "LLaVA on the testbed, beside vora_tiny: the same LLM, ViT and order of samples",
            "model": model,
            "stages": (pretrain, finetune),
        }
    )
