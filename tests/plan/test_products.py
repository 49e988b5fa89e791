"""Counted products are those of a built model, by torch's own counter."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from helpers import PATCH, Tiny, llava_data, recipe_data, save_llm, save_teacher
from oculi.errors import RecipeError
from oculi.plan import plan
from oculi.plan.build import meta_stages
from oculi.plan.gpus import GPUS
from oculi.plan.sample import picture_grid, sample_batch
from oculi.plan.stage import EveryBlock, StagePlan, plan_stage
from oculi.recipe import Recipe, validate
from oculi.training.module import TrainModule

Built = Callable[..., Any]


def planned(recipe: Recipe, number: int, text: int) -> StagePlan:
    """The plan of one stage; others are not counted, to save time."""
    grid = picture_grid(recipe.model.vision.patch_size, recipe.images_of(number), None)
    stages = enumerate(meta_stages(recipe))
    meta = next(meta for n, meta in stages if n == number)
    return plan_stage(meta, recipe.model, number, grid, text, GPUS["h200"], 1)


def counted(module: Any, stage: StagePlan) -> int:
    """FLOP of a real forward and backward pass, with every token in every block."""
    module = TrainModule(EveryBlock(module.model), module.terms())  # type: ignore[arg-type]
    batch = sample_batch(stage.grid, stage.text_tokens, PATCH, "cpu")
    counts = module.counts([batch])
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        module.loss(module(batch, counts)).backward()
    return int(counter.get_total_flops())


def expected(stage: StagePlan, module: Any) -> int:
    """The plan's FLOP, with the attention that torch's counter sees in place of the plan's.

    torch's plain attention computes all pairs and keeps the scores, so that its backward pass is twice
    its forward pass, not 2.5 times.
    """
    attention = stage.macs["attention"]
    config = module.model.llm.config
    dense = 2 * stage.tokens**2 * config.hidden_size * config.num_hidden_layers
    assert attention.forward <= dense
    backward = attention.backward / attention.forward / 2.5  # share of blocks that have one
    others = sum(macs.total for part, macs in stage.macs.items() if part != "attention")
    return round(2 * (others + dense * (1 + 2 * backward)))


CASES: dict[str, tuple[int, int, dict[str, Any]]] = {  # stage, text tokens, changes of the recipe
    "as it is": (0, 7, {}),
    "merged": (1, 7, {}),
    "rank": (0, 7, {"model.lora.rank": 1}),
    "blocks": (0, 7, {"model.lora.blocks": 3}),
    "targets": (0, 7, {"model.lora.targets": ["k_proj", "down_proj"]}),
    "image size": (0, 7, {"model.images": {"mode": "square", "size": 24}}),
    "text length": (0, 40, {}),
    "one text token": (1, 1, {}),
    "causal": (0, 7, {"model.image_attention": "causal"}),
    "last block": (0, 7, {"stages.0.objectives.1.mode": "last"}),
    "inputs": (0, 7, {"stages.0.objectives.1.align": "input"}),
    "heads alone": (0, 7, {"stages.0.trainable": {"objectives.*": None}}),
    "one LoRA alone": (0, 7, {"stages.0.trainable": {"llm.model.layers.1.*.lora_?": None}}),
    "embedding alone": (1, 7, {"stages.1.trainable": {"llm.model.embed_tokens.*": None}}),
    "head alone": (1, 7, {"stages.1.trainable": {"llm.lm_head.*": None}}),
}


@pytest.mark.parametrize("case", CASES)
def test_products_of_vora(tiny: Tiny, built: Built, case: str) -> None:
    number, text, changes = CASES[case]
    recipe = validate(recipe_data(tiny, **changes), "test")
    stage, module = planned(recipe, number, text), built(recipe, number)
    assert expected(stage, module) == counted(module, stage)


@pytest.mark.parametrize(("family", "tokens"), [("aimv2", 16), ("clip", 17), ("siglip2", 16)])
def test_products_of_llava(
    tiny: Tiny, built: Built, tmp_path: Path, family: str, tokens: int
) -> None:
    """A frozen tower runs forward, all of it; in stage 1 it is trained up to the block that is read."""
    folder = save_teacher(tmp_path / "vit", family)
    trainable = {"vision.*": None, "llm.*": None}
    recipe = validate(llava_data(tiny, folder, **{"stages.1.trainable": trainable}), "test")
    first, second = plan(recipe, text_tokens=7).stages
    assert first.macs["tower"].backward == 0
    module = built(recipe, 0)
    assert expected(first, module) == counted(module, first)
    module = built(recipe, 1)
    attention = 2 * tokens**2 * 24  # of the tower's first block, the only one that is read
    assert expected(second, module) - 2 * attention // 2 == counted(module, second)


def test_checkpointing_computes_blocks_again(tiny: Tiny) -> None:
    """All of a block but its last product (torch stops there) runs twice, and little is kept."""
    plans = {
        mode: plan(
            validate(recipe_data(tiny, **{"stages.1.checkpointing": mode}), "test"), text_tokens=40
        ).stages[1]
        for mode in ("none", "selective", "full")
    }
    none, selective, full = plans.values()
    again = {part: full.macs[part].backward - macs.backward for part, macs in none.macs.items()}
    down = 48 * 32 * none.tokens
    assert again["llm"] == none.macs["llm"].forward - 3 * down
    assert again["attention"] == none.macs["attention"].forward
    assert not any(n for part, n in again.items() if part not in ("llm", "attention"))
    assert none.flops < selective.flops < full.flops
    assert none.memory.per_sample > selective.memory.per_sample > full.memory.per_sample


def test_tied_embeddings(
    tiny: Tiny, built: Built, tmp_path: Path, make_llm_config: Any, make_tokenizer: Any
) -> None:
    config = make_llm_config(tie_word_embeddings=True)
    folder = save_llm(tmp_path / "llm", config, make_tokenizer())
    recipe = validate(recipe_data(tiny, **{"model.llm": str(folder)}), "test")
    stage, module = planned(recipe, 1, 7), built(recipe, 1)
    assert expected(stage, module) == counted(module, stage)
    assert stage.parameters["llm"] == sum(p.numel() for p in module.model.llm.parameters())


def test_what_cannot_be_counted_is_refused(tiny: Tiny, tmp_path: Path) -> None:
    """Experts are chosen by the data, and are no linear layers: a count would leave them out."""
    from transformers import AutoConfig

    config = AutoConfig.for_model(
        "qwen2_moe", vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=1,
        moe_intermediate_size=16, shared_expert_intermediate_size=16, num_experts=4,
        num_attention_heads=4, num_key_value_heads=2,
    )  # fmt: skip
    config.save_pretrained(tmp_path)
    changes = {"model.llm": str(tmp_path), "model.lora": None, "stages.0.merge_lora": False}
    changes |= {f"stages.{n}.trainable": {"vision.*": None} for n in (0, 1)}
    changes["stages.0.objectives"] = [{"kind": "lm"}]
    with pytest.raises(RecipeError) as caught:
        plan(validate(recipe_data(tiny, **changes), "test"))
    assert str(caught.value).startswith("model.llm: ") and "\n" not in str(caught.value)
