"""``oculi convert vora`` against checkpoints and logits of the released code: tests/golden/README.md."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor
from typer.testing import CliRunner

import oculi
from oculi.cli import app
from oculi.errors import CheckpointError
from oculi.export.convert.vora import Conversion, convert_vora

GOLDEN = Path(__file__).parents[1] / "golden" / "vora_checkpoint"
NUMBERS = load_file(GOLDEN / "logits.safetensors")
SIDE, EVERY = 4, 3
UP = "llm.model.layers.0.mlp.up_proj"
CHANGED = ("self_attn.o_proj", "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj")
WEIGHTS = "model.safetensors"
LLM = str(GOLDEN / "llm")  # tokenizer and configuration; no weights


@pytest.fixture(scope="module")
def merged(tmp_path_factory: pytest.TempPathFactory) -> Conversion:
    """The merged checkpoint as it is stored, in bfloat16."""
    return convert_vora(str(GOLDEN / "merged"), tmp_path_factory.mktemp("merged") / "out")


@pytest.fixture(scope="module")
def unmerged(tmp_path_factory: pytest.TempPathFactory) -> Conversion:
    """The one with LoRA, in three shards and without a tokenizer."""
    out = tmp_path_factory.mktemp("unmerged") / "out"
    return convert_vora(str(GOLDEN / "unmerged"), out, llm=LLM)


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """The merged checkpoint, to change."""
    return Path(shutil.copytree(GOLDEN / "merged", tmp_path / "copy"))


def edit(folder: Path, **changes: Any) -> None:
    """Keys of its configuration; an ellipsis removes one."""
    file = folder / "config.json"
    data = {**json.loads(file.read_text()), **changes}
    file.write_text(json.dumps({k: v for k, v in data.items() if v is not ...}))


def edit_weights(folder: Path, **changes: Tensor | None) -> None:
    """Tensors by name, with ``__`` for a dot; None removes one."""
    weights = {
        **load_file(folder / WEIGHTS),
        **{k.replace("__", "."): v for k, v in changes.items()},
    }
    save_file({k: v for k, v in weights.items() if v is not None}, folder / WEIGHTS)


def model_inputs(row: int, image_token_id: int) -> dict[str, Tensor]:
    """A golden row for our ``forward``: ids expanded, pictures cut by other code than the package's."""
    ids, patches, grids = [], [], []
    pictures = sorted(name for name in NUMBERS if name.startswith(f"input.{row}.image."))
    for token in NUMBERS[f"input.{row}.tokens"].tolist():
        if token >= 0:
            ids.append(token)
            continue
        picture = NUMBERS[pictures[len(grids)]].float()
        cut = torch.nn.functional.unfold(picture[None], SIDE, stride=SIDE)[0].T
        ids += [image_token_id] * len(cut)
        patches.append(cut.to(torch.uint8))
        grids.append([picture.shape[1] // SIDE, picture.shape[2] // SIDE])
    inputs = {"input_ids": torch.tensor([ids])}
    if patches:
        inputs |= {"pixel_values": torch.cat(patches), "image_grids": torch.tensor(grids)}
    return inputs


@torch.no_grad()
def logits(folder: Path, row: int) -> Tensor:
    model, processor = oculi.load(folder)
    # Buffers as well, which are float32 already: the released code computed in float32.
    found = model.float()(**model_inputs(row, processor.image_token_id)).logits[0]
    return found[::EVERY]


@pytest.mark.parametrize("row", range(4), ids=["image", "two images", "larger image", "text"])
@pytest.mark.parametrize("name", ["merged", "unmerged"])
def test_logits_are_those_of_the_released_code(
    name: str, row: int, merged: Conversion, unmerged: Conversion
) -> None:
    expected = NUMBERS[f"{name}.{row}.logits"]
    found = logits({"merged": merged, "unmerged": unmerged}[name].out, row)
    assert found.shape == expected.shape and expected.std() > 1
    assert (found - expected).abs().max() < 2e-5 * expected.abs().max()


def test_what_is_stored_is_kept_to_the_bit(merged: Conversion) -> None:
    theirs, ours = load_file(GOLDEN / "merged" / WEIGHTS), load_file(merged.out / WEIGHTS)
    assert {value.dtype for value in ours.values()} == {torch.bfloat16}
    for name, value in theirs.items():
        if name.startswith("llm."):
            assert torch.equal(ours.pop(name), value), name
    for linear in CHANGED:  # the class has a bias there as well, where no LoRA layer was
        assert not ours.pop(f"llm.model.layers.2.{linear}.bias").any()
    assert {name.split(".")[0] for name in ours} == {"vision"} and len(ours) == 5


def test_the_biases_are_there_and_matter(merged: Conversion, copy: Path, tmp_path: Path) -> None:
    config = json.loads((merged.out / "config.json").read_text())["text_config"]
    assert config["model_type"] == "llama" and config["attention_bias"] and config["mlp_bias"]
    assert merged.biases == 8 and merged.largest[1].endswith(".bias")
    zero = {f"llm.model.layers.{b}.{n}.bias": 0 for b in range(2) for n in CHANGED}
    stored = load_file(copy / WEIGHTS)
    edit_weights(copy, **{name: torch.zeros_like(stored[name]) for name in zero})
    plain = convert_vora(str(copy), tmp_path / "plain")
    assert plain.model_type == "qwen2" and plain.largest[0] == 0
    assert not zero.keys() & load_file(plain.out / WEIGHTS).keys()
    assert any("dropped 8" in line and "all zero" in line for line in plain.lines())
    expected = NUMBERS["merged.0.logits"]
    assert (logits(plain.out, 0) - expected).abs().max() > 0.1 * expected.abs().max()


def test_llama_with_biases_computes_what_qwen2_computes(
    merged: Conversion, copy: Path, tmp_path: Path
) -> None:
    """To the bit, where the biases are gone from both."""
    stored = load_file(copy / WEIGHTS)
    names = [f"llm.model.layers.{b}.{n}.bias" for b in range(2) for n in CHANGED]
    edit_weights(copy, **dict.fromkeys(names))
    plain = convert_vora(str(copy), tmp_path / "plain")
    assert plain.model_type == "qwen2" and plain.biases == 0
    llama = Path(shutil.copytree(merged.out, tmp_path / "llama"))
    edit_weights(llama, **{name: torch.zeros_like(stored[name]) for name in names})
    assert torch.equal(logits(plain.out, 0), logits(llama, 0))


def test_lora_is_folded_and_the_teacher_left_out(unmerged: Conversion) -> None:
    assert unmerged.folded == 14 and unmerged.left_out > 10 and unmerged.dtype == torch.float32
    ours = load_file(unmerged.out / WEIGHTS)
    theirs: dict[str, Tensor] = {}
    for shard in (GOLDEN / "unmerged").glob("*.safetensors"):
        theirs |= load_file(shard)
    a, b = (theirs[f"{UP}.lora_{part}.weight"] for part in "AB")
    assert torch.allclose(ours[f"{UP}.weight"], theirs[f"{UP}.weight"] + b @ a, atol=1e-6)
    assert not [name for name in ours if "lora" in name or "aux" in name]


def test_shards_and_bin_files_give_the_same(merged: Conversion, copy: Path, tmp_path: Path) -> None:
    weights = load_file(copy / WEIGHTS)
    (copy / WEIGHTS).unlink()
    halves = sorted(weights)[::2], sorted(weights)[1::2]
    for i, part in enumerate(halves):
        torch.save({name: weights[name] for name in part}, copy / f"pytorch_model-{i}.bin")
    places = {name: f"pytorch_model-{i}.bin" for i, part in enumerate(halves) for name in part}
    (copy / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": places}))
    found = convert_vora(str(copy), tmp_path / "out").out / WEIGHTS
    assert found.read_bytes() == (merged.out / WEIGHTS).read_bytes()


def test_dtype_is_the_widest_that_is_stored_or_the_one_asked_for(
    copy: Path, tmp_path: Path
) -> None:
    position = load_file(copy / WEIGHTS)["vision_embedding.pos_embed"]
    edit_weights(copy, vision_embedding__pos_embed=position.half())  # beside bfloat16
    assert convert_vora(str(copy), tmp_path / "wide").dtype == torch.float32
    narrow = convert_vora(str(copy), tmp_path / "narrow", dtype="bfloat16")
    assert {v.dtype for v in load_file(narrow.out / WEIGHTS).values()} == {torch.bfloat16}


def test_configurations_of_transformers_4(merged: Conversion, copy: Path, tmp_path: Path) -> None:
    """It writes the rotary base flat, and leaves keys out that have the base class's value."""
    edit(copy, rope_parameters=..., rope_theta=5000.0, layer_types=..., torch_dtype="bfloat16")
    found = convert_vora(str(copy), tmp_path / "out").out
    assert torch.equal(logits(found, 0), logits(merged.out, 0))


def test_a_head_that_is_the_embedding(copy: Path, tmp_path: Path) -> None:
    edit_weights(copy, llm__lm_head__weight=None)
    with pytest.raises(CheckpointError, match=r"lacks 1 tensor .* llm\.lm_head\.weight"):
        convert_vora(str(copy), tmp_path / "out")
    edit(copy, tie_word_embeddings=...)
    model, _ = oculi.load(convert_vora(str(copy), tmp_path / "out").out)
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight
    edit(copy, tie_word_embeddings=True)
    edit_weights(copy, llm__lm_head__weight=torch.zeros(264, 32))
    with pytest.raises(CheckpointError, match="tie_word_embeddings"):
        convert_vora(str(copy), tmp_path / "other")


def test_causal_attention_and_pictures_as_in_the_release(copy: Path, tmp_path: Path) -> None:
    edit(copy, vision_attention_mask="default")
    settings = {"do_sample": True, "repetition_penalty": 1.05, "eos_token_id": [0]}
    (copy / "generation_config.json").write_text(json.dumps(settings))
    model, processor = oculi.load(convert_vora(str(copy), tmp_path / "out").out)
    assert model.config.image_attention == "causal"
    assert model.generation_config.repetition_penalty == 1.05
    assert model.generation_config.eos_token_id == [
        2
    ]  # <|im_end|>, which ends the template's turns
    assert model.config.vision_config["image_mean"] == [0.5, 0.4, 0.3]
    patches, grid = processor.image_processor.patches(Image.new("RGB", (32, 16), (255, 255, 255)))
    assert grid == (4, 4)
    pixels = patches.reshape(4, 4, 3, 4, 4).transpose(2, 0, 3, 1, 4).reshape(3, 16, 16)
    assert not pixels[:, 0].any() and not pixels[:, -1].any()  # black, not the mean colour
    assert (pixels[:, 5:11] > 200).all()


def test_the_command_and_what_it_made(copy: Path, tmp_path: Path) -> None:
    """Said, and accepted by ``chat``; the folder's own template is used, its code is not."""
    (copy / "configuration_vora.py").write_text("raise SystemExit('code of the folder was run')")
    out = tmp_path / "out"
    done = CliRunner().invoke(app, ["convert", "vora", str(copy), "--out", str(out)])
    assert done.exit_code == 0, done.output
    assert "kept 8 of linears" in done.stdout and "written as llama" in done.stdout
    assert "16 x 16 pixels" in done.stdout and "preprocessor_config.json says 8" in done.stdout
    Image.new("RGB", (20, 10)).save(tmp_path / "picture.png")
    picture = ["--image", str(tmp_path / "picture.png")]
    chat = CliRunner().invoke(app, ["chat", str(out), *picture, "what?", "--max-new-tokens", "2"])
    assert chat.exit_code == 0, chat.output
    _, processor = oculi.load(out)
    ids = processor.encode([("user", ["what?"])], add_generation_prompt=True).input_ids
    expected = "<|im_start|>system\nGolden.<|im_end|>\n<|im_start|>user\nwhat?<|im_end|>\n"
    assert processor.tokenizer.decode(ids) == expected + "<|im_start|>assistant\n"


def test_without_a_template_the_one_of_the_released_training(unmerged: Conversion) -> None:
    model, processor = oculi.load(unmerged.out)
    ids = processor.encode([("user", ["?"])]).input_ids
    system = "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
    assert processor.tokenizer.decode(ids).startswith(system)
    assert 2 in model.generation_config.eos_token_id  # <|im_end|>
