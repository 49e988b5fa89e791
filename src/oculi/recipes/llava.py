"""LLaVA: a vision tower and a two-layer MLP in front of the LLM, the baseline of all our papers.

    oculi train llava --llm DIR --teacher DIR --data pretrain=blip_laion_cc_sbu_558k.json
        --data finetune=llava_v1_5_mix665k.json --out RUN

LLaVA-1.5 (arXiv 2310.03744, section 3.3 and table 9): the MLP alone on 558K captions at 1e-3, batch 256;
then MLP and LLM on 665K conversations at 2e-5, batch 128; both with 3 % warm-up and cosine decay, the
tower frozen throughout. Its pictures are padded to 336 x 336, its images attend causally. On eight A100
its authors report 3.5 hours for the first stage and 10 for the second (README of haotian-liu/LLaVA);
neither was run here. Their scores for the 7B model: 62.0 on GQA, 1510.7 on MME, 64.3 on MMBench (tables
3 and 4). docs/llava.md says what differs.
"""

from oculi.recipe import FileSource, ImageSpec, ModelSpec, PerceiverSpec, Recipe, Stage, TowerSpec

LLM = "lmsys/vicuna-7b-v1.5"
TOWER = "openai/clip-vit-large-patch14-336"
PRETRAINING_SAMPLES = 558_000
FINETUNING_SAMPLES = 665_000
NEXT_SAMPLES, NEXT_TILES = 790_000, 4


def llava() -> Recipe:
    """LLaVA-1.5 with Vicuna-7B and CLIP-L/336."""
    pretrain = Stage(
        name="pretrain",
        data=(FileSource(path="data/blip_laion_cc_sbu_558k.json"),),
        steps=PRETRAINING_SAMPLES // 256,
        batch=256,
        length=2048,
        micro_rows=4,
        lr=1e-3,
        warmup_steps=65,
        schedule="cosine",
        trainable={"vision.connector.*": None},
        workers=8,
    )
    finetune = pretrain.model_copy(
        update={
            "name": "finetune",
            "data": (FileSource(path="data/llava_v1_5_mix665k.json"),),
            "steps": FINETUNING_SAMPLES // 128,
            "batch": 128,
            "lr": 2e-5,
            "warmup_steps": 156,
            "trainable": {"vision.connector.*": None, "llm.*": None},
        }
    )
    return Recipe(
        name="llava",
        summary="LLaVA-1.5: a frozen vision tower and a two-layer MLP in front of the LLM",
        model=ModelSpec(
            llm=LLM,
            vision=TowerSpec(init_from=TOWER),
            images=ImageSpec(mode="square", size=336),
            image_attention="causal",
            dtype="bfloat16",
        ),
        stages=(pretrain, finetune),
    )


def llava_aimv2() -> Recipe:
    """The baseline of VoRA's table 3: Qwen2.5-7B-Instruct and AIMv2-Huge-448, otherwise as LLaVA."""
    recipe = llava()
    model = recipe.model.model_copy(
        update={
            "llm": "Qwen/Qwen2.5-7B-Instruct",
            "vision": TowerSpec(init_from="apple/aimv2-huge-patch14-448"),
            "images": ImageSpec(mode="square", size=448),
        }
    )
    return recipe.model_copy(
        update={
            "name": "llava_aimv2",
            "summary": "LLaVA with the LLM and the ViT of the vora recipe (VoRA, table 3)",
            "model": model,
        }
    )


def llava_next() -> Recipe:
    """LLaVA-NeXT on Llama-3-8B, the any-resolution baseline of VLSA (tables 1 to 3).

    oculi train llava_next --llm DIR --teacher DIR --data pretrain=blip_laion_cc_sbu_558k.json
        --data finetune=llava_next_790k.json --out RUN

    The LLM reads the snapshot and all of up to four tiles, a learnt token behind each row: at most 2,928
    tokens, where `vlsa` has 576. In the second stage everything learns, the tower at 2e-6, the rest at
    1e-5 (its scripts). VLSA's authors report 82.4 on VQAv2 and 64.9 on GQA for it (table 1); it was not
    run here.
    """
    recipe = llava()
    pretrain, finetune = (
        stage.model_copy(update={"length": 4096, "micro_rows": 2}) for stage in recipe.stages
    )
    pretrain = pretrain.model_copy(
        update={"trainable": {"vision.connector.*": None, "vision.newline": None}}
    )
    finetune = finetune.model_copy(
        update={
            "data": (FileSource(path="data/llava_next_790k.json"),),
            "steps": NEXT_SAMPLES // 128,
            "lr": 1e-5,
            "warmup_steps": 185,
            "trainable": {"llm.*": None, "vision.*": None, "vision.tower.*": 2e-6},
        }
    )
    model = recipe.model.model_copy(
        update={
            "llm": "meta-llama/Meta-Llama-3-8B-Instruct",
            "vision": PerceiverSpec(init_from=TOWER, tokens="all", max_tiles=NEXT_TILES),
            "images": ImageSpec(mode="native", max_patches=NEXT_TILES * 576),
        }
    )
    return recipe.model_copy(
        update={
            "name": "llava_next",
            "summary": "LLaVA-NeXT: a snapshot and all of up to four tiles, the baseline of VLSA",
            "model": model,
            "stages": (pretrain, finetune),
        }
    )
