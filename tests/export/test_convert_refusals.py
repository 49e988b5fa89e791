"""What ``oculi convert vora`` refuses: in one line that names what is wrong, with nothing written."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from test_convert import GOLDEN, LLM, UP, WEIGHTS, copy, edit, edit_weights
from typer.testing import CliRunner

from oculi.cli import app
from oculi.errors import CheckpointError
from oculi.export.convert.config import with_biases
from oculi.export.convert.vora import convert_vora

__all__ = ["copy"]


def refusal(source: Path | str, tmp_path: Path, **arguments: Any) -> str:
    """The message; one line, and nothing is left behind."""
    out = tmp_path / "out"
    with pytest.raises(CheckpointError) as caught:
        convert_vora(str(source), out, **arguments)
    assert not out.exists() and not out.with_name("out.partial").exists()
    assert "\n" not in str(caught.value)
    return str(caught.value)


def lora_part(name: str) -> dict[str, Any]:
    return {f"{UP}.{name}.weight": torch.zeros(4, 32)}


CONFIG: dict[str, tuple[dict[str, Any], str]] = {
    "another kind": ({"model_type": "llava"}, 'has the model_type "llava"'),
    "no kind": ({"model_type": ...}, 'has the model_type "None"'),
    "ours": ({"model_type": "oculi"}, "is oculi's own already"),
    "no rope": ({"rope_parameters": ...}, "rope_theta and rope_parameters are missing"),
    "heads": ({"num_attention_heads": ...}, "num_attention_heads: Field required"),
    "key and value heads": ({"num_key_value_heads": "two"}, "num_key_value_heads"),
    "other heads": ({"num_attention_heads": 5}, "but its config.json makes it [30, 32]"),
    "activation": ({"hidden_act": "none"}, "describes no LLM that can be built"),
    "patches": ({"patch_size": 5}, "image_size 16 is no multiple of patch_size 5"),
    "embedding": ({"vision_embedding": "Other"}, "vision_embedding: Input should be"),
    "mask": ({"vision_attention_mask": "mutual"}, "vision_attention_mask: Input should be"),
    "lora": ({"lora": [1]}, "lora: "),
    "lora layers": ({"lora": {"layers": 9, "target_modules": []}}, "lora.layers is 9"),
    "target": ({"lora": {"layers": 1, "target_modules": ["mlp.x"]}}, 'names "mlp.x", which is no'),
    "many blocks": ({"num_hidden_layers": 10**9}, "num_hidden_layers is 1000000000"),
    "sliding window": (
        {"layer_types": ["sliding_attention"] * 3, "sliding_window": 4, "use_sliding_window": True},
        "sliding_attention",
    ),
}


@pytest.mark.parametrize("name", CONFIG)
def test_configuration(name: str, copy: Path, tmp_path: Path) -> None:
    changes, message = CONFIG[name]
    edit(copy, **changes)
    assert message in refusal(copy, tmp_path)


def test_no_json(copy: Path, tmp_path: Path) -> None:
    for text in ("{", "[]", "\xff"):
        (copy / "config.json").write_bytes(text.encode("latin-1"))
        assert "config.json cannot be loaded" in refusal(copy, tmp_path)
    assert "is no folder" in refusal(tmp_path / "none", tmp_path)


NORM = "llm.model.layers.1.input_layernorm.weight"
WRONG_TENSORS: dict[str, tuple[dict[str, Any], str]] = {
    "missing": ({NORM: None}, f"lacks 1 tensor that its config.json asks for, the first is {NORM}"),
    "vision": ({"vision_embedding.pos_embed": None}, "the first is vision_embedding.pos_embed"),
    "unknown": ({"extra\n": torch.zeros(1)}, 'the first is "extra\\n"'),
    "shape": ({NORM: torch.zeros(31)}, f"{NORM} is [31], but its config.json makes it [32]"),
    "quantised": ({NORM: torch.zeros(32, dtype=torch.int8)}, f"{NORM} is not stored as float32"),
    "merged, with LoRA": (lora_part("lora_A"), f'"{UP}.lora_A.weight": lora.r is -1 there'),
    "bias elsewhere": (
        {"llm.model.layers.2.mlp.up_proj.bias": torch.full((40,), -0.25)},
        '"llm.model.layers.2.mlp.up_proj.bias" (largest value 0.25): its lora block names no',
    ),
}


@pytest.mark.parametrize("name", WRONG_TENSORS)
def test_tensors(name: str, copy: Path, tmp_path: Path) -> None:
    changes, message = WRONG_TENSORS[name]
    edit_weights(copy, **changes)
    assert message in refusal(copy, tmp_path)


def test_a_shard_without_its_lora(tmp_path: Path) -> None:
    folder = Path(shutil.copytree(GOLDEN / "unmerged", tmp_path / "copy"))
    lora = json.loads((folder / "config.json").read_text())["lora"]
    edit(folder, lora={**lora, "r": 5})
    assert "lora_A.weight is [4, 32], but its config.json makes it [5, 32]" in refusal(
        folder, tmp_path, llm=LLM
    )
    edit(folder, lora={})
    assert "it has no lora there" in refusal(folder, tmp_path, llm=LLM)
    (folder / "model-00002-of-00003.safetensors").unlink()
    assert "model-00002-of-00003.safetensors is missing" in refusal(folder, tmp_path, llm=LLM)


def test_an_index_that_is_wrong(copy: Path, tmp_path: Path) -> None:
    index = copy / "model.safetensors.index.json"
    for places in (["x"], {"x": "../merged/model.safetensors"}, {"x": "/etc/passwd"}, {"x": 1}):
        index.write_text(json.dumps({"weight_map": places}))
        assert "weight_map does not map tensors to files beside it" in refusal(copy, tmp_path)
    index.write_text(json.dumps({"weight_map": {"gone": WEIGHTS}}))
    assert '1 tensors of its index are in no shard, the first is "gone"' in refusal(copy, tmp_path)
    shutil.copy(copy / WEIGHTS, copy / "b.safetensors")
    index.write_text(json.dumps({"weight_map": {"a": WEIGHTS, "b": "b.safetensors"}}))
    assert "which another shard holds too" in refusal(copy, tmp_path)


def test_damage(copy: Path, tmp_path: Path) -> None:
    whole = (copy / WEIGHTS).read_bytes()
    for data in (whole[:-9], b"", b"\xff" * 64):
        (copy / WEIGHTS).write_bytes(data)
        assert f"{copy / WEIGHTS} cannot be loaded" in refusal(copy, tmp_path)
    (copy / WEIGHTS).unlink()
    assert "has no model.safetensors and no pytorch_model.bin" in refusal(copy, tmp_path)


class Trap:
    """Unpickled, it runs code."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return Path.write_text, (self.mark, "was run")


