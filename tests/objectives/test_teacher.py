"""Teachers of three families: their own raw states, on the student's grid, and never trained."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import nn

from helpers import PATCH, make_tower, save_teacher
from oculi.errors import CheckpointError
from oculi.model.patch_embed_oculi import CLIP_MEAN, CLIP_STD, PatchEmbed, unpatchify
from oculi.objectives.teacher import Teacher, load_patch_embedding, normalisation
from towers import HALF, TOWERS, cut, own_states, pixels


@pytest.mark.parametrize("family", TOWERS)
def test_states_are_the_towers_own(family: str) -> None:
    """Raw outputs of the blocks (the final norm is not in them), CLIP's class token dropped."""
    model = make_tower(family)
    patches, grids = cut((16, 16))
    teacher = Teacher(model, HALF, (0.25, 0.3, 0.35))
    found = teacher.features(patches, grids)
    wanted = own_states(model, pixels(patches, grids[0], HALF, (0.25, 0.3, 0.35)))
    assert len(found) == len(wanted) == teacher.blocks + 1 == 3
    for one, other in zip(found, wanted, strict=True):
        assert one.shape == (16, teacher.width)
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)
    assert not torch.allclose(found[0], found[1]) and not torch.allclose(found[1], found[2])


@pytest.mark.parametrize("family", TOWERS)
def test_images_of_different_grids_do_not_meet(family: str) -> None:
    teacher = Teacher(make_tower(family))
    patches, grids = cut((16, 16), (8, 12), (16, 16), (20, 4))
    assert grids.tolist() == [[4, 4], [3, 2], [4, 4], [1, 5]]
    together = teacher.features(patches, grids)
    parts = patches.split(grids.prod(-1).tolist())
    alone = [teacher.features(p, g[None]) for p, g in zip(parts, grids, strict=True)]
    for k, state in enumerate(together):
        wanted = torch.cat([one[k] for one in alone])
        torch.testing.assert_close(state, wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("family", ["aimv2", "clip"])
def test_a_table_of_positions_for_one_size(family: str) -> None:
    """The picture is resized to the teacher's size, its states back to the student's grid."""
    model = make_tower(family)
    teacher = Teacher(model)
    assert teacher.grid == (4, 4)
    patches, grids = cut((8, 12))
    image = unpatchify(patches, 3, 2, PATCH).float()[None]
    resized = F.interpolate(image, (16, 16), mode="bilinear", antialias=True) / 255
    mean, std = (torch.tensor(v)[:, None, None] for v in (CLIP_MEAN, CLIP_STD))
    found = teacher.features(patches, grids)
    for k, state in enumerate(own_states(model, (resized - mean) / std)):
        wanted = F.interpolate(
            state.T.view(1, -1, 4, 4), (3, 2), mode="bilinear", align_corners=False
        )
        torch.testing.assert_close(found[k], wanted[0].flatten(1).T, rtol=1e-5, atol=1e-5)


def test_naflex_takes_the_students_grid() -> None:
    model = make_tower("siglip2")
    teacher = Teacher(model, HALF, HALF)
    assert teacher.grid is None
    patches, grids = cut((8, 12))
    wanted = own_states(model, pixels(patches, grids[0], HALF, HALF))
    for one, other in zip(teacher.features(patches, grids), wanted, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)


def test_another_patch_size_than_the_students() -> None:
    """Patches of 8 on a grid of its own: one state per student patch all the same."""
    teacher = Teacher(make_tower("siglip2", patch_size=8))
    patches, grids = cut((16, 8), (4, 4))
    assert [s.shape for s in teacher.features(patches, grids)] == [(8 + 1, 24)] * 3


@pytest.mark.parametrize("family", TOWERS)
@pytest.mark.parametrize("factor", [2, 4])
def test_larger_patches_get_the_mean_of_the_states_in_them(family: str, factor: int) -> None:
    """The teacher sees the picture at its own resolution, whatever the student's patches are."""
    teacher = Teacher(make_tower(family))
    patches, grids = cut((16, 16))
    own = teacher.features(patches, grids)
    whole = unpatchify(patches, 4, 4, PATCH)
    count = 4 // factor
    side = factor * PATCH
    large = whole.view(3, count, side, count, side).permute(1, 3, 0, 2, 4).flatten(0, 1).flatten(1)
    found = teacher.features(large, torch.tensor([[count, count]]))
    for one, state in zip(found, own, strict=True):
        wanted = state.view(count, factor, count, factor, -1).mean((1, 3)).flatten(0, 1)
        torch.testing.assert_close(one, wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("family", TOWERS)
def test_a_teacher_is_frozen(family: str) -> None:
    teacher = Teacher(make_tower(family).train())
    assert not teacher.model.training
    assert not any(p.requires_grad for p in teacher.model.parameters())
    assert not any(state.requires_grad for state in teacher.features(*cut((16, 16))))


@pytest.mark.parametrize("family", TOWERS)
def test_loading_from_a_folder(tmp_path: Path, family: str) -> None:
    save_teacher(tmp_path, family)
    patches, grids = cut((12, 16))
    wanted = Teacher(make_tower(family)).features(patches, grids)
    found = Teacher.load(str(tmp_path)).features(patches, grids)
    assert all(torch.equal(a, b) for a, b in zip(found, wanted, strict=True))
    config = {"image_mean": HALF, "image_std": [0.2, 0.3, 0.4]}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(config))
    own = Teacher.load(str(tmp_path)).features(patches, grids)
    wanted = Teacher(make_tower(family), HALF, (0.2, 0.3, 0.4)).features(patches, grids)
    assert all(torch.equal(a, b) for a, b in zip(own, wanted, strict=True))
    assert not torch.allclose(own[0], found[0])


def test_the_vision_part_of_a_whole_clip(tmp_path: Path) -> None:
    """Most CLIP checkpoints hold the text tower as well."""
    from transformers import CLIPConfig, CLIPModel, CLIPTextConfig

    tower = make_tower("clip")
    text = CLIPTextConfig(
        vocab_size=50, hidden_size=16, intermediate_size=16, num_hidden_layers=1,
        num_attention_heads=2,
    )  # fmt: skip
    parts = {"text_config": text.to_dict(), "vision_config": tower.config.to_dict()}
    whole = CLIPModel(CLIPConfig(**parts, projection_dim=8))
    whole.vision_model.load_state_dict(tower.state_dict())
    whole.save_pretrained(tmp_path)
    patches, grids = cut((16, 16))
    found = Teacher.load(str(tmp_path)).features(patches, grids)
    wanted = Teacher(tower).features(patches, grids)
    assert all(torch.equal(a, b) for a, b in zip(found, wanted, strict=True))


def test_what_is_no_teacher(tmp_path: Path, make_llm_config: Callable[..., Any]) -> None:
    make_llm_config().save_pretrained(tmp_path / "llm")
    (tmp_path / "empty").mkdir()
    (tmp_path / "odd").mkdir()
    (tmp_path / "odd" / "config.json").write_text('{"model_type": "no-such-model"}')
    make_tower("aimv2").config.save_pretrained(tmp_path / "weightless")
    weights = save_teacher(tmp_path / "cut") / "model.safetensors"
    tensors = load_file(weights)
    weights.write_bytes(weights.read_bytes()[:-100])
    del tensors["embeddings.patch_embed.bias"]
    save_file(tensors, save_teacher(tmp_path / "lacking") / weights.name, {"format": "pt"})
    said = {
        "llm": "is a qwen2, no vision tower; known are aimv2",
        "empty": "no config.json",
        "none": "is no folder",
        "odd": "no-such-model",
        "weightless": "safetensors",
        "cut": "cut cannot be loaded",
        "lacking": "lacks 1 weights of Aimv2VisionModel, the first is embeddings.patch_embed.bias",
    }
    for name, message in said.items():
        with pytest.raises(CheckpointError, match=message) as caught:
            Teacher.load(str(tmp_path / name))
        assert "\n" not in str(caught.value)


def embedding(folder: Path, **settings: Any) -> PatchEmbed:
    found = load_patch_embedding(str(folder))
    part = PatchEmbed(32, PATCH, 24, grid=(4, 4), **settings)
    own = part.state_dict()
    assert set(found) <= set(own)
    for name, value in found.items():
        assert own[name].shape == value.shape and not value.requires_grad
    part.load_state_dict({**own, **found})
    return part


def test_aimv2s_embedding_is_reproduced(tmp_path: Path) -> None:
    """Patch projection, norm and position together; the norm's epsilon is the only difference
    (1e-6 here as in the released VoRA, 1e-5 in AIMv2), so it is given."""
    part = embedding(save_teacher(tmp_path), eps=1e-5)
    assert set(load_patch_embedding(str(tmp_path))) == {
        "patch.weight", "patch.bias", "norm.weight", "position"
    }  # fmt: skip
    patches, grids = cut((16, 16))
    with torch.no_grad():
        found = part.norm(part.patch(part.normalise(patches))) + part.interpolate(grids, 16)
        wanted = make_tower("aimv2").embeddings(pixels(patches, grids[0], CLIP_MEAN, CLIP_STD))
    torch.testing.assert_close(found, wanted[0], rtol=1e-5, atol=1e-5)


def test_clips_projection_and_positions_are_reproduced(tmp_path: Path) -> None:
    """CLIP adds the position before its norm and has no bias; the projection itself is the same."""
    part, model = embedding(save_teacher(tmp_path, "clip")), make_tower("clip")
    patches, grids = cut((16, 16))
    with torch.no_grad():
        found = part.patch(part.normalise(patches))
        image = pixels(patches, grids[0], CLIP_MEAN, CLIP_STD)
        wanted = model.embeddings.patch_embedding(image).flatten(2)[0].T
        torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)
        whole = found + part.interpolate(grids, 16)
        torch.testing.assert_close(whole, model.embeddings(image)[0, 1:], rtol=1e-5, atol=1e-5)
    assert "norm.weight" not in load_patch_embedding(str(tmp_path))


