"""Checkpoints: whole or not there, every kind of damage named, and only on the base they belong to."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from helpers import Tiny, tiny_recipe
from oculi.errors import CheckpointError
from oculi.training import checkpoint as ckpt
from oculi.training.build import add_lora, build_model, build_processor
from oculi.training.optim import Optimizers

STATE = ckpt.State(
    stage=1, step=4, total_steps=7, lora=True, base="b", base_tensors={"w": "0"}, seconds=1.5
)


def tensors() -> dict[str, Tensor]:
    torch.manual_seed(0)
    # Not contiguous, shared storage, half precision, empty.
    wide = torch.randn(6, 4)
    return {"a": wide.T, "b": wide[:2], "c": torch.randn(3).bfloat16(), "d": torch.zeros(0, 3)}


def optimizer(steps: int = 1) -> Optimizers:
    torch.manual_seed(0)
    weight = nn.Parameter(torch.randn(3))
    made = torch.optim.AdamW([{"params": [weight], "base_lr": 0.1}], lr=0.1)
    for _ in range(steps):
        weight.grad = torch.randn(3)
        made.step()
    return Optimizers([made])


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    return ckpt.save(tmp_path / "checkpoints", STATE, tensors(), optimizer().state_dict())


def test_what_is_saved_comes_back(saved: Path) -> None:
    assert saved.name == "step-0000007"
    state, found = ckpt.load(saved)
    assert state == STATE == ckpt.load_state(saved)
    wanted = tensors()
    assert found.keys() == wanted.keys()
    assert all(torch.equal(found[k], v) and found[k].dtype == v.dtype for k, v in wanted.items())
    again = optimizer(0)
    ckpt.load_optimizer(saved, again)
    found_state, wanted_state = (o.parts[0].state_dict()["state"][0] for o in (again, optimizer()))
    assert all(torch.equal(found_state[k], v) for k, v in wanted_state.items())
    assert again.param_groups[0]["base_lr"] == 0.1


FILES = ["tensors.safetensors", "optimizer.pt", "state.json"]


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("where", [0.0, 0.5, 0.999])
def test_a_flipped_bit_is_found_and_the_file_named(saved: Path, name: str, where: float) -> None:
    file = saved / name
    data = bytearray(file.read_bytes())
    data[int(where * len(data))] ^= 4
    file.write_bytes(data)
    with pytest.raises(CheckpointError, match=f"{name} is damaged") as caught:
        ckpt.load(saved)
    assert f"remove {saved}" in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("name", FILES)
def test_truncation_and_loss_are_found(saved: Path, name: str) -> None:
    whole = (saved / name).read_bytes()
    for data in (whole[:-1], b"", whole + b"\0"):
        (saved / name).write_bytes(data)
        with pytest.raises(CheckpointError, match=f"{name} is damaged"):
            ckpt.load(saved)
    (saved / name).unlink()
    with pytest.raises(CheckpointError, match=f"{name} is missing"):
        ckpt.load(saved)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        "{}",
        '{"files": []}',
        '{"files": {"state.json": 5}}',
        '{"files": null}',
        "\xff",
    ],
)
def test_a_damaged_manifest(saved: Path, text: str) -> None:
    (saved / ckpt.MANIFEST).write_bytes(text.encode("latin-1"))
    with pytest.raises(CheckpointError, match=ckpt.MANIFEST) as caught:
        ckpt.load(saved)
    assert "\n" not in str(caught.value)


def test_every_bit_of_the_manifest_counts(saved: Path) -> None:
    file = saved / ckpt.MANIFEST
    whole = file.read_bytes()
    for place in range(len(whole)):
        data = bytearray(whole)
        data[place] ^= 1 << place % 8
        file.write_bytes(data)
        assert ckpt.problem(saved) is not None, f"bit {place % 8} of byte {place}"
    for end in range(len(whole)):
        file.write_bytes(whole[:end])
        assert ckpt.problem(saved) is not None, end


def old_manifest(saved: Path, leave_out: str = "") -> None:
    """Rewrite the manifest as the first version wrote it, without a sum of its own."""
    files = json.loads((saved / ckpt.MANIFEST).read_text())["files"]
    files.pop(leave_out, None)
    (saved / ckpt.MANIFEST).write_text(json.dumps({"files": files}, indent=1))


def test_a_checkpoint_of_the_first_version_is_still_read(saved: Path) -> None:
    old_manifest(saved)
    old = json.loads((saved / "state.json").read_text())
    assert ckpt.load(saved)[0] == STATE
    del old["monitor"]  # it was not there then
    (saved / "state.json").write_text(json.dumps(old))
    assert ckpt.load_state(saved) == STATE


def test_a_manifest_that_leaves_a_file_out(saved: Path) -> None:
    old_manifest(saved, leave_out="tensors.safetensors")
    with pytest.raises(CheckpointError, match=r"does not list tensors\.safetensors"):
        ckpt.load(saved)


def test_the_newest_is_the_highest_whole_one(tmp_path: Path) -> None:
    folder = tmp_path / "checkpoints"
    assert ckpt.newest(folder) is None
    for name in ("step-9", "step-0000010", "step-0000200.partial", "step-x", "step-", "others"):
        (folder / name).mkdir(parents=True)
    assert ckpt.newest(folder) == folder / "step-0000010"


def test_a_kill_while_saving_leaves_the_one_before(
    saved: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(*arguments: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(torch, "save", killed)
        with pytest.raises(KeyboardInterrupt):
            ckpt.save(saved.parent, STATE, tensors(), optimizer().state_dict())
    assert (saved.parent / "step-0000007.partial").is_dir()
    assert ckpt.newest(saved.parent) == saved and ckpt.load(saved)[0] == STATE
    ckpt.save(saved.parent, STATE, {"new": torch.ones(1)}, optimizer().state_dict())  # over both
    assert list(ckpt.load(saved)[1]) == ["new"]
    assert [path.name for path in saved.parent.iterdir()] == ["step-0000007"]


def test_no_code_of_a_checkpoint_is_run(saved: Path) -> None:
    class Evil:
        def __reduce__(self) -> Any:
            return (print, ("run",))

    torch.save(Evil(), saved / "optimizer.pt")
    with pytest.raises(Exception, match=r"weights_only|Weights only"):
        ckpt.load_optimizer(saved, optimizer(0))


def test_restoring_fits_by_name_and_shape(tmp_path: Path) -> None:
    target = {"a": nn.Parameter(torch.zeros(2, 2)), "h": nn.Parameter(torch.zeros(2).bfloat16())}
    ckpt.restore(target, {"a": torch.ones(2, 2), "h": torch.tensor([0.1, 0.2])}, tmp_path)
    assert target["a"].sum() == 4
    assert torch.equal(target["h"], torch.tensor([0.1, 0.2]))  # trained in float32, kept so
    for wrong, said in (
        ({"b": torch.ones(1)}, "no such parameter"),
        ({"a": torch.ones(4)}, r"shape \(2, 2\)"),
    ):
        with pytest.raises(CheckpointError, match=said) as caught:
            ckpt.restore(target, wrong, tmp_path)
        assert next(iter(wrong)) in str(caught.value)


# --------------------------------------------------------------------------------------- the base


@pytest.fixture
def llm(tiny: Tiny) -> Any:
    spec = tiny_recipe(tiny).model
    return build_model(spec, build_processor(spec), 0).llm


def test_hashes_see_every_bit_of_every_tensor(llm: Any) -> None:
    before = ckpt.tensor_hashes(llm)
    assert len(before) == len(list(llm.parameters()))
    name = "model.layers.1.mlp.up_proj.weight"
    with torch.no_grad():
        llm.get_parameter(name).view(torch.int32)[3, 4] ^= 1
    after = ckpt.tensor_hashes(llm)
    assert [key for key in before if before[key] != after[key]] == [name]
    with pytest.raises(CheckpointError, match=f"{name} differs") as caught:
        ckpt.check_base(after, before, "somewhere/llm")
    assert "somewhere/llm" in str(caught.value) and "--base" in str(caught.value)


def test_hashes_know_dtype_shape_and_missing_tensors(llm: Any) -> None:
    before = ckpt.tensor_hashes(llm)
    assert ckpt.tensor_hashes(llm.bfloat16()) != before
    less = dict(list(before.items())[1:])
    for found, expected in ((less, before), (before, less)):
        with pytest.raises(CheckpointError, match=next(iter(before)).replace(".", r"\.")):
            ckpt.check_base(found, expected, "b")
    ckpt.check_base(before, dict(reversed(before.items())), "b")


def test_hashes_are_those_of_the_llm_below_its_lora(llm: Any, tiny: Tiny) -> None:
    before = ckpt.tensor_hashes(llm)
    spec = tiny_recipe(tiny).model
    model = build_model(spec, build_processor(spec), 0)
    add_lora(model, spec, 0)
    assert ckpt.tensor_hashes(model.llm) == before


def test_a_moved_run_finds_its_stages(tmp_path: Path) -> None:
    stage = tmp_path / "run" / "stages" / "0-a"
    stage.mkdir(parents=True)
    (stage / "config.json").write_text("{}")
    shutil.move(tmp_path / "run", tmp_path / "moved")
    found = ckpt.stage_folder(tmp_path / "moved", "stages/0-a", "llm")
    assert found == tmp_path / "moved" / "stages" / "0-a"