def test_a_pickle_is_not_run(copy: Path, tmp_path: Path) -> None:
    weights = load_file(copy / WEIGHTS)
    (copy / WEIGHTS).unlink()
    file, mark = copy / "pytorch_model.bin", tmp_path / "mark"
    torch.save({**weights, "x": Trap(mark)}, file)
    assert f"{file} is damaged or holds more than tensors" in refusal(copy, tmp_path)
    assert not mark.exists()
    torch.save({"module": weights}, file)
    assert "does not hold tensors by name" in refusal(copy, tmp_path)
    file.write_bytes(file.read_bytes()[:500])
    assert str(file) in refusal(copy, tmp_path)


def test_a_folder_in_the_way_is_seen_first(tmp_path: Path) -> None:
    """Before anything is read: the source does not even exist."""
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(CheckpointError, match="choose another"):
        convert_vora(str(tmp_path / "none"), tmp_path)
    done = CliRunner().invoke(app, ["convert", "vora", "none", "--out", str(tmp_path)])
    assert done.exit_code == 2 and "choose another" in done.stderr and done.stderr.count("\n") == 1


def test_a_tokenizer_that_is_missing_or_of_another_llm(copy: Path, tmp_path: Path) -> None:
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (copy / name).unlink()
    message = refusal(copy, tmp_path)
    assert "the LLM that its config.json names cannot be had (llm is no folder" in message
    assert message.endswith("name it with --llm")
    edit(copy, llm="")
    assert "has no tokenizer: name its LLM with --llm" in refusal(copy, tmp_path)
    message = refusal(copy, tmp_path, llm="testbed:llm")
    assert "the tokenizer of testbed:llm has" in message and "of another LLM" in message
    # Where the folder that config.json names is here, nothing need be said.
    edit(copy, llm=LLM)
    assert convert_vora(str(copy), tmp_path / "fine").biases == 8


def test_generation_settings_that_cannot_be_used(copy: Path, tmp_path: Path) -> None:
    for text in ("{", json.dumps({"do_sample": False, "temperature": 0.5})):
        (copy / "generation_config.json").write_text(text)
        assert "cannot be loaded" in refusal(copy, tmp_path)


@pytest.mark.parametrize("template", ["{% for %}", "nothing of the messages", 7])
def test_a_chat_template_that_cannot_be_used(template: Any, copy: Path, tmp_path: Path) -> None:
    (copy / "chat_template.json").write_text(json.dumps({"chat_template": template}))
    assert "chat" in refusal(copy, tmp_path)


@pytest.mark.parametrize("value", [[1, 2], ["a", "b", "c"], 3, [0.5, 0.5, 0]])
def test_a_deviation_that_cannot_be_used(value: Any, copy: Path, tmp_path: Path) -> None:
    (copy / "preprocessor_config.json").write_text(json.dumps({"image_std": value}))
    assert "image_std is no list of three numbers that can be used" in refusal(copy, tmp_path)


def test_biases_that_the_llm_has_no_place_for(copy: Path, tmp_path: Path) -> None:
    lora = json.loads((copy / "config.json").read_text())["lora"]
    edit(copy, lora={**lora, "layers": "all"})  # so that a Mistral's q, k and v may have biases
    other = Path(shutil.copytree(LLM, tmp_path / "other"))
    (other / "config.json").write_text('{"model_type": "mistral"}')
    message = refusal(copy, tmp_path, llm=str(other))
    assert "is a bias that its LoRA layer left on a linear without one" in message
    assert ".bias (largest value 1." in message and "the class of mistral has no place" in message


def test_only_families_that_compute_as_llama_does(make_llm_config: Callable[..., Any]) -> None:
    for family in ("qwen2", "llama"):
        biased = with_biases(make_llm_config(family, rope_theta=123.0))
        assert biased.attention_bias and biased.mlp_bias and biased.model_type == "llama"
        assert biased.rope_parameters["rope_theta"] == 123.0 and biased.num_key_value_heads == 2
    with pytest.raises(ValueError, match="olmo2"):
        with_biases(make_llm_config("olmo2"))
