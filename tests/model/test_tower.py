"""The tower and its connector: transformers' LLaVA, number by number, and what a tower must not do."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import AutoModelForCausalLM, CLIPVisionConfig, LlavaConfig
from transformers import LlavaForConditionalGeneration as Llava

from helpers import PATCH, make_tower
from oculi.model import OculiConfig, OculiForConditionalGeneration
from oculi.model.patch_embed_oculi import CLIP_MEAN, CLIP_STD, unpatchify
from oculi.model.tower_oculi import VisionTower
from towers import HALF, TOWERS, cut, own_states, pixels

FAMILIES = pytest.mark.parametrize("family", TOWERS)
BLOCKS = 3


def vision_config(family: str, layer: int = -2, **settings: Any) -> dict[str, Any]:
    """Of a tower of width 24 with three blocks; ``settings`` go to the tower."""
    tower = make_tower(family, num_hidden_layers=BLOCKS, **settings).config.to_dict()
    return {"kind": "tower", "tower": tower, "patch_size": PATCH, "layer": layer}


def part(family: str, layer: int = -2, **settings: Any) -> VisionTower:
    """The vision part alone, with the weights of ``make_tower``."""
    arguments = vision_config(family, layer)
    arguments.pop("kind")
    torch.manual_seed(0)
    module = VisionTower(32, **arguments, **settings).eval().requires_grad_(False)
    own = make_tower(family, num_hidden_layers=BLOCKS).state_dict()
    assert module.tower.load_state_dict(own)
    return module


def close(found: Tensor, wanted: Tensor) -> None:
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)


# ------------------------------------------------------------------------- transformers' own LLaVA

NAMES = {
    "model.vision_tower.": "vision.tower.",
    "model.multi_modal_projector.linear_1.": "vision.connector.0.",
    "model.multi_modal_projector.linear_2.": "vision.connector.2.",
    "model.language_model.": "llm.model.",
    "lm_head.": "llm.lm_head.",
}


def our_name(name: str) -> str:
    (theirs,) = (prefix for prefix in NAMES if name.startswith(prefix))
    return NAMES[theirs] + name.removeprefix(theirs)


@torch.no_grad()
def both(llm: Any, layer: int) -> tuple[Any, Any]:
    """Their model and ours with one set of weights; the image token has the last row of the table."""
    tower = make_tower("clip", num_hidden_layers=BLOCKS).config
    image = llm.vocab_size - 1
    torch.manual_seed(0)
    theirs = Llava(
        LlavaConfig(
            vision_config=CLIPVisionConfig(**tower.to_dict()),
            text_config=llm,
            image_token_id=image,
            vision_feature_layer=layer,
            vision_feature_select_strategy="default",
        )
    ).eval()
    for name, parameter in theirs.named_parameters():
        if not name.startswith("model.language_model.") or name.endswith("bias"):
            parameter.normal_(std=0.3)
    config = OculiConfig(llm, vision_config("clip", layer), image, image_attention="causal")
    ours = OculiForConditionalGeneration(config).eval()
    weights = {our_name(name): value for name, value in theirs.state_dict().items()}
    assert weights.keys() == ours.state_dict().keys()
    ours.load_state_dict(weights)
    return theirs, ours


def same_inputs(image: int) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Their and our inputs: rows with one image, two adjacent ones, none, padded on the left.

    The pictures are normalised and cut here, with other code than the package's.
    """
    rows = [
        [5, 6, *[image] * 16, 7],
        [8, *[image] * 32, 9, 10, 11],
        [12, 13, 14],
    ]
    length = max(len(row) for row in rows)
    common = {
        "input_ids": torch.tensor([[0] * (length - len(row)) + row for row in rows]),
        "attention_mask": torch.tensor([[0] * (length - len(r)) + [1] * len(r) for r in rows]),
    }
    generator = torch.Generator().manual_seed(0)
    pictures = torch.randint(0, 256, (3, 3, 16, 16), generator=generator)
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (CLIP_MEAN, CLIP_STD))
    patches = F.unfold(pictures.float(), PATCH, stride=PATCH).transpose(1, 2).flatten(0, 1)
    ours = {"pixel_values": patches.to(torch.uint8), "image_grids": torch.tensor([[4, 4]] * 3)}
    return {**common, "pixel_values": (pictures / 255 - mean) / std}, {**common, **ours}


