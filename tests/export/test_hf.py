"""The exported folder: complete, readable by transformers, and there only when it is whole."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

import oculi
from helpers import Drawn
from oculi.errors import CheckpointError
from oculi.export import hf
from oculi.export.hf import export
from oculi.model.lora import inject_lora


@pytest.fixture
def loaded(finished: Path) -> tuple[Any, Any]:
    return oculi.load(finished)


def test_everything_is_in_the_folder(finished: Path) -> None:
    folder = finished / "stages" / "1-finetune"
    names = {path.name for path in folder.iterdir()}
    assert {
        "config.json", "generation_config.json", "model.safetensors", "README.md", "tokenizer.json",
        "modeling_oculi.py", "configuration_oculi.py", "processing_oculi.py", "masks_oculi.py",
        "image_processing_oculi.py", "patch_embed_oculi.py", "chat_oculi.py",
    } <= names  # fmt: skip
    assert "lora.py" not in names
    config = json.loads((folder / "config.json").read_text())
    assert config["architectures"] == ["OculiForConditionalGeneration"]
    assert config["auto_map"]["AutoModelForImageTextToText"].startswith("modeling_oculi.")
    card = (folder / "README.md").read_text()
    assert "tiny, after finetune" in card and "{" not in card.replace("{{", "").split("```")[0]
    assert card.startswith("---\nlibrary_name: transformers")


def test_transformers_classes_open_it(finished: Path, loaded: tuple[Any, Any]) -> None:
    from transformers import AutoModelForImageTextToText, AutoProcessor

    folder = finished / "stages" / "1-finetune"
    model = AutoModelForImageTextToText.from_pretrained(folder)
    processor = AutoProcessor.from_pretrained(folder)
    picture, text = Drawn(12, 8).load(), "<|im_start|>user\n<|image_pad|>what?<|im_end|>\n"
    ours, inputs = loaded[0], processor(images=picture, text=text)
    wanted = loaded[1](images=picture, text=text)
    assert torch.equal(inputs["input_ids"], wanted["input_ids"])
    with torch.no_grad():
        assert torch.equal(model(**inputs).logits, ours(**wanted).logits)


def test_export_of_what_was_loaded_is_the_same(loaded: tuple[Any, Any], tmp_path: Path) -> None:
    out = export(*loaded, tmp_path / "deep" / "out", "a name", "a summary", max_shard_size="40KB")
    assert len(list(out.glob("*.safetensors"))) > 1
    again, _ = oculi.load(out)
    for name, value in loaded[0].state_dict().items():
        assert torch.equal(again.state_dict()[name], value)
    assert "a summary" in (out / "README.md").read_text()


def test_lora_is_refused(loaded: tuple[Any, Any], tmp_path: Path) -> None:
    inject_lora(loaded[0].llm, 2, 1, ("q_proj",))
    with pytest.raises(CheckpointError, match="still has LoRA"):
        export(*loaded, tmp_path / "out", "n", "s")
    assert not list(tmp_path.iterdir())


def test_a_folder_with_something_in_it_is_refused(loaded: tuple[Any, Any], tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    for out in (tmp_path, tmp_path / "mine.txt"):
        with pytest.raises(CheckpointError, match="choose another") as caught:
            export(*loaded, out, "n", "s")
        assert "\n" not in str(caught.value)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]
    (tmp_path / "empty").mkdir()
    assert (export(*loaded, tmp_path / "empty", "n", "s") / "config.json").exists()


def test_it_appears_only_when_it_is_whole(
    loaded: tuple[Any, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    with monkeypatch.context() as patch:
        patch.setattr(hf, "CARD", "{no such field}")
        with pytest.raises(KeyError):
            export(*loaded, out, "n", "s")
    assert not out.exists() and (tmp_path / "out.partial").is_dir()
    (tmp_path / "out.partial" / "stale.txt").write_text("of the first attempt")
    export(*loaded, out, "n", "s")
    assert not (tmp_path / "out.partial").exists() and not (out / "stale.txt").exists()


def test_a_summary_may_hold_anything(loaded: tuple[Any, Any], tmp_path: Path) -> None:
    out = export(*loaded, tmp_path / "out", "{name}", "100 % {of} it")
    card = (out / "README.md").read_text()
    assert "# {name}" in card and "100 % {of} it" in card
