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
    """VoRA on Playroom: pre-training that is mostly distillation, merge, fine-tuning on all five levels.

    oculi train vora_tiny --out RUN

    Under 30 minutes on two cores; times and scores are in docs/results.md. In pre-training
    words weigh a twentieth, which is enough to keep them, and text is mixed in as in the paper
    (section 4.2). Without either the LLM comes out of it speechless and hardly learns to answer
    again; with a weight of one shapes come late (docs/log.md). Captions say all of a picture at
    once. Muon updates LoRA of three blocks; the last three stay as they are (the teacher's five are
    all distilled, two of them through such blocks). Then everything learns from several questions
    about each picture, side by side: later answers could be read off earlier ones, and a model that
    can read does not look.
    """
    pretrain = Stage(
        name="pretrain",
        data=(
            *(drawn(level=n, kinds=("description",)) for n in (1, 2)),
            *(drawn(level=n) for n in (1, 2)),
            _text(0.7),
        ),
        steps=800,
        batch=64,
        length=640,
        pack_length=512,  # long rows are full, and in blocks attention over them costs little
        micro_rows=64,
        separate_turns=0.9,
        plain_turns=0.5,
        objectives=(LmSpec(weight=0.05), DistillSpec(teacher=TEACHER, mode="block")),
        lr=2e-3,
        warmup_steps=40,
        schedule="cosine",
        muon=("llm.*.lora_?",),
        trainable={"llm.*.lora_?": 1.5e-2, "vision.*": None, "objectives.*": None},
        workers=0,  # on two cores a loader process brings nothing, docs/log.md
        log_every=20,
        checkpoint_every=500,
        merge_lora=True,
    )
    finetune = pretrain.model_copy(
        update={
            "name": "finetune",
            "data": _asked(),
            "steps": 2620,
            "batch": 16,
            "micro_rows": 12,  # all at once
            "separate_turns": 0.95,
            "objectives": (LmSpec(),),
            "lr": 1e-3,
            "warmup_steps": 60,
            "muon": ("llm.*proj.weight",),
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
            attention="blocked",  # faster than SDPA on a CPU, docs/log.md
            lora=LoraSpec(rank=64, blocks=3),
        ),
        stages=(pretrain, finetune),
        evals=(
            EvalSpec(task="playroom:1", limit=300),
            EvalSpec(task="playroom:2", limit=300),
            EvalSpec(task="playroom:1:pairs", limit=300),
            *(EvalSpec(task=f"playroom:{n}", limit=300, only_at_end=True) for n in (3, 4, 5)),
        ),
    )


def _asked() -> tuple[PlayroomSource | LanguageSource, ...]:
    """Fine-tuning's: mostly level 2, and once more what is learnt late.

    That is relations and counts of level 2, and places of level 1. The choice between whole
    descriptions is not learnt by asking it more often (docs/log.md).
    """
    return (
        drawn(level=1, questions=5, weight=0.45),
        drawn(level=1, questions=3, weight=0.05, kinds=("position",)),
        drawn(level=2, questions=6, weight=0.8),
        drawn(level=2, questions=4, weight=0.35, kinds=("relation",)),
        drawn(level=2, questions=4, weight=0.15, kinds=("count",)),
        drawn(level=3, questions=6, weight=0.08),
        drawn(level=4, questions=6, weight=0.1),
        drawn(level=5, questions=6, weight=0.15),
        _text(0.15),
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
            "muon": (),
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