def test_siglips_projection_and_positions_are_reproduced(tmp_path: Path) -> None:
    """Its patches are channels-last, ours channels-first."""
    part = embedding(save_teacher(tmp_path, "siglip2"), image_mean=HALF, image_std=HALF)
    patches, grids = cut((16, 16))
    with torch.no_grad():
        found = part.patch(part.normalise(patches)) + part.interpolate(grids, 16)
    wanted = Teacher(make_tower("siglip2"), HALF, HALF).features(patches, grids)[0]
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)


def test_native_aimv2_has_no_table(tmp_path: Path) -> None:
    model = make_tower("aimv2", is_native=True)
    model.save_pretrained(tmp_path)
    assert set(load_patch_embedding(str(tmp_path))) == {"patch.weight", "patch.bias", "norm.weight"}
    teacher = Teacher(model)
    assert teacher.grid is None
    patches, grids = cut((8, 12))
    wanted = own_states(model, pixels(patches, grids[0], CLIP_MEAN, CLIP_STD))
    torch.testing.assert_close(teacher.features(patches, grids)[2], wanted[2], rtol=1e-5, atol=1e-5)


# ------------------------------------------------------------------------------------- how it runs


def test_its_states_may_be_kept_for_a_backward_pass() -> None:
    """It runs in inference mode, whose own tensors may not."""
    seen = []
    model = make_tower("aimv2")
    model.encoder.layers[0].register_forward_hook(
        lambda module, args, output: seen.append(torch.is_inference_mode_enabled())
    )
    states = Teacher(model).features(*cut((16, 16)))
    assert seen == [True]
    assert not any(state.is_inference() or state.requires_grad for state in states)
    student = torch.randn_like(states[1], requires_grad=True)
    (student * states[1]).sum().backward()
    assert torch.equal(student.grad, states[1])  # type: ignore[arg-type]


