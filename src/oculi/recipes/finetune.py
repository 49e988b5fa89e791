"""A model that sees already, trained further on data of one's own.

    oculi train finetune --start RUN --data mine.json --out MINE
    oculi train finetune_lora --start RUN --data mine.json --out MINE

RUN is a run, a folder that oculi has exported or converted, or the hub id of one: whatever its vision
part, compressor and fusion. Rate and schedule of `finetune` are those of LLaVA-1.5's second stage (arXiv
2310.03744, table 9), which VoRA takes as well (section 5.1); it trains all of the model, a tower too.
`finetune_lora` trains LoRA on all linear layers of the LLM and merges it; rank and rate are ours, of no
paper. A thousand steps are 128,000 and 64,000 samples; `--epochs 1` counts them from your rows.
"""

from __future__ import annotations

from oculi.recipe import FileSource, LoraSpec, ModelSpec, PatchEmbedSpec, Recipe
from oculi.recipes.llava import llava
from oculi.specs.model import TO_BE_GIVEN

# --start puts the model's own description in its place.
_ANY = ModelSpec(
    llm=TO_BE_GIVEN,
    start=TO_BE_GIVEN,
    vision=PatchEmbedSpec(width=1, grid=(1, 1)),
    dtype="bfloat16",
)


def finetune() -> Recipe:
    """All weights."""
    _, second = llava().stages
    stage = second.model_copy(
        update={
            "data": (FileSource(path="data/mine.json"),),
            "steps": 1000,
            "warmup_steps": 30,
            "trainable": {"*": None},
        }
    )
    return Recipe(
        name="finetune",
        summary="a model that sees already (--start), all of it trained further",
        model=_ANY,
        stages=(stage,),
    )


def finetune_lora() -> Recipe:
    """LoRA on the LLM, merged at the end."""
    recipe = finetune()
    stage = recipe.stages[0].model_copy(
        update={
            "batch": 64,
            "lr": 2e-4,
            "trainable": {"llm.*.lora_?": None},
            "merge_lora": True,
        }
    )
    return recipe.model_copy(
        update={
            "name": "finetune_lora",
            "summary": "a model that sees already (--start), trained further by LoRA on the LLM, merged",
            "model": _ANY.model_copy(update={"lora": LoraSpec(rank=64)}),
            "stages": (stage,),
        }
    )
