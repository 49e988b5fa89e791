"""The step: golden losses, learning, and stopping before a broken update."""

import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from helpers import Tiny, mixture, tiny_recipe
from oculi.training.log import RunLog
from oculi.training.loop import NonFiniteError, run_stage
from trainer import CPU, Trainer, bits

GOLDEN = Path(__file__).parents[1] / "golden" / "losses_tiny.json"
COMMAND = "OCULI_WRITE_GOLDEN=1 pytest tests/training/test_loop.py -k golden"


def test_golden_losses(tiny: Tiny) -> None:
    """Five steps of pre-training in float32. A difference means that training does something else
    than it did; the tolerance is for other processors' order of sums."""
    changes = {"stages.0.steps": 5, "stages.0.lr": 1e-3, "stages.0.pack_length": 90}
    trainer = Trainer(tiny_recipe(tiny, **changes))
    found = []
    for number in range(5):
        result = trainer.step(number)
        values = {name: float(value) for name, value in result.losses.items()}
        found.append({**values, "grad_norm": float(result.grad_norm)})
    if os.environ.get("OCULI_WRITE_GOLDEN"):
        golden = {"command": COMMAND, "torch": torch.__version__, "steps": found}
        GOLDEN.write_text(json.dumps(golden, indent=1) + "\n")
    for wanted, step in zip(json.loads(GOLDEN.read_text())["steps"], found, strict=True):
        assert step.pop("grad_norm") == pytest.approx(wanted.pop("grad_norm"), rel=1e-5)
        assert step == pytest.approx(wanted, rel=1e-6, abs=1e-6)


def test_it_learns_what_it_is_shown(tiny: Tiny) -> None:
    changes = {
        "stages.0.steps": 40, "stages.0.batch": 6, "stages.0.schedule": "constant",
        "stages.0.trainable": {"*": None}, "stages.0.lr": 5e-3,
    }  # fmt: skip
    trainer = Trainer(tiny_recipe(tiny, **changes))
    first = trainer.step(0)
    for number in range(1, 40):
        last = trainer.step(number)
    assert last.losses["lm"] < 0.2 * first.losses["lm"]
    assert last.losses["distill"] < 0.7 * first.losses["distill"]
    assert abs(float(first.loss - sum(first.losses.values()))) < 1e-5


@pytest.mark.parametrize("weight", [3e38, 2e37], ids=["loss", "gradient only"])
def test_a_loss_that_is_not_finite_changes_nothing(tiny: Tiny, weight: float) -> None:
    trainer = Trainer(tiny_recipe(tiny, **{"stages.0.objectives.0.weight": weight}))
    before = bits(trainer.module)
    with pytest.raises(NonFiniteError) as caught:
        trainer.step(0)
    assert bits(trainer.module) == before
    assert not trainer.optimizer.parts[0].state
    assert all(p.grad is None for p in trainer.parameters.values())
    said = str(caught.value)
    assert "in stage pretrain; nothing was updated" in said and "\n" not in said
    ids = [name for batch in trainer.steps[0] for name in batch.sample_ids]
    assert len(ids) == 4 and all(name in said for name in ids)


def test_text_where_only_the_vision_part_is_trained(tiny: Tiny) -> None:
    """Its loss has no gradient: a micro-batch of it adds none, and a step of it is one of zeros."""
    changes = {
        "stages.0.trainable": {"vision.*": None}, "stages.0.objectives": [{"kind": "lm"}],
        "stages.0.micro_rows": 1, "stages.0.pack_length": 64, "model.lora": None,
        "stages.0.merge_lora": False,
    }  # fmt: skip
    text = [one for one in mixture() if not one.images]
    trainer = Trainer(tiny_recipe(tiny, **changes), text)
    before = bits(trainer.module)
    result = trainer.step(0)
    assert result.loss > 0 and result.grad_norm == 0
    assert bits(trainer.module) == before  # nothing to go on with yet
    mixed = Trainer(tiny_recipe(tiny, **changes))
    assert any(not len(batch.grids_N2) for batch in mixed.steps[0])
    assert mixed.step(0).grad_norm > 0


def test_hostile_ids_stay_on_one_line(tiny: Tiny) -> None:
    samples = [replace(sample, id=f"{sample.id}\n\x1b[2Jgone") for sample in mixture()]
    trainer = Trainer(tiny_recipe(tiny, **{"stages.0.objectives.0.weight": 3e38}), samples)
    with pytest.raises(NonFiniteError) as caught:
        trainer.step(0)
    assert "\n" not in str(caught.value) and "\x1b" not in str(caught.value)


