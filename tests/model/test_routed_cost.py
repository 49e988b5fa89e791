"""What routed LoRA costs beside merged LoRA: the table in docs/vora.md, counted."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from oculi.model.lora import merge_lora
from oculi.recipe import override
from oculi.recipes.tiny import vora_tiny
from oculi.training.build import add_lora, build_model, build_processor

DOCS = Path(__file__).parents[2] / "docs" / "vora.md"
GRID, TEXT = (8, 8), 32  # the largest picture of vora_tiny, and a question


def build(*changes: str) -> Any:
    """``vora_tiny``'s model as it is served."""
    recipe = override(vora_tiny(), ["stages.0.merge_lora=false", *changes])
    model = build_model(recipe.model, build_processor(recipe.model), recipe.seed)
    add_lora(model, recipe.model, recipe.seed)
    return model.eval()


@pytest.fixture(scope="module")
def served() -> dict[str, Any]:
    merged = build()
    merge_lora(merged.llm)
    return {"merged": merged, "routed": build("model.lora.routed=true")}


def flops(call: Callable[[], Any]) -> tuple[int, Any]:
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        result = call()
    return counter.get_total_flops(), result


def counts(model: Any) -> dict[str, float]:
    """MFLOP of a prefill with a picture, of one without, of the next token; parameters in millions."""
    image, side = model.config.image_token_id, model.config.vision_config["patch_size"]
    patches = GRID[0] * GRID[1]
    text = (torch.arange(TEXT)[None] + image + 1) % model.config.text_config.vocab_size
    ids = torch.cat([torch.full((1, patches), image), text], 1)
    pixels = torch.zeros(patches, 3 * side**2, dtype=torch.uint8)
    picture, output = flops(
        lambda: model(
            input_ids=ids, pixel_values=pixels, image_grids=torch.tensor([GRID]), use_cache=True
        )
    )
    cache = output.past_key_values
    token, _ = flops(lambda: model(input_ids=text[:, :1], past_key_values=cache))
    return {
        "picture": picture / 1e6,
        "text": flops(lambda: model(input_ids=text))[0] / 1e6,
        "token": token / 1e6,
        "parameters": sum(p.numel() for p in model.parameters()) / 1e6,
    }


def test_the_table_is_what_the_counter_says(served: dict[str, Any]) -> None:
    merged, routed = counts(served["merged"]), counts(served["routed"])
    assert (routed["text"], routed["token"]) == (merged["text"], merged["token"])
    lora = routed["parameters"] - merged["parameters"]
    per_token = 2 * lora  # a multiply-accumulate per parameter and image token
    assert routed["picture"] - merged["picture"] == pytest.approx(per_token * GRID[0] * GRID[1])
    rows = {
        "prefill of a picture of 64 tokens and 32 of text": "picture",
        "prefill of 32 tokens of text": "text",
        "each token of the answer": "token",
        "parameters of the model": "parameters",
    }
    table = DOCS.read_text(encoding="utf-8")
    for row, key in rows.items():
        unit = "M" if key == "parameters" else " MFLOP"
        line = f"| {row} | {merged[key]:.2f}{unit} | {routed[key]:.2f}{unit} |"
        assert line in table, line
