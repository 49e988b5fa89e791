"""Against numbers that the released VoRA code computed: see ``tests/golden/README.md``."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import Aimv2VisionConfig, Aimv2VisionModel

from oculi.batch import Batch
from oculi.model import OculiConfig, OculiForConditionalGeneration
from oculi.model.lora import canonical_name, inject_lora, merge_lora
from oculi.model.masks_oculi import mask_function
from oculi.objectives.distill import Distill
from oculi.objectives.lm import LanguageModelling
from oculi.objectives.teacher import Teacher
from oculi.recipe import DistillSpec, LmSpec

GOLDEN = Path(__file__).parents[1] / "golden"
FACTS = json.loads((GOLDEN / "vora_released.json").read_text(encoding="utf-8"))
# "default" is how the released code calls causal attention.
MODES = {"bidirectional": "bidirectional", "default": "causal"}
ROWS = range(3)
PATCHES = FACTS["vision"]["patches_per_image"]
SIDE = FACTS["vision"]["patch_size"]


@pytest.fixture(scope="module")
def golden() -> dict[str, Tensor]:
    return load_file(GOLDEN / "vora_released.safetensors")


def part(golden: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """Float32 weights under ``prefix``, without it; float16 is how they are stored, exactly."""
    return {k.removeprefix(prefix): v.float() for k, v in golden.items() if k.startswith(prefix)}


def build(golden: dict[str, Tensor], mode: str) -> Any:
    config = OculiConfig(
        text_config=FACTS["llm"],
        vision_config={
            "kind": "patch_embed",
            "patch_size": SIDE,
            "width": FACTS["vision"]["hidden_size"],
            "grid": [4, 4],
            "image_mean": FACTS["images"]["mean"],
            "image_std": FACTS["images"]["std"],
            "eps": FACTS["vision"]["patch_norm_eps"],
        },
        image_token_id=FACTS["tokens"]["image_id"],
        image_attention=MODES[mode],
    )
    model = OculiForConditionalGeneration(config).eval()
    lora = FACTS["lora"]
    targets = tuple(name.split(".")[-1] for name in lora["modules"])
    inject_lora(model.llm, rank=lora["rank"], blocks=len(lora["blocks"]), targets=targets)
    stored = {**part(golden, "llm."), **part(golden, "vision.")}
    names = {k for k in golden if k.startswith(("llm.", "vision."))}
    assert names == {canonical_name(name) for name, _ in model.named_parameters()}
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(stored[canonical_name(name).split(".", 1)[1]])
    return model


def patches(golden: dict[str, Tensor]) -> Tensor:
    """The pictures as patches, cut here with other code than the package's."""
    images = golden["input.images"].float()
    unfolded = torch.nn.functional.unfold(images, SIDE, stride=SIDE)
    return unfolded.transpose(1, 2).flatten(0, 1).to(torch.uint8)


def row_inputs(golden: dict[str, Tensor], row: int) -> dict[str, Tensor]:
    inputs = {"input_ids": golden[f"input.{row}.tokens"][None]}
    images = FACTS["tokens"]["images_of_row"][row]
    if images:
        cut = patches(golden).split(PATCHES)
        inputs["pixel_values"] = torch.cat([cut[i] for i in images])
        inputs["image_grids"] = torch.tensor([[4, 4]] * len(images))
    return inputs


def image_ids(golden: dict[str, Tensor], row: int) -> Tensor:
    is_image = golden[f"input.{row}.tokens"] == FACTS["tokens"]["image_id"]
    first = min(FACTS["tokens"]["images_of_row"][row], default=0)
    number = first + (is_image.cumsum(0) - 1).div(PATCHES, rounding_mode="floor")
    return torch.where(is_image, number, -1)


def packed_batch(golden: dict[str, Tensor]) -> Batch:
    """All three rows as samples of one packed row, and padding: what our training sees."""
    padding = 5
    tokens, segments, positions, images, rows, targets = [], [], [], [], [], []
    start = 0
    for row in ROWS:
        ids, labels = golden[f"input.{row}.tokens"], golden[f"input.{row}.labels"]
        places = (labels[1:] != -100).nonzero()[:, 0]
        rows.append(start + places)
        targets.append(labels[1:][places])
        tokens.append(ids)
        segments.append(torch.full_like(ids, row))
        positions.append(torch.arange(len(ids)))
        images.append(image_ids(golden, row))
        start += len(ids)
    pad = torch.full((padding,), -1)
    tokens_BT = torch.cat([*tokens, pad + 1])[None]
    return Batch(
        tokens_BT=tokens_BT,
        positions_BT=torch.cat([*positions, pad + 1])[None],
        segments_BT=torch.cat([*segments, pad])[None],
        images_BT=torch.cat([*images, pad])[None],
        prompt_BT=torch.ones_like(tokens_BT).bool(),
        label_rows_R=torch.cat(rows),
        targets_R=torch.cat(targets),
        patches_PC=patches(golden),
        grids_N2=torch.tensor([[4, 4]] * 3),
        sample_ids=("0", "1", "2"),
    )


def assert_near(found: Tensor, expected: Tensor, tolerance: float = 1e-4) -> None:
    assert found.shape == expected.shape
    assert (found - expected).abs().max() < tolerance


@pytest.mark.usefixtures("no_grad")
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("row", ROWS)
def test_logits(golden: dict[str, Tensor], mode: str, row: int) -> None:
    model = build(golden, mode)
    expected = golden[f"{mode}.{row}.logits"]
    inputs = row_inputs(golden, row)
    assert_near(model(**inputs).logits[0], expected)
    merge_lora(model.llm)
    assert_near(model(**inputs).logits[0], expected)


