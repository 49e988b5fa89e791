"""The shipped tiny checkpoints, and the command that builds them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from oculi.errors import CheckpointError
from oculi.testbed import CHECKPOINTS, checkpoint, checkpoints, language, manifest, playroom


def test_names_are_known_and_an_unknown_one_lists_them() -> None:
    assert {"aimv2", "clip", "llm", "reader", "siglip2"} <= set(checkpoints())
    with pytest.raises(CheckpointError, match=r'did you mean "aimv2".*llm'):
        checkpoint("aimv3")


def test_import_needs_no_torch() -> None:
    code = (
        "import sys, oculi.testbed.playroom, oculi.testbed.language, oculi.testbed.build;"
        "sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_shipped_files_match_their_manifest() -> None:
    assert manifest.problems(CHECKPOINTS) == []
    found = manifest.read(CHECKPOINTS)
    assert set(found["parts"]) == set(checkpoints())
    for part in found["parts"].values():
        assert all(entry["bytes"] <= 4 * 2**20 for entry in part["files"].values())
        assert "--quick" not in part["command"]
    card = (CHECKPOINTS / manifest.CARD).read_text(encoding="utf-8")
    assert card == manifest.card(found)


def test_manifest_notices_changed_missing_and_added_files(tmp_path: Path) -> None:
    part = tmp_path / "llm"
    part.mkdir()
    for name in "abc":
        (part / name).write_text("right", encoding="utf-8")
    facts = {"parameters": 1, "steps": 1, "samples": 1, "seed": 0, "metrics": {}}
    manifest.record(tmp_path, "llm", facts)
    assert manifest.problems(tmp_path) == []
    (part / "a").write_text("wrong", encoding="utf-8")
    (part / "b").unlink()
    (part / "d").write_text("new", encoding="utf-8")
    wrong = " ".join(manifest.problems(tmp_path))
    assert all(f"llm/{name}" in wrong for name in "abd") and "llm/c" not in wrong


def test_llm_answers_in_generation_as_it_was_scored() -> None:
    """Greedy generation agrees with the one-pass score, and questions on a text are mostly right."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from oculi.testbed.build_llm import exact

    tok = AutoTokenizer.from_pretrained(checkpoint("llm"))
    model = AutoModelForCausalLM.from_pretrained(checkpoint("llm"), dtype=torch.float32).eval()
    assert model.config.model_type == "qwen2" and model.config.tie_word_embeddings
    assert model.config.vocab_size == len(tok)
    right = []
    turns = [language.reading(1, "test", index) for index in range(16)]
    for turn in turns:
        message = [{"role": "user", "content": turn.prompt}]
        batch = tok.apply_chat_template(
            message, add_generation_prompt=True, return_tensors="pt", return_dict=True
        )
        out = model.generate(**batch, max_new_tokens=24, do_sample=False)
        reply = tok.decode(out[0, batch["input_ids"].shape[1] :], skip_special_tokens=True)
        right.append(reply == turn.answer)
    assert right == exact(model, tok, turns)
    assert sum(right) >= 0.8 * len(right)