def test_gradients_are_clipped_to_the_norm(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    norms = []
    for clip in (1e-3, None):
        trainer = Trainer(tiny_recipe(tiny, **{"stages.0.clip": clip}))

        def record(made: Trainer = trainer) -> None:
            squares = sum(float(p.grad.pow(2).sum()) for p in made.parameters.values())  # type: ignore[union-attr]
            norms.append(squares**0.5)

        monkeypatch.setattr(trainer.optimizer, "step", record)
        result = trainer.step(0)
        norms.append(float(result.grad_norm))  # before clipping
    assert norms[0] == pytest.approx(1e-3, rel=1e-3)
    assert norms[1] == pytest.approx(norms[3], rel=1e-6) == pytest.approx(norms[2], rel=1e-5)
    assert norms[1] > 0.1


def test_what_is_frozen_does_not_move(tiny: Tiny) -> None:
    trainer = Trainer(tiny_recipe(tiny))
    before = bits(trainer.module)
    trainer.step(0)
    trainer.step(1)
    after = bits(trainer.module)
    moved = {name for name in before if before[name] != after[name]}
    # lora_A moves from the second step on: before, B is zero and A has no gradient.
    assert moved == set(trainer.parameters)


def test_bfloat16_is_near_float32(tiny: Tiny) -> None:
    found = [
        Trainer(tiny_recipe(tiny, **{"stages.0.precision": precision})).step(0)
        for precision in ("float32", "bfloat16")
    ]
    for name, value in found[0].losses.items():
        assert found[1].losses[name].dtype == torch.float32
        assert float(found[1].losses[name]) == pytest.approx(float(value), rel=2e-2)
        assert float(found[1].losses[name]) != float(value)  # autocast was on


def test_tokens_are_counted_without_padding(tiny: Tiny) -> None:
    trainer = Trainer(tiny_recipe(tiny, **{"stages.0.batch": 6}))
    result, batches = trainer.step(0), trainer.steps[0]
    assert result.tokens == sum(int((batch.segments_BT >= 0).sum()) for batch in batches)
    assert result.padded == sum(batch.tokens_BT.numel() for batch in batches) > result.tokens


def test_checkpoints_and_records_come_when_asked(tiny: Tiny, tmp_path: Path) -> None:
    changes = {"stages.0.steps": 7, "stages.0.log_every": 3, "stages.0.checkpoint_every": 2}
    trainer, saved = Trainer(tiny_recipe(tiny, **changes)), []
    log = RunLog(tmp_path, quiet=True)
    run_stage(
        trainer.module, trainer.stage, trainer.steps, trainer.optimizer,
        list(trainer.parameters.values()), CPU, log, start=0, steps_before=10,
        on_checkpoint=saved.append,
    )  # fmt: skip
    log.close()
    assert saved == [2, 4, 6, 7]
    entries = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [entry["step"] for entry in entries] == [1, 3, 6, 7]
    assert [entry["samples"] for entry in entries] == [4, 12, 24, 28]
    for entry in entries:
        assert entry["loss"] == pytest.approx(entry["lm"] + entry["distill"], rel=1e-5)


def entry(stage: str, step: int) -> dict[str, Any]:
    return {
        "stage": stage, "step": step, "steps": 9, "loss": 1.0, "lm": 1.0, "objectives": ["lm"],
        "samples_per_second": 2.0,
    }  # fmt: skip


def test_the_log_can_be_rewound(tmp_path: Path) -> None:
    log = RunLog(tmp_path, quiet=True)
    for step in (1, 2, 3):
        log.record(entry("a", step), step)
    log.close()
    file = tmp_path / "metrics.jsonl"
    with file.open("a") as handle:
        handle.write('{"stage": "a", "st')  # a kill in the middle of a line
    log = RunLog(tmp_path, quiet=True)
    log.rewind(lambda record: record["step"] <= 2)
    log.record(entry("b", 1), 4)
    log.close()
    found = [json.loads(line) for line in file.read_text().splitlines()]
    assert [(each["stage"], each["step"]) for each in found] == [("a", 1), ("a", 2), ("b", 1)]
    assert not list(tmp_path.glob("*.partial"))


def test_progress_has_an_eta(tmp_path: Path, capsys: Callable[..., Any]) -> None:
    log = RunLog(tmp_path)
    log.record(entry("a", 1), 1)
    log.record(entry("a", 2), 2)
    log.close()
    lines = capsys.readouterr().err.splitlines()  # type: ignore[attr-defined]
    assert lines[0].startswith("a 1/9  loss 1.000  lm 1.000  2 samples/s  ETA ...")
    assert lines[1].rpartition("ETA ")[2].count(":") == 1
