"""What ``oculi export`` refuses, and what it writes for transformers."""

from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

import oculi
from helpers import make_tower
from oculi.cli import app
from oculi.errors import CheckpointError
from oculi.export.onnx.graphs import Past, check_exportable
from oculi.export.onnx.write import export_onnx
from oculi.model.lora import inject_lora


def refused(model: Any, processor: Any, out: Path, said: str) -> None:
    with pytest.raises(CheckpointError, match=said) as caught:
        export_onnx(model, processor, out, "name")
    assert "\n" not in str(caught.value) and not out.exists()


def test_lora_is_refused(make_model: Any, make_processor: Any, tmp_path: Path) -> None:
    model = make_model()
    model.add_routed_lora("image", 2, 2, ("q_proj",))
    refused(model, make_processor(), tmp_path / "out", "routed LoRA has no graph")
    model = make_model()
    inject_lora(model.llm, 2, 1, ("q_proj",))
    refused(model, make_processor(), tmp_path / "out", "still has LoRA")


def test_parts_without_a_graph_are_refused(
    make_model: Any, make_processor: Any, tmp_path: Path
) -> None:
    def vision(family: str, patch: int) -> dict[str, Any]:
        tower = make_tower(family).config.to_dict()
        return {"kind": "tower", "tower": tower, "patch_size": patch, "layer": -2}

    out = tmp_path / "out"
    refused(make_model(vision=vision("siglip2", 8)), make_processor(), out, "are not its own")
    refused(make_model(vision=vision("clip", 8)), make_processor(), out, "larger than its own")
    rope = {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}
    refused(make_model(rope_parameters=rope), make_processor(), out, "of the type dynamic")
    compress = {"kind": "conv", "patches": 16, "tokens": 4}
    for family in ("clip", "siglip2"):  # what is left is taken
        check_exportable(
            make_model(vision=vision(family, 4), compress=compress, fusion={"kind": "cross"})
        )


def test_a_folder_in_the_way_is_refused(
    make_model: Any, make_processor: Any, tmp_path: Path
) -> None:
    (tmp_path / "mine").write_text("mine")
    with pytest.raises(CheckpointError, match="choose another"):
        export_onnx(make_model(), make_processor(), tmp_path, "name")


def test_the_past_is_joined_to_what_is_new() -> None:
    states = [torch.full((1, 2, 3, 4), float(i)) for i in range(4)]
    past = Past(states)
    new = torch.ones(1, 2, 5, 4)
    key, value = past.update(new * 7, new * 8, 1)
    assert past.get_seq_length() == 3 and list(past.present) == [1]
    assert torch.equal(key, torch.cat([states[2], new * 7], 2))
    assert torch.equal(value, torch.cat([states[3], new * 8], 2))


def test_a_run_as_a_hugging_face_folder(finished: Path, tmp_path: Path) -> None:
    out = tmp_path / "hf"
    result = CliRunner().invoke(app, ["export", str(finished), "--to", "hf", "--out", str(out)])
    assert result.exit_code == 0, result.output
    again, _ = oculi.load(out)
    model, _ = oculi.load(finished)
    found, wanted = again.state_dict(), model.state_dict()
    assert all(torch.equal(found[name], value) for name, value in wanted.items())


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--to", "hf", "--int8"], "--int8 is for --to onnx"),
        (["--to", "onnx"], "is no folder"),
    ],
)
def test_mistakes_are_one_line(arguments: list[str], said: str, tmp_path: Path) -> None:
    words = ["export", str(tmp_path / "none"), *arguments, "--out", str(tmp_path / "out")]
    result = CliRunner().invoke(app, words)
    assert result.exit_code == 2 and said in result.output
    assert result.output.count("\n") == 1
