"""VLSA (*Rethinking Modality Alignment in Multi Modal Large Language Models*).

    oculi train vlsa --llm DIR --teacher DIR --vq DIR --data align=blip_laion_cc_sbu_558k.json
        --data read=llavar_422k.json --data finetune=llava_next_790k.json --out RUN

Section 4.1: LLaVA-NeXT with Llama-3-8B-Instruct and CLIP ViT-L/14-336; tiles and a snapshot, 576 tokens
for a picture of any size; reconstruction through Stable Diffusion 3-medium. Three stages: 558K captions
train the SA-Perceiver and the Epigone, 422K text-rich instructions (LLaVAR) also the denoiser and the
tower, 790K instructions everything, with questions about colours and codebook indices put into their
conversations (section 3.2). Its scores: 65.2 on TextVQA, 1844 on MME, 75.2 on DocVQA (tables 1
to 3). The paper gives no learning rates, batches or hours; ours are LLaVA-NeXT's where it has any. It
was not run at this size here; docs/vlsa.md says what is inferred.
"""

from typing import Any

from oculi.recipe import (
    EvalSpec,
    FileSource,
    ImageSpec,
    LmSpec,
    ModelSpec,
    PerceiverSpec,
    PlayroomSource,
    Recipe,
    ReconstructSpec,
    Stage,
)
from oculi.specs.cognition import CodesSpec, CognitionSpec, PixelsSpec

LLM = "meta-llama/Meta-Llama-3-8B-Instruct"
TOWER = "openai/clip-vit-large-patch14-336"
SD3 = "stabilityai/stable-diffusion-3-medium-diffusers"
# The paper starts from the encoder of Improved VQ-Diffusion (2205.16007), which makes 32 x 32 indices of
# 256 x 256 pixels. Published as the part `vqvae` of microsoft/vq-diffusion-ithq; --vq names another.
VQ, VQ_SIZE = "data/vq-diffusion-ithq/vqvae", 256
TILES = 12
# Weights of the two losses, stage by stage. The paper sums them in every stage, "without balancing their
# proportions" (section 5); `oculi ablate vlsa-ratio` compares other weights and schedules.
LM_WEIGHTS = (1.0, 1.0, 1.0)
RECONSTRUCT_WEIGHTS = (1.0, 1.0, 1.0)
TINY_STEPS = (60, 150, 1500)
TINY_TOWER_LR = 2e-5  # it reads already
# Heads stay side by side, each on a patch of its own: left alone they all move to a token's middle.
TINY_BUMPS_LR = 1e-5
# Of the last stage, for LLM and what is new: 36 tokens are read in fewer steps than at 1e-3 with AdamW
# for connector and perceiver (docs/log.md). The tower keeps a lower rate.
TINY_LR = 3e-3
TINY_MUON = ("llm.*proj.weight", "vision.[cp]*.weight")  # of connector and perceiver
TINY_RESTORED_MUON = (*TINY_MUON, "objectives.reconstruct.denoiser.*blocks.*.weight")
ALIGNING_SAMPLES, READING_SAMPLES, FINETUNING_SAMPLES = 558_000, 422_000, 790_000

# Stage I freezes "other parameters" (section 4.1), but LLaVA-NeXT's connector is new: frozen as it was
# drawn, the LLM would read noise.
ALIGNED = {
    "vision.perceiver.*": None,
    "vision.connector.*": None,
    "objectives.reconstruct.epigone.*": None,
}

# Asked in the last stage alone: cognition alignment is of the LLM's parameters (equations 7 and 8), and
# they are frozen before. How often and how much is not in the paper; docs/cognition.md has the costs.
COGNITION = CognitionSpec(
    pixels=PixelsSpec(share=0.1, grid=(2, 2), levels=256),
    codes=CodesSpec(share=0.1, vq=VQ, size=VQ_SIZE, window=(2, 2)),
)
TINY_COGNITION = CognitionSpec(
    pixels=PixelsSpec(share=0.15, grid=(2, 2), levels=10),
    codes=CodesSpec(share=0.15, vq="testbed:vq", window=(2, 2)),
)


