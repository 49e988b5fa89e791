"""VoRA for sounds: spectrograms are pictures, and all else is the recipe of pictures.

    python examples/audio/sounds.py --out sounds
    python examples/audio/teacher.py --out sounds/teacher
    oculi train examples/audio/recipe.py:vora_audio --out runs/audio
    oculi eval runs/audio --task sounds/test.jsonl --above-blind

Or beside pictures, in a model that learnt to see with routed LoRA (docs/vora.md) and stays as it is:

    oculi train examples/audio/recipe.py:audio_beside --start runs/routed --out runs/both

Run where ``sounds`` is. docs/modalities.md has times and scores.
"""

from oculi.recipe import (
    DistillSpec,
    EvalSpec,
    FileSource,
    LmSpec,
    LoraSpec,
    PatchEmbedSpec,
    Recipe,
)
from oculi.recipes.tiny import vora_tiny
from oculi.specs.model import TO_BE_GIVEN

TEACHER = "sounds/teacher"


def vora_audio() -> Recipe:
    """Pre-training with block-wise distillation from the teacher of sounds, then the merge."""
    tiny = vora_tiny()
    pretrain, _ = tiny.stages
    pretrain = pretrain.model_copy(
        update={
            "data": (FileSource(path="sounds/train.jsonl"),),
            "steps": 600,
            "batch": 32,
            "single_turns": 0.9,
            "separate_turns": 0.0,
            "plain_turns": 0.0,
            "objectives": (LmSpec(), DistillSpec(teacher=TEACHER, mode="block")),
            "warmup_steps": 100,
            "muon": (),
            "trainable": {"llm.*.lora_?": None, "vision.*": None, "objectives.*": None},
        }
    )
    vision, lora = PatchEmbedSpec(init_from=TEACHER), LoraSpec(rank=64, blocks=5)
    return tiny.model_copy(
        update={
            "name": "vora_audio",
            "summary": "VoRA for sounds: log-mel spectrograms as pictures, a teacher of sounds",
            "model": tiny.model.model_copy(update={"vision": vision, "lora": lora}),
            "stages": (pretrain,),
            "evals": (EvalSpec(task="sounds/test.jsonl"),),
        }
    )


def audio_beside() -> Recipe:
    """Routed LoRA for sounds in a model that sees already: nothing else of it is trained."""
    alone = vora_audio()
    stage = alone.stages[0].model_copy(
        update={
            "trainable": {"llm.*.routed.audio.lora_?": None, "objectives.*": None},
            "merge_lora": False,
        }
    )
    lora = LoraSpec(rank=64, blocks=5, routed=True, modality="audio")
    model = alone.model.model_copy(update={"start": TO_BE_GIVEN, "lora": lora})
    summary = "sounds beside pictures: LoRA of their own in a model that sees already (--start)"
    return alone.model_copy(
        update={"name": "audio_beside", "summary": summary, "model": model, "stages": (stage,)}
    )