CASES = [("qwen2", -2), ("llama", -2), ("llama", -1)]


@pytest.mark.usefixtures("no_grad")
@pytest.mark.parametrize(("llm", "layer"), CASES)
def test_logits_are_those_of_transformers_llava(
    make_llm_config: Callable[..., Any], vocab_size: int, llm: str, layer: int
) -> None:
    theirs, ours = both(make_llm_config(llm, vocab_size=vocab_size + 1), layer)
    their_inputs, our_inputs = same_inputs(vocab_size)
    real = their_inputs["attention_mask"].bool()
    wanted, found = theirs(**their_inputs).logits[real], ours(**our_inputs).logits[real]
    assert wanted.std() > 1
    difference = float((found - wanted).abs().max())
    print(f"{llm}, layer {layer}: {difference:.1e} of a deviation of {float(wanted.std()):.2f}")
    assert difference < 1e-4
    # It would see another layer, another picture and attention within an image.
    other = theirs(**their_inputs, vision_feature_layer=1).logits[real]
    assert (other - wanted).abs().max() > 0.1
    changed = {**our_inputs, "pixel_values": our_inputs["pixel_values"].flip(0)}
    assert (ours(**changed).logits[real] - wanted).abs().max() > 0.1
    ours.config.image_attention = "bidirectional"
    assert (ours(**our_inputs).logits[real] - wanted).abs().max() > 0.1


@pytest.mark.parametrize("llm", ["qwen2", "llama"])
def test_generation_is_that_of_transformers_llava(
    make_llm_config: Callable[..., Any], vocab_size: int, llm: str
) -> None:
    theirs, ours = both(make_llm_config(llm, vocab_size=vocab_size + 1), -2)
    their_inputs, our_inputs = same_inputs(vocab_size)
    settings: dict[str, Any] = {
        "max_new_tokens": 8, "do_sample": False, "eos_token_id": -1, "pad_token_id": 0,
        "suppress_tokens": [vocab_size],
    }  # fmt: skip
    wanted, found = (
        m.generate(**x, **settings) for m, x in ((theirs, their_inputs), (ours, our_inputs))
    )
    assert torch.equal(found, wanted)
    new = wanted[:, their_inputs["input_ids"].shape[1] :]
    assert new.shape == (3, 8) and len(set(map(tuple, new.tolist()))) == 3


# ------------------------------------------------------------------------------ the tokens of a part


@FAMILIES
@pytest.mark.parametrize("layer", [-1, -2, 0])
def test_tokens_are_the_connector_of_a_layers_states(family: str, layer: int) -> None:
    module = part(family, layer)
    patches, grids = cut((16, 16))
    tower = make_tower(family, num_hidden_layers=BLOCKS)
    states = own_states(tower, pixels(patches, grids[0], CLIP_MEAN, CLIP_STD))
    first, second = module.connector[0], module.connector[2]
    hidden = F.gelu(states[layer] @ first.weight.T + first.bias)
    wanted = hidden @ second.weight.T + second.bias
    found = module(patches, grids)
    assert found.shape == (16, 32)
    close(found, wanted)
    assert not torch.allclose(found, part(family, layer - 1)(patches, grids), atol=1e-2)


@FAMILIES
def test_layers_are_counted_from_both_ends(family: str) -> None:
    patches, grids = cut((16, 16), (8, 12))
    for layer in range(BLOCKS + 1):
        again = part(family, layer - BLOCKS - 1)
        assert torch.equal(part(family, layer)(patches, grids), again(patches, grids))


@pytest.mark.parametrize("layer", [BLOCKS + 1, -BLOCKS - 2])
def test_a_layer_that_is_not_there(layer: int) -> None:
    with pytest.raises(ValueError, match=rf"states -4 to 3, none at layer {layer}"):
        part("clip", layer)