def _weighted(
    stages: tuple[Stage, ...], term: ReconstructSpec, weights: tuple[float, ...]
) -> tuple[Stage, ...]:
    """The stages with both objectives and their weights."""
    losses = [
        (LmSpec(weight=lm), term.model_copy(update={"weight": weight}))
        for lm, weight in zip(LM_WEIGHTS, weights, strict=True)
    ]
    return tuple(
        stage.model_copy(update={"objectives": pair})
        for stage, pair in zip(stages, losses, strict=True)
    )


def vlsa() -> Recipe:
    """VLSA at the paper's size: perception alignment, and cognition alignment in the last stage."""
    align = Stage(
        name="align",
        data=(FileSource(path="data/blip_laion_cc_sbu_558k.json"),),
        steps=ALIGNING_SAMPLES // 256,
        batch=256,
        length=4096,
        micro_rows=2,
        lr=1e-3,
        warmup_steps=65,
        schedule="cosine",
        trainable=ALIGNED,
        workers=8,
    )
    read = align.model_copy(
        update={
            "name": "read",
            "data": (FileSource(path="data/llavar_422k.json"),),
            "steps": READING_SAMPLES // 256,
            "lr": 2e-4,
            "warmup_steps": 49,
            "trainable": {
                **ALIGNED,
                "objectives.reconstruct.denoiser.*": 1e-5,
                "vision.tower.*": 2e-6,
            },
        }
    )
    finetune = align.model_copy(
        update={
            "name": "finetune",
            "data": (FileSource(path="data/llava_next_790k.json"),),
            "steps": FINETUNING_SAMPLES // 128,
            "batch": 128,
            "cognition": COGNITION,
            "lr": 1e-5,
            "warmup_steps": 185,
            "trainable": {
                "llm.*": None,
                "vision.*": None,
                "objectives.*": None,
                "vision.tower.*": 2e-6,
            },
        }
    )
    return Recipe(
        name="vlsa",
        summary="VLSA: tiles gathered in a snapshot, 576 tokens a picture, trained to restore it",
        model=ModelSpec(
            llm=LLM,
            vision=PerceiverSpec(init_from=TOWER, max_tiles=TILES, heads=16),
            images=ImageSpec(mode="native", max_patches=TILES * 576),
            image_attention="causal",
            dtype="bfloat16",
        ),
        stages=_weighted(
            (align, read, finetune),
            ReconstructSpec(denoiser=SD3, vae=SD3, checkpointing=True),
            RECONSTRUCT_WEIGHTS,
        ),
    )