@pytest.mark.usefixtures("no_grad")
@pytest.mark.parametrize("mode", MODES)
def test_logits_of_all_rows_in_one_packed_row(golden: dict[str, Tensor], mode: str) -> None:
    batch = packed_batch(golden)
    inputs = {**batch.model_inputs(), "label_rows": None}
    logits = build(golden, mode)(**inputs).logits[0]
    assert_near(logits[: batch.tokens], torch.cat([golden[f"{mode}.{row}.logits"] for row in ROWS]))


def test_modes_differ(golden: dict[str, Tensor]) -> None:
    """By far more than the tolerance, so that each mode is a test of its own."""
    difference = golden["bidirectional.0.logits"] - golden["default.0.logits"]
    assert difference.abs().max() > 0.01


@pytest.mark.parametrize("row", ROWS)
def test_masks(golden: dict[str, Tensor], row: int) -> None:
    function = mask_function("bidirectional", image_ids(golden, row)[None])
    index = torch.arange(len(golden[f"input.{row}.tokens"]))
    found = function(torch.tensor(0), torch.tensor(0), index[:, None], index[None])
    assert torch.equal(found, golden[f"bidirectional.{row}.mask"])


@pytest.mark.usefixtures("no_grad")
def test_vision_embeddings(golden: dict[str, Tensor]) -> None:
    model = build(golden, "default")
    found = model.get_image_features(patches(golden), torch.tensor([[4, 4]] * 3))
    expected = golden["bidirectional.vision_embeddings"].flatten(0, 1)
    assert_near(found, expected, 1e-5)


@dataclass
class Losses:
    """Means, and the model and objective that have them in their graph."""

    lm: Tensor
    layers: list[Tensor]
    distill: Tensor
    model: Any
    objective: Distill


def teacher(golden: dict[str, Tensor]) -> Teacher:
    settings = {k: v for k, v in FACTS["teacher"].items() if k != "model_type"}
    model = Aimv2VisionModel(Aimv2VisionConfig(**settings))
    model.load_state_dict(part(golden, "teacher."))
    return Teacher(model, tuple(FACTS["images"]["mean"]), tuple(FACTS["images"]["std"]))


def losses(golden: dict[str, Tensor], mode: str, align: str) -> Losses:
    model, batch = build(golden, mode), packed_batch(golden)
    spec = DistillSpec(teacher="golden", align=align)
    objective = Distill(spec, teacher(golden), model.width, len(model.blocks))
    heads = part(golden, "heads.")
    with torch.no_grad():
        for layer, head in objective.heads.items():
            head[0].weight.copy_(heads[f"{layer}.norm.weight"])
            head[1].weight.copy_(heads[f"{layer}.linear.weight"])
    assert sum(1 for _ in objective.parameters()) == len(heads)
    model.vision.requires_grad_(True)
    prepared = objective.prepare(batch)
    taps = objective.taps(prepared)
    output = model(**batch.model_inputs(), taps=taps)
    lm = LanguageModelling(LmSpec())
    count = objective.count(batch)
    return Losses(
        lm=lm.total(output, batch, None) / lm.count(batch),
        layers=[output.taps[block] / count for block in sorted(taps)],
        distill=objective.total(output, batch, prepared) / count,
        model=model,
        objective=objective,
    )


@pytest.mark.usefixtures("no_grad")
@pytest.mark.parametrize(
    ("stored", "mode", "align"),
    [
        ("bidirectional", "bidirectional", "input"),
        ("default", "default", "input"),
        ("bidirectional_teacher_outputs", "bidirectional", "released"),
    ],
)
def test_losses(golden: dict[str, Tensor], stored: str, mode: str, align: str) -> None:
    expected = FACTS["losses"][stored]
    found = losses(golden, mode, align)
    assert found.lm.item() == pytest.approx(expected["llm_loss"], rel=1e-4)
    assert len(found.layers) == 3
    for layer, loss in enumerate(found.layers):
        assert loss.item() == pytest.approx(expected[f"loss_aux_layer_{layer}"], rel=1e-4)
    total = found.lm + found.distill
    assert total.item() == pytest.approx(expected["total_loss"], rel=1e-4)


@pytest.mark.usefixtures("no_grad")
def test_the_paper_pairs_outputs(golden: dict[str, Tensor]) -> None:
    """Our default is neither of the released pairings."""
    found = losses(golden, "bidirectional", "output").distill.item()
    for align in ("input", "released"):
        other = losses(golden, "bidirectional", align).distill.item()
        assert abs(found - other) > 1e-3


def test_gradients(golden: dict[str, Tensor]) -> None:
    found = losses(golden, "bidirectional", "input")
    (found.lm + found.distill).backward()
    norms = {
        canonical_name(name): parameter.grad.norm().item()
        for name, parameter in found.model.named_parameters()
        if parameter.grad is not None
    }
    for layer, head in found.objective.heads.items():
        norms[f"heads.{layer}.norm.weight"] = head[0].weight.grad.norm().item()
        norms[f"heads.{layer}.linear.weight"] = head[1].weight.grad.norm().item()
    assert norms == pytest.approx(FACTS["grad_norms"]["bidirectional"], rel=1e-4)
    position = golden["bidirectional.grad.vision.position"]
    assert_near(found.model.vision.position.grad, position, 1e-4 * position.abs().max().item())