@FAMILIES
def test_images_of_a_batch_do_not_matter_to_each_other(family: str) -> None:
    """Ragged grids, two of them alike, so that they run together."""
    module = part(family)
    patches, grids = cut((16, 16), (8, 12), (16, 16), (20, 4))
    assert grids.tolist() == [[4, 4], [3, 2], [4, 4], [1, 5]]
    together = module(patches, grids).split(grids.prod(-1).tolist())
    parts = patches.split(grids.prod(-1).tolist())
    for found, image, grid in zip(together, parts, grids, strict=True):
        close(found, module(image, grid[None]))
    assert not torch.allclose(together[0], together[2])


def test_naflex_takes_any_grid() -> None:
    module = part("siglip2", image_mean=HALF, image_std=(0.2, 0.3, 0.4))
    patches, grids = cut((8, 12))
    tower = make_tower("siglip2", num_hidden_layers=BLOCKS)
    states = own_states(tower, pixels(patches, grids[0], HALF, (0.2, 0.3, 0.4)))
    close(module(patches, grids), module.connector(states[-2]))


@pytest.mark.parametrize("family", ["aimv2", "clip"])
def test_a_tower_of_one_grid_sees_the_picture_at_its_size(family: str) -> None:
    """Its states are brought back to the picture's grid before the connector."""
    module = part(family)
    patches, grids = cut((8, 12))
    image = unpatchify(patches, 3, 2, PATCH).float()[None]
    resized = F.interpolate(image, (16, 16), mode="bilinear", antialias=True) / 255
    mean, std = (torch.tensor(v)[:, None, None] for v in (CLIP_MEAN, CLIP_STD))
    state = own_states(make_tower(family, num_hidden_layers=BLOCKS), (resized - mean) / std)[-2]
    square = state.T.view(1, -1, 4, 4)
    back = F.interpolate(square, (3, 2), mode="bilinear", align_corners=False)[0].flatten(1).T
    close(module(patches, grids), module.connector(back))


@FAMILIES
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_no_image_is_no_token(family: str, dtype: torch.dtype) -> None:
    found = part(family).to(dtype)(*(tensor[:0] for tensor in cut((16, 16))))
    assert found.shape == (0, 32) and found.dtype == dtype


@FAMILIES
def test_bfloat16_weights(family: str) -> None:
    """All of them, or the tower alone, as where the connector is trained."""
    module, inputs = part(family), cut((16, 16), (8, 12))
    exact = module(*inputs)
    module.tower.to(torch.bfloat16)
    for connector in (torch.float32, torch.bfloat16):
        module.connector.to(connector)
        found = module(*inputs)
        assert found.dtype == connector
        assert (found.float() - exact).abs().max() < 0.1 * exact.abs().max()


def test_a_token_a_patch() -> None:
    assert part("clip").token_grids(torch.tensor([[2, 3], [4, 4]])).tolist() == [[2, 3], [4, 4]]


@pytest.mark.usefixtures("no_grad")
@FAMILIES
def test_rows_with_and_without_images(make_model: Any, make_inputs: Any, family: str) -> None:
    """A batch with a row of text is its rows one by one; text alone needs no vision part at all."""
    model = make_model("qwen2", "causal", vision=vision_config(family))
    rows: list[list[Any]] = [[5, (2, 3), 7], [5, 6], [9, (4, 4), (1, 2), 8]]
    together = make_inputs(rows)
    logits = model(**together).logits
    cuts = together["pixel_values"].split([6, 0, 18])
    for i, row in enumerate(rows):
        alone = make_inputs([row])
        if "pixel_values" in alone:
            alone["pixel_values"] = cuts[i]
        found = model(**alone).logits[0]
        # Rows are padded on the left, and positions count the padding.
        positions = torch.arange(logits.shape[1])[-len(found) :][None]
        shifted = model(**alone, position_ids=positions).logits[0]
        assert (shifted - logits[i, -len(found) :]).abs().max() < 1e-4
    text = make_inputs([[5, 6]])
    wanted = model.llm(**text).logits
    model.vision = None
    close(model(**text).logits, wanted)