def vlsa_tiny() -> Recipe:
    """VLSA on Playroom's level 3, words in pictures four times as large as the tower's.

    oculi train vlsa_tiny --out RUN

    The LLM reads 36 tokens of a picture of 168 x 168 pixels, of which a glyph is 10 to 20 high. The
    tower reads 93 % of the words in tiles and 32 % in the snapshot. Pictures are transcribed first,
    which stands for captions and for text-rich data; then there are questions of all kinds.
    """
    full = vlsa()
    term = ReconstructSpec(denoiser="testbed:sd3", vae="testbed:vae", size=96, rank=64)
    transcribed, asked = _words(kinds=("read all",)), _words(questions=6)
    align, read, finetune = (
        stage.model_copy(
            update={
                "data": (transcribed,),
                "steps": steps,
                "batch": 32,
                "length": 640,
                "pack_length": 512,
                "micro_rows": 16,
                "separate_turns": 0.9,
                "lr": 1e-3,
                "warmup_steps": min(60, steps // 5),
                "trainable": globs,
                "workers": 0,
                "log_every": 20,
                "checkpoint_every": 500,
            }
        )
        for stage, steps, globs in zip(
            full.stages, TINY_STEPS, tiny_trainable("compressed", restored=True), strict=True
        )
    )
    finetune = finetune.model_copy(
        update={
            "data": (transcribed.model_copy(update={"weight": 1.5}), asked),
            "batch": 24,
            "cognition": TINY_COGNITION,
            "lr": TINY_LR,
            "muon": TINY_RESTORED_MUON,
            "weight_decay": 0.1,
            "schedule": "cosine",
        }
    )
    return Recipe(
        name="vlsa_tiny",
        summary="VLSA on the testbed: words in large scenes, 36 tokens each, restored by a tiny SD3",
        model=ModelSpec(
            llm="testbed:llm",
            vision=PerceiverSpec(
                init_from="testbed:reader",
                layer=-1,
                attention="eager",  # 1.12 s a step instead of 1.30, docs/log.md
                max_tiles=9,
                heads=4,
                # Four times the tower's width, as LLaVA-NeXT's is at full size, where it is the LLM's.
                connector_hidden_size=768,
                tiles_at_once=144,  # a micro-batch's together, so that none is computed twice
            ),
            images=ImageSpec(mode="native", min_patches=16, max_patches=9 * 36),
            image_attention="causal",
            attention="blocked",  # faster than SDPA on a CPU, docs/log.md
        ),
        stages=_weighted((align, read, finetune), term, RECONSTRUCT_WEIGHTS),
        evals=(EvalSpec(task="playroom:3@168x168", limit=300),),
    )


def vlsa_tiny_snapshot() -> Recipe:
    """Low resolution beside ``vlsa_tiny``: 36 tokens too, of the picture scaled down (table 3, row 2).

    oculi train vlsa_tiny_snapshot --out RUN

    The same samples, order and steps; nothing is restored, and no colours or codes are asked.
    """
    return _beside(
        "vlsa_tiny_snapshot", "snapshot", "the picture scaled down to 84 x 84, 36 tokens"
    )


def vlsa_tiny_tiles() -> Recipe:
    """Any resolution beside ``vlsa_tiny``: snapshot and all tiles, 192 tokens (table 3, row 1).

    oculi train vlsa_tiny_tiles --out RUN

    The same samples, order and steps; nothing is restored, and no colours or codes are asked.
    """
    return _beside("vlsa_tiny_tiles", "all", "the snapshot and all tiles, 192 tokens")


def vlsa_tiny_instructions() -> Recipe:
    """Instructions alone beside ``vlsa_tiny``: the same, but no picture is restored (figure 3).

    oculi train vlsa_tiny_instructions --out RUN

    The same samples, questions about colours and codes among them, in the same order and steps, so that
    what the tower's tokens can restore differs by the objective alone (`oculi reconstruct`).
    """
    return _beside(
        "vlsa_tiny_instructions",
        "compressed",
        "no picture is restored in training",
        cognition=True,
    )


def _beside(name: str, tokens: str, what: str, cognition: bool = False) -> Recipe:
    """``vlsa_tiny`` without reconstruction, with any tokens of the same tower.

    Args:
        name: the recipe's.
        tokens: as of ``model.vision.tokens``.
        what: of its summary.
        cognition: whether colours and codes are still asked.
    """
    recipe = vlsa_tiny()
    dropped = {"objectives": (LmSpec(),)} | ({} if cognition else {"cognition": None})
    *before, finetune = recipe.stages
    unrestored = (*before, finetune.model_copy(update={"muon": TINY_MUON}))
    stages = tuple(
        stage.model_copy(update={**dropped, "trainable": globs})
        for stage, globs in zip(unrestored, tiny_trainable(tokens, restored=False), strict=True)
    )
    vision = recipe.model.vision.model_copy(update={"tokens": tokens})
    return recipe.model_copy(
        update={
            "name": name,
            "summary": f"beside vlsa_tiny, a baseline: {what}",
            "model": recipe.model.model_copy(update={"vision": vision}),
            "stages": stages,
        }
    )


def tiny_trainable(tokens: str, restored: bool) -> tuple[dict[str, float | None], ...]:
    """What each stage of the testbed trains: what is not in the model cannot be named.

    Args:
        tokens: as of ``model.vision.tokens``.
        restored: whether the stages have the objective ``reconstruct``.
    """
    new: dict[str, float | None] = {"vision.connector.*": None}
    placed = {"vision.perceiver.bumps": TINY_BUMPS_LR} if tokens == "compressed" else {}
    new |= {"vision.perceiver.*": None, **placed} if tokens == "compressed" else {}
    new |= {"vision.newline": None} if tokens == "all" else {}
    epigone = {"objectives.reconstruct.epigone.*": None} if restored else {}
    denoiser = {"objectives.reconstruct.denoiser.*": None} if restored else {}
    tower = {"vision.tower.*": TINY_TOWER_LR}
    everything: dict[str, float | None] = {"llm.*": None, "vision.*": None, **tower, **placed}
    everything |= {"objectives.*": None} if restored else {}
    return new | epigone, new | epigone | denoiser | tower, everything


def _words(**settings: Any) -> PlayroomSource:
    return PlayroomSource(level=3, samples=1_000_000, size=(168, 168), **settings)
