"""AuroraEdge-V-2B at the paper's scale: fewer vision tokens, and text that reads those that were there.

    oculi train aurora --llm Qwen/Qwen2.5-1.5B --teacher DIR --data captions.jsonl --out RUN

Sections 3 and 4, tables 1 and 2: Qwen2.5-1.5B and SigLIP 2 so400m NaFlex, 256 patches to 64 tokens by
an MLP, combined fusion; three stages at 1e-3, 2e-5 and 1e-6, batch 32, 32 and 16, cosine after a warm-up
ratio of 0.03, 3, 3 and 2 epochs, on eight A40 (hours not given). Not trained here. Their scores: table
3, as VQAv2 83.2, GQA 65.8, TextVQA 77.3. docs/aurora.md says what is the paper's and what is inferred.

The paper names the data of each stage (supplement, "Training Data Details") and gives no sizes. Numbers
here are those of the published sets, a conversation a picture, as section 4.3 advises; those of the
paper's own synthesised sets are a guess, and ``stages.N.steps`` should follow what you have.
"""

from __future__ import annotations

from oculi.recipe import (
    FileSource,
    FusionSpec,
    ImageSpec,
    MlpSpec,
    ModelSpec,
    Recipe,
    Stage,
    TowerSpec,
)

LLM = "Qwen/Qwen2.5-1.5B"
TOWER = "google/siglip2-so400m-patch16-naflex"
PATCHES, TOKENS = 256, 64
WARMUP_RATIO = 0.03
A_PART = 0.1  # weight of what the paper mixes "a small amount" or "a selection" of

SYNTHESISED = (
    100_000  # of each strategy; not given. As many as ShareGPT4V has by GPT-4V (2311.12793)
)
SAMPLES = {  # conversations, one a picture
    "llava-pretrain": 558_128,  # LLaVA-1.5 (2310.03744)
    "flickr30k": 31_783,
    "coco-captions": 118_287,  # pictures of train2017
    "mmdu": 45_000,  # MMDU-45k (2406.11833)
    "ai2d": 4_903,
    "ocrvqa": 80_000,  # this and the next four as in LLaVA-1.5, table 7
    "vqav2": 83_000,
    "okvqa": 9_000,
    "gqa": 72_000,
    "llava-instruct": 158_000,
    "sharegpt4v": 100_000,
    "brief-caption": SYNTHESISED,
    "detailed-caption": SYNTHESISED,
    "brief-vqa": SYNTHESISED,
    "detailed-vqa": SYNTHESISED,
}
CAPTIONS = {
    "llava-pretrain": 1.0,
    "flickr30k": 1.0,
    "coco-captions": 1.0,
    "mmdu": 1.0,
    "brief-caption": 1.0,
}
QUESTIONS = {
    "ai2d": 1.0, "ocrvqa": 1.0, "vqav2": 1.0, "llava-instruct": 1.0, "okvqa": 1.0, "gqa": 1.0,
    "sharegpt4v": 0.5, "brief-vqa": 1.0, "detailed-caption": A_PART,
}  # fmt: skip
DETAILS = {"detailed-vqa": 1.0, "detailed-caption": 0.5, "brief-caption": 0.5}


def _sources(parts: dict[str, float]) -> tuple[FileSource, ...]:
    return tuple(FileSource(path=f"data/{name}.jsonl", weight=w) for name, w in parts.items())


def _steps(parts: dict[str, float], epochs: int, batch: int) -> int:
    return int(epochs * sum(SAMPLES[name] * weight for name, weight in parts.items())) // batch


def _stage(
    name: str,
    parts: dict[str, float],
    epochs: int,
    batch: int,
    lr: float,
    trainable: tuple[str, ...],
) -> Stage:
    steps = _steps(parts, epochs, batch)
    return Stage(
        name=name,
        data=_sources(parts),
        steps=steps,
        batch=batch,
        length=2048,
        micro_rows=4,
        lr=lr,
        warmup_steps=round(WARMUP_RATIO * steps),
        schedule="cosine",
        trainable=dict.fromkeys(trainable),
        workers=8,
    )


def aurora() -> Recipe:
    """AuroraEdge-V-2B: the model of the paper, "Combined"."""
    connectors = ("vision.connector.*", "compress.*", "fusion.*")
    return Recipe(
        name="aurora",
        summary="AuroraEdge-V: 256 vision tokens become 64, and text reads the 256 before the LLM does",
        model=ModelSpec(
            llm=LLM,
            vision=TowerSpec(init_from=TOWER, patch_size=16, layer=-1, final_norm=True),
            # As NaFlex does: a picture of any size to the most patches that its shape allows.
            images=ImageSpec(mode="native", min_patches=PATCHES, max_patches=PATCHES),
            compress=MlpSpec(patches=PATCHES, tokens=TOKENS),
            fusion=FusionSpec(kind="combined"),
            image_attention="causal",
            dtype="bfloat16",
        ),
        stages=(
            _stage("vision", CAPTIONS, 3, 32, 1e-3, connectors),
            _stage("llm", QUESTIONS, 3, 32, 2e-5, (*connectors, "llm.*")),
            _stage("joint", DETAILS, 2, 16, 1e-6, ("vision.*", "compress.*", "fusion.*", "llm.*")),
        ),
    )


def aurora_16() -> Recipe:
    """``aurora`` with 16 tokens a picture and two layers of fusion (section 7, higher compression).

    oculi train aurora_16 --llm Qwen/Qwen2.5-1.5B --teacher DIR --data captions.jsonl --out RUN
    """
    plain = aurora()
    update = {"compress": MlpSpec(patches=PATCHES, tokens=16), "fusion": FusionSpec(layers=2)}
    return plain.model_copy(
        update={
            "name": "aurora_16",
            "summary": "aurora with 16 tokens a picture and two layers of fusion (its future work)",
            "model": plain.model.model_copy(update=update),
        }
    )