@pytest.mark.parametrize("family", ["aimv2", "clip", "siglip2"])
def test_a_tower_sees_what_is_in_a_picture(family: str) -> None:
    """Its patch states separate the colours linearly: a probe fitted on 150 pictures reads them."""
    from transformers import AutoModel

    from oculi.testbed.build_teacher import pixels
    from oculi.testbed.towers import TOWERS

    model = AutoModel.from_pretrained(checkpoint(family), dtype=torch.float32).eval()
    scenes = [playroom.scene(1, "test", index) for index in range(240)]
    with torch.no_grad():
        states = TOWERS[family].states(model, pixels(TOWERS[family], scenes))
    assert states.shape == (240, 36, 192)
    where = [int(o.centre[1] // 14) * 6 + int(o.centre[0] // 14) for (o,) in
             (scene.objects for scene in scenes)]  # fmt: skip
    features = states[range(240), where].numpy()
    for attribute, names in (("colour", tuple(playroom.COLOURS)), ("shape", playroom.SHAPES)):
        labels = np.array([names.index(s.objects[0].value(attribute)) for s in scenes])
        ridge = features[:150].T @ features[:150] + 10 * np.eye(192)
        weights = np.linalg.solve(ridge, features[:150].T @ np.eye(len(names))[labels[:150]])
        guesses = (features[150:] @ weights).argmax(1)
        assert (guesses == labels[150:]).mean() > 0.9, attribute


@pytest.mark.parametrize("family", ["aimv2", "clip"])
def test_a_tower_s_processor_does_what_training_did(family: str) -> None:
    from transformers import AutoImageProcessor

    from oculi.testbed.build_teacher import pixels
    from oculi.testbed.towers import TOWERS

    scene = playroom.scene(2, "test", 0)
    shipped = AutoImageProcessor.from_pretrained(checkpoint(family), backend="pil")
    made = shipped(playroom.draw(scene), return_tensors="pt")["pixel_values"]
    assert torch.allclose(made, pixels(TOWERS[family], [scene]), atol=1e-5)


def test_the_patches_of_siglip2_s_processor_are_those_of_its_training() -> None:
    from oculi.testbed.build_teacher import pixels
    from oculi.testbed.towers import TOWERS

    tower, scene = TOWERS["siglip2"], playroom.scene(2, "test", 0)
    torch.manual_seed(0)
    model = tower.new().eval()
    made = tower.processor()(playroom.draw(scene), return_tensors="pt")
    assert made["spatial_shapes"].tolist() == [[6, 6]]
    with torch.no_grad():
        states = model(**made).last_hidden_state
        ours = tower.states(model, pixels(tower, [scene]))
    assert torch.allclose(states, ours, atol=1e-4)


@pytest.mark.parametrize("family", ["aimv2", "clip", "siglip2"])
def test_the_states_that_heads_read_are_a_teacher_s_last_ones(family: str) -> None:
    """Normalised; a teacher gives them as they leave the block."""
    from oculi.model.image_processing_oculi import OculiImageProcessor
    from oculi.objectives.teacher import Teacher
    from oculi.testbed.build_teacher import pixels
    from oculi.testbed.towers import GRID, PATCH, TOWERS

    tower, scene = TOWERS[family], playroom.scene(1, "test", 0)
    torch.manual_seed(0)
    model = tower.new().eval()
    patches, grid = OculiImageProcessor(patch_size=PATCH, mode="native").patches(
        playroom.draw(scene)
    )
    assert grid == (GRID, GRID)
    teacher = Teacher(model, tower.mean, tower.std)
    last = teacher.features(torch.from_numpy(patches), torch.tensor([grid]))[-1]
    norm = {"aimv2": "rms_norm", "clip": "post_layernorm", "siglip2": "post_layernorm"}[family]
    with torch.no_grad():
        ours = tower.states(model, pixels(tower, [scene]))[0]
        assert torch.allclose(getattr(model, norm)(last), ours, atol=1e-4)


def test_quick_build_makes_every_part_and_reloads_bit_for_bit(tmp_path: Path) -> None:
    from transformers import AutoModel

    from oculi.testbed import build_common
    from oculi.testbed.build import PARTS, build
    from oculi.testbed.towers import TOWERS

    build(tmp_path / "made", quick=True, log=tmp_path / "logs")
    assert manifest.problems(tmp_path / "made") == []
    assert {path.name for path in (tmp_path / "made").iterdir()} == {
        *PARTS, manifest.MANIFEST, manifest.CARD,
    }  # fmt: skip
    assert "step 3/3" in (tmp_path / "logs" / "aimv2.log").read_text(encoding="utf-8")
    model = TOWERS["aimv2"].new()
    build_common.save(model, tmp_path / "tower")
    again = AutoModel.from_pretrained(tmp_path / "tower", dtype=torch.float32)
    kept = model.to(torch.bfloat16).to(torch.float32).state_dict()
    assert all(torch.equal(weight, kept[name]) for name, weight in again.state_dict().items())
    with pytest.raises(CheckpointError, match='did you mean "aimv2"'):
        build(tmp_path / "made", only=["aimv"])


def test_saving_changes_nothing_of_the_model_that_trains_on(tmp_path: Path) -> None:
    """Rotary frequencies are no weights: rounded with them, they would stay rounded."""
    from oculi.testbed import build_llm
    from oculi.testbed.build_common import save

    torch.manual_seed(0)
    model = build_llm.new_model(1024, 0, 2)
    before = {
        name: tensor.clone() for name, tensor in [*model.named_parameters(), *model.named_buffers()]
    }
    assert any("inv_freq" in name for name in before)
    save(model, tmp_path)
    after = dict([*model.named_parameters(), *model.named_buffers()])
    assert all(torch.equal(before[name], after[name]) for name in before)
