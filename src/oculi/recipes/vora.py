"""VoRA, Vision as LoRA (arXiv 2503.20680), at the paper's scale.

    oculi train vora --llm Qwen/Qwen2.5-7B-Instruct --teacher DIR --data pretrain=captions.json
        --data pretrain=text.json --data finetune=llava_v1_5_mix665k.json --out RUN

Section 5.1: Qwen2.5-7B-Instruct and AIMv2-Huge-448; pre-training at 2e-4, constant after 100 steps,
batch 256, over 30.4M image-caption pairs mixed with 6.4M text samples; then LoRA is merged and the
whole LLM with the embedding is fine-tuned on LLaVA-665K at 2e-5. 2.21B LoRA parameters at rank 1024 on
24 blocks. A step of 256 samples needs at least 16 s of one H200 (arithmetic, not measured), so the
whole run is for several of them; docs/vora.md says what was and what was not run.
"""

from oculi.recipe import (
    DistillSpec,
    FileSource,
    ImageSpec,
    LmSpec,
    LoraSpec,
    ModelSpec,
    PatchEmbedSpec,
    Recipe,
    Stage,
)

LLM = "Qwen/Qwen2.5-7B-Instruct"
TEACHER = "apple/aimv2-huge-patch14-448"
PRETRAINING_SAMPLES = 30_400_000 + 6_400_000
ABLATION_SAMPLES = 8_000_000
FINETUNING_SAMPLES = 665_000
CAPTIONS = FileSource(path="data/captions.json")


def vora() -> Recipe:
    """The configuration of section 5.1; the default of the ablations in table 2."""
    pretrain = Stage(
        name="pretrain",
        data=(CAPTIONS, FileSource(path="data/text.json")),  # drawn from as 30.4 : 6.4
        steps=PRETRAINING_SAMPLES // 256,
        batch=256,
        length=2048,
        pack_length=2048,
        micro_rows=4,
        objectives=(LmSpec(), DistillSpec(teacher=TEACHER, mode="block")),
        lr=2e-4,
        warmup_steps=100,
        schedule="constant",
        trainable={"llm.*.lora_?": None, "vision.*": None, "objectives.*": None},
        workers=8,
        merge_lora=True,
    )
    finetune = Stage(
        name="finetune",
        data=(FileSource(path="data/llava_v1_5_mix665k.json"),),
        steps=FINETUNING_SAMPLES // 128,
        batch=128,
        length=2048,
        pack_length=2048,
        micro_rows=4,
        lr=2e-5,
        warmup_steps=156,  # ratio 0.03, with cosine decay: the defaults of LLaVA-1.5
        schedule="cosine",
        trainable={"llm.*": None, "vision.*": None},
        workers=8,
    )
    return Recipe(
        name="vora",
        summary="VoRA: the LLM's own blocks see, through LoRA that is merged after pre-training",
        model=ModelSpec(
            llm=LLM,
            vision=PatchEmbedSpec(init_from=TEACHER),
            images=ImageSpec(mode="square", size=448),
            lora=LoraSpec(rank=1024, blocks=24),
            image_attention="bidirectional",
            dtype="bfloat16",
        ),
        stages=(pretrain, finetune),
    )


def vora_8m() -> Recipe:
    """The set-up of the ablations (section 5.2, figures 5 to 7, table 2).

    oculi train vora_8m --llm Qwen/Qwen2.5-7B-Instruct --teacher DIR --data pretrain=captions.json
        --data finetune=llava_v1_5_mix665k.json --out RUN

    8M image-caption pairs, a subset of the 29M: 31,250 steps, at least 5.8 days of one H200, which is
    arithmetic. The rows of table 2 are overrides of it; this one, the last, has 55.6 on average over
    eight benchmarks after fine-tuning. `oculi ablate vora-table2` is the same at small scale.
    """
    full = vora()
    pretrain, finetune = full.stages
    pretrain = pretrain.model_copy(update={"data": (CAPTIONS,), "steps": ABLATION_SAMPLES // 256})
    return full.model_copy(
        update={
            "name": "vora_8m",
            "summary": "VoRA on 8M image-caption pairs, as in the paper's ablations",
            "stages": (pretrain, finetune),
        }
    )


def vora_anyres() -> Recipe:
    """VoRA-AnyRes (section 5.1): the fixed resolution in pre-training, the native one in fine-tuning.

    oculi train vora_anyres --llm Qwen/Qwen2.5-7B-Instruct --teacher DIR --data pretrain=captions.json
        --data pretrain=text.json --data finetune=llava_v1_5_mix665k.json --out RUN

    The paper gives no limit for a picture's tokens; here it is 2,304, a square of 672 pixels, and a
    position outside of the teacher's table of 32 x 32 is interpolated.
    """
    full = vora()
    pretrain, finetune = full.stages
    native = ImageSpec(mode="native", max_patches=2304)
    finetune = finetune.model_copy(
        update={"images": native, "length": 4096, "pack_length": 4096, "micro_rows": 2}
    )
    return full.model_copy(
        update={
            "name": "vora_anyres",
            "summary": "VoRA-AnyRes: pre-trained at 448 pixels, fine-tuned at each picture's own size",
            "stages": (pretrain, finetune),
        }
    )