@pytest.mark.parametrize("family", ["aimv2", "clip", "siglip2"])
def test_its_blocks_read_tokens_that_lie_row_by_row(family: str) -> None:
    """Else each product with a weight copies it for every picture."""
    seen = []
    model = make_tower(family)
    block = next(m for m in model.modules() if isinstance(m, nn.ModuleList))[0]
    block.register_forward_pre_hook(
        lambda module, args, kwargs: seen.append((*args, *kwargs.values())[0].is_contiguous()),
        with_kwargs=True,
    )
    Teacher(model).features(*cut((16, 16), (16, 16)))
    assert seen == [True]


@pytest.mark.parametrize("family", ["aimv2", "clip", "siglip2"])
def test_in_bfloat16_its_states_point_the_same_way(family: str) -> None:
    patches, grids = cut((16, 16), (8, 12))
    exact = Teacher(make_tower(family)).features(patches, grids)
    teacher = Teacher(make_tower(family))
    teacher.to(torch.device("cpu"), torch.bfloat16)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = teacher.features(patches, grids)
    for state, wanted in zip(found, exact, strict=True):
        assert state.dtype == torch.bfloat16
        assert torch.cosine_similarity(state.float(), wanted).min() > 0.99


@pytest.mark.parametrize("file", ["preprocessor_config.json", "processor_config.json"])
def test_pixels_are_normalised_as_the_checkpoint_says(tmp_path: Path, file: str) -> None:
    """transformers 5 writes the second, with the image processor's settings inside."""
    folder = save_teacher(tmp_path / "tower", "siglip2")
    assert normalisation(str(folder)) == (CLIP_MEAN, CLIP_STD)
    said: dict[str, Any] = {"image_mean": [0.5, 0.5, 0.5], "image_std": [0.25, 0.3, 0.35]}
    inside = {"image_processor": said} if file.startswith("processor") else said
    (folder / file).write_text(json.dumps(inside))
    assert normalisation(str(folder)) == ((0.5, 0.5, 0.5), (0.25, 0.3, 0.35))
    for text in (
        "{",
        "[]",
        '{"image_mean": 3}',
        '{"image_mean": [1, 2]}',
        '{"image_std": ["a", 1, 2]}',
    ):
        (folder / file).write_text(text)
        if text == "[]":
            assert normalisation(str(folder)) == (CLIP_MEAN, CLIP_STD)
            continue
        with pytest.raises(CheckpointError, match="tower cannot be loaded"):
            normalisation(str(folder))
