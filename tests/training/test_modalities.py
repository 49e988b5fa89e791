"""A second modality beside pictures, from a row's key to an answer: those before it stay to the bit."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from helpers import PATCH, Tiny, mixture, recipe_data
from oculi.cli import app
from oculi.data.loader import collate, encode_sample
from oculi.errors import DataError, RecipeError
from oculi.eval.chat import Conversation
from oculi.eval.evaluate import encode_question
from oculi.eval.tasks import questions
from oculi.export.exported import load_exported
from oculi.export.load import load_checkpoint
from oculi.recipe import Recipe, override, validate
from oculi.recipes import find_recipe
from oculi.training.run import train
from oculi.training.start import begin_with
from routed import same_bits

ROUTED = "{rank: 4, blocks: 2, routed: true, modality: audio}"


@pytest.fixture(scope="module")
def seeing(tiny: Tiny, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Trained on pictures with routed LoRA; read only."""
    data = recipe_data(tiny, **{"stages.0.merge_lora": False})
    data["model"]["lora"]["routed"] = True
    data["stages"] = data["stages"][:1]
    return train(validate(data, "test"), tmp_path_factory.mktemp("seeing") / "run", quiet=True)


@pytest.fixture(scope="module")
def rows(tiny: Tiny, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tests' rows as sounds."""
    folder = tmp_path_factory.mktemp("sounds")
    shutil.copytree(tiny.data.parent, folder, dirs_exist_ok=True)
    file = folder / tiny.data.name
    made = [{**row, "modality": "audio"} for row in json.loads(file.read_text())]
    file.write_text(json.dumps(made))
    return file


def beside(seeing: Path, rows: Path, *changes: str) -> Recipe:
    settings = (
        "steps=3", "batch=4", "length=512", "pack_length=160", "workers=0", "precision=float32",
        "lr=1e-2", "warmup_steps=1", "trainable={'llm.*.routed.audio.lora_?': null}",
    )  # fmt: skip
    data = f"stages.0.data=[{{kind: file, path: '{rows}'}}]"
    recipe = begin_with(find_recipe("finetune"), str(seeing))
    lora = f"model.lora={ROUTED}"
    return override(recipe, [lora, data, *(f"stages.0.{one}" for one in settings), *changes])


@pytest.fixture(scope="module")
def both(seeing: Path, rows: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """That, trained further on sounds alone; read only."""
    return train(beside(seeing, rows), tmp_path_factory.mktemp("both") / "run", quiet=True)


def logits(model: Any, batch: Any) -> torch.Tensor:
    """Of all tokens [B, T, V]; a loss has those of label rows alone."""
    found: torch.Tensor = model(**{**batch.model_inputs(), "label_rows": None}).logits
    return found


def batch_of(processor: Any, modality: str) -> Any:
    made = [replace(sample, modality=modality) for sample in mixture()]
    encoded = [[(s.id, encode_sample(s, processor)) for s in row] for row in (made[:3], made[3:])]
    return collate(encoded, 3 * PATCH**2)


@torch.no_grad()
def test_what_was_learnt_before_stays_to_the_bit(seeing: Path, both: Path) -> None:
    before, old = load_exported(seeing / "stages" / "0-pretrain")
    after, processor = load_exported(both / "stages" / "0-finetune")
    assert old.image_processor.modalities == ["image"]
    assert processor.image_processor.modalities == after.route.modalities == ["image", "audio"]
    pictures, sounds = (batch_of(processor, name) for name in ("image", "audio"))
    assert pictures.modality_BT is None
    wanted = logits(before, batch_of(old, "image"))
    found = logits(after, pictures)
    assert same_bits(found, wanted)
    # Sounds are heard by what was trained on them: text before the first of them is as it was.
    heard = logits(after, sounds)
    assert not torch.equal(heard, wanted)
    shown = sounds.images_BT >= 0
    assert torch.equal(sounds.modality_BT, 2 * shown)
    first = (shown.cumsum(1) == 0) & (sounds.segments_BT == 0)
    assert first.any() and same_bits(heard[first], wanted[first])
    weights, others = after.state_dict(), before.state_dict()
    assert {name for name in weights if name not in others} == {
        name for name in weights if ".routed.audio." in name
    }
    assert all(torch.equal(weights[name], value) for name, value in others.items())
    moved = [value for name, value in weights.items() if "audio.lora_B" in name]
    assert moved and all(value.any() for value in moved)


def test_a_checkpoint_has_the_new_lora(both: Path) -> None:
    """It is in neither the model that training began with nor in what is merged."""
    model, processor = load_checkpoint(both / "checkpoints" / "step-0000003")
    wanted, _ = load_exported(both / "stages" / "0-finetune")
    found = model.state_dict()
    assert all(torch.equal(found[name], value) for name, value in wanted.state_dict().items())
    assert processor.image_processor.modalities == ["image", "audio"]


def test_a_batch_of_both(both: Path) -> None:
    """Each sample goes through its own, as it does in a batch of its own kind."""
    model, processor = load_exported(both / "stages" / "0-finetune")
    one = next(sample for sample in mixture() if len(sample.images) == 1)
    kinds = [replace(one, id=name, modality=name) for name in ("image", "audio")]
    mixed = collate([[(s.id, encode_sample(s, processor))] for s in kinds], 3 * PATCH**2)
    shown = mixed.images_BT >= 0
    assert torch.equal(mixed.modality_BT, torch.tensor([[1], [2]]) * shown)
    with torch.no_grad():
        together = logits(model, mixed)
        for i, sample in enumerate(kinds):
            alone = collate([[(sample.id, encode_sample(sample, processor))]] * 2, 3 * PATCH**2)
            assert same_bits(logits(model, alone)[i], together[i])


def test_answers_know_the_modality(both: Path, seeing: Path, rows: Path, tmp_path: Path) -> None:
    model, processor = load_exported(both / "stages" / "0-finetune")
    with torch.no_grad():  # an untrained model answers both alike: make the difference large
        for name, value in model.named_parameters():
            if "audio.lora_B" in name:
                value.normal_(generator=torch.Generator().manual_seed(1))
    sample = next(sample for sample in mixture() if len(sample.images) == 1)
    (asked, *_) = questions(replace(sample, modality="audio"))
    prompt = encode_question(asked, processor, blind=False)
    batch = processor.collate(
        [prompt, encode_question(replace(asked, modality="image"), processor, False)]
    )
    shown = batch["input_ids"] == processor.image_token_id
    assert torch.equal(batch["modality_ids"], torch.tensor([[2], [1]]) * shown)
    # transformers' entry points say the same.
    picture = sample.images[0].load()
    part = {"type": "image", "image": picture, "modality": "audio"}
    talk = [{"role": "user", "content": [part, {"type": "text", "text": "What?"}]}]
    chat = processor.apply_chat_template(talk, tokenize=True, return_dict=True)
    raw = processor(picture, "<|image_pad|>What?", modality="audio")
    for made in (chat, raw):
        assert torch.equal(
            made["modality_ids"], 2 * (made["input_ids"] == processor.image_token_id).long()
        )
    talk[0]["content"].append({"type": "image", "image": picture})  # type: ignore[attr-defined]
    with pytest.raises(ValueError, match="pictures of audio and of image"):
        processor.apply_chat_template(talk, tokenize=True)
    picture.save(tmp_path / "a.png")
    said = {
        name: Conversation(model, processor, [tmp_path / "a.png"], 8, name).ask("What?")
        for name in ("image", "audio")
    }
    assert said["image"] != said["audio"]
    with pytest.raises(DataError, match='has LoRA for image, audio, and none for "depth"'):
        Conversation(model, processor, [], 8, "depth")
    done = CliRunner().invoke(
        app, ["eval", str(both), "--task", str(rows), "--limit", "2", "--out", str(tmp_path / "e")]
    )
    assert done.exit_code == 0, done.output
    done = CliRunner().invoke(
        app, ["eval", str(seeing), "--task", str(rows), "--out", str(tmp_path / "f")]
    )
    assert done.exit_code == 2 and 'LoRA for image, and none for "audio"' in done.stderr
    assert len(done.stderr.splitlines()) == 1
    # Without its picture it is a question like any other.
    blind = encode_question(replace(asked, modality="depth"), processor, blind=True)
    assert (blind.modality, blind.told) == (0, False)


def test_a_merged_model_is_told_nothing(finished: Path) -> None:
    _, processor = load_exported(finished / "stages" / "1-finetune")
    assert processor.image_processor.modalities is None
    assert batch_of(processor, "audio").modality_BT is None


def test_mistakes(seeing: Path, rows: Path, tiny: Tiny, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="only routed LoRA tells modalities apart"):
        beside(seeing, rows, "model.lora.routed=false")
    with pytest.raises(RecipeError, match=r"model.lora: .*image.* has routed LoRA already"):
        train(beside(seeing, rows, "model.lora.modality=image"), tmp_path / "a", quiet=True)
    # Rows with pictures of a modality that the model has not are bad rows, named.
    only = override(
        beside(seeing, rows),
        ["model.lora=null", "stages.0.trainable={'llm.*.lora_?': null}", "stages.0.steps=9"],
    )
    with pytest.raises(DataError, match='has LoRA for image, and none for "audio"'):
        train(only, tmp_path / "b", quiet=True)
    bad = tmp_path / "rows.json"
    row = {
        "id": "x",
        "modality": 3,
        "conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}],
    }
    bad.write_text(json.dumps([row]))
    done = CliRunner().invoke(app, ["data", "check", str(bad)])
    assert done.exit_code == 1 and '"modality" is "3"; it must be a name' in done.output