# ------------------------------------------------------------------- dropout, loading, and the device


def test_a_frozen_tower_stays_in_evaluation_mode() -> None:
    """Dropout in a tower that nothing trains would only blur what is read from it."""
    arguments = vision_config("clip", attention_dropout=0.9)
    arguments.pop("kind")
    module, inputs = VisionTower(32, **arguments), cut((16, 16))
    module.tower.requires_grad_(False)
    assert module.train() is module and module.training and module.connector.training
    assert not any(child.training for child in module.tower.modules())
    assert torch.equal(module(*inputs), module(*inputs))
    module.tower.encoder.layers[0].mlp.fc1.weight.requires_grad_(True)
    assert all(child.training for child in module.train().tower.modules())
    assert not torch.equal(module(*inputs), module(*inputs))
    assert not any(child.training for child in module.eval().modules())


def assert_whole(model: Any, wanted: dict[str, Tensor]) -> None:
    """Every tensor is there, and the tower that is read is the tower that was loaded."""
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    assert not [name for name, tensor in tensors.items() if tensor.is_meta]
    assert all(torch.equal(tensors[name], value) for name, value in wanted.items())
    assert model.vision.reader.model is model.vision.tower


@pytest.mark.usefixtures("no_grad")
@FAMILIES
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_saved_and_loaded(
    make_model: Any, make_inputs: Any, tmp_path: Any, family: str, dtype: torch.dtype
) -> None:
    """Buffers that no file holds (position ids) included: loading starts on the meta device."""
    model = make_model("qwen2", "causal", vision=vision_config(family))
    for parameter in model.parameters():
        parameter.data = parameter.to(dtype)
    model.save_pretrained(tmp_path)
    again, report = OculiForConditionalGeneration.from_pretrained(
        tmp_path, output_loading_info=True
    )
    assert not any(report.values()), report
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    assert len(tensors) > len(model.state_dict())
    assert {p.dtype for p in again.parameters()} == {dtype}
    assert_whole(again, tensors)
    inputs = make_inputs([[5, (2, 3), 7, (4, 4)]])
    assert torch.equal(again.eval()(**inputs).logits, model(**inputs).logits)
    with torch.no_grad():  # what is read is what is there now, in copies as well
        for each in (again, copy.deepcopy(again)):
            for parameter in each.vision.tower.parameters():
                parameter.mul_(0.5)
            assert not torch.equal(each(**inputs).logits, model(**inputs).logits)
            assert_whole(each, {})


@pytest.mark.usefixtures("no_grad")
@FAMILIES
def test_assembled_around_an_llm(
    make_llm_config: Callable[..., Any], make_inputs: Any, vocab_size: int, family: str
) -> None:
    llm = AutoModelForCausalLM.from_config(make_llm_config()).bfloat16()
    config = OculiConfig(llm.config, vision_config(family), vocab_size, image_attention="causal")
    torch.manual_seed(3)
    model = OculiForConditionalGeneration.assemble(config, llm)
    assert_whole(model, {})
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
    torch.manual_seed(3)
    again = OculiForConditionalGeneration.assemble(config, llm)
    assert_whole(again, model.state_dict())  # the seed decides, nothing is left as memory was
    first = model.vision.connector[0].weight.float()
    assert first.abs().max() <= 24**-0.5 * 1.01 and first.std() == pytest.approx(
        (24 * 3) ** -0.5, rel=0.1
    )  # torch's own initialisation of a linear layer
    assert torch.isfinite(model.eval()(**make_inputs([[5, (2, 3), 7]])).logits).all()


@FAMILIES
def test_on_the_meta_device_there_are_shapes_alone(
    make_llm_config: Callable[..., Any], family: str
) -> None:
    config = OculiConfig(make_llm_config(), vision_config(family))
    with torch.device("meta"):
        model = OculiForConditionalGeneration(config)
    assert all(parameter.is_meta for parameter in model.parameters())
