"""Several ranks: what one process computes, they compute together, and none waits for ever."""

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from helpers import Tiny, as_if_killed, exported, losses, metrics, tiny_recipe
from oculi.data.loader import Steps
from oculi.errors import CheckpointError, DataError
from oculi.recipe import Recipe, load, override
from oculi.training import checkpoint as ckpt
from oculi.training import loop
from oculi.training.run import train
from ranks import on_ranks

Recorder = Callable[[Path], None]


@pytest.fixture
def note_samples(monkeypatch: pytest.MonkeyPatch) -> Recorder:
    """Lets every rank write down the samples of each step that it takes."""

    def install(file: Path) -> None:
        real = loop.train_step

        def step(module: Any, batches: Any, *rest: Any) -> Any:
            with file.open("a") as out:
                out.write(json.dumps([i for b in batches for i in b.sample_ids]) + "\n")
            return real(module, batches, *rest)

        monkeypatch.setattr(loop, "train_step", step)

    return install


def agree(found: Path, wanted: Path, rel: float = 1e-5, as_wholes: bool = False) -> None:
    """The same steps with the same losses, and the same weights, but for the order of sums.

    Muon's iteration computes in bfloat16, where a last digit may move one weight of many thousands by
    more: then matrices are compared as wholes.
    """
    one, other = (
        {step: [float.fromhex(v) for v in values] for step, values in losses(run).items()}
        for run in (found, wanted)
    )
    assert one.keys() == other.keys()
    for step, values in other.items():
        assert one[step][:-1] == pytest.approx(values[:-1], rel=rel), step
        assert one[step][-1] == pytest.approx(values[-1], rel=100 * rel), step
    cut, same = (run / "stages/1-finetune/processor_config.json" for run in (found, wanted))
    assert cut.read_text() == same.read_text()
    weights, reference = exported(found), exported(wanted)
    assert weights.keys() == reference.keys()
    for name, value in reference.items():
        if as_wholes:
            assert (weights[name] - value).norm() <= 30 * rel * value.norm(), name
        else:
            torch.testing.assert_close(weights[name], value, rtol=100 * rel, atol=100 * rel)


@pytest.fixture(scope="module")
def on_two(tiny: Tiny, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run of ``finished`` on two ranks that share one copy of the model."""
    out = tmp_path_factory.mktemp("two") / "run"
    assert on_ranks(2, lambda: str(train(tiny_recipe(tiny), out, quiet=True))) == [str(out)] * 2
    return out


def test_two_ranks_equal_one(on_two: Path, finished: Path) -> None:
    """Heads included: they are part of the loss, and of the module that is split."""
    agree(on_two, finished)
    found, wanted = (
        ckpt.load(run / "checkpoints" / "step-0000003")[1] for run in (on_two, finished)
    )
    assert found.keys() == wanted.keys()
    assert any(name.startswith("objectives.distill.heads") for name in found)
    for name, value in wanted.items():
        torch.testing.assert_close(found[name], value, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(
    "changes",
    [
        {"shard": 1},
        {"stages.1.muon": ["llm.*.down_proj.weight"]},
        {"stages.0.checkpointing": "full", "stages.1.checkpointing": "selective"},
        {"stages.0.merge_lora": False, "stages.1.trainable": {"llm.*.lora_?": None}},
        {"stages.0.batch": 3, "stages.0.pack_length": 512, "stages.1.batch": 1},
        {"stages.1.images": {"mode": "native", "min_patches": 1, "max_patches": 9}},
    ],
    ids=[
        "data parallel",
        "muon",
        "checkpointing",
        "LoRA in two stages",
        "rank without a row",
        "other pictures",
    ],
)
def test_they_agree_in_other_recipes(tiny: Tiny, tmp_path: Path, changes: dict[str, Any]) -> None:
    if changes.get("stages.0.merge_lora") is False:
        changes = {**changes, "stages.1.merge_lora": True}
    recipe = tiny_recipe(tiny, **changes)
    alone = train(recipe, tmp_path / "alone", quiet=True)
    on_ranks(2, lambda: str(train(recipe, tmp_path / "two", quiet=True)))
    muon = "stages.1.muon" in changes
    agree(tmp_path / "two", alone, rel=1e-4 if muon else 1e-5, as_wholes=muon)


@pytest.mark.parametrize("frozen", [False, True], ids=["LLM trained", "LLM frozen"])
def test_steps_of_text_alone(
    tiny: Tiny, tmp_path: Path, note_samples: Recorder, frozen: bool
) -> None:
    """What they do not reach goes on by momentum and decay, on one process as on two."""
    small = {"batch": 1, "pack_length": 64, "steps": 8, "weight_decay": 0.1, "schedule": "constant"}
    changes: dict[str, Any] = {f"stages.0.{key}": value for key, value in small.items()}
    changes |= {"stages.1.steps": 1}
    if frozen:
        changes |= {"stages.0.trainable": {"vision.*": None}, "stages.0.merge_lora": False}
        changes |= {"stages.0.objectives": [{"kind": "lm"}], "model.lora": None}
    recipe = tiny_recipe(tiny, **changes)
    on_ranks(2, lambda: str(train(recipe, tmp_path / "two", quiet=True)))
    note_samples(tmp_path / "alone.jsonl")
    alone = train(recipe, tmp_path / "alone", quiet=True)
    taken = list(map(json.loads, (tmp_path / "alone.jsonl").read_text().splitlines()))
    assert any(step[0] in ("row-3", "row-7") for step in taken[1:8])
    agree(tmp_path / "two", alone)


def test_images_on_one_rank_and_only_text_on_the_other(
    tiny: Tiny, tmp_path: Path, note_samples: Recorder
) -> None:
    """Rows of the data file are images and text: with two in a step, both kinds meet sooner or later."""
    small = {"batch": 2, "pack_length": 64, "steps": 6, "lr": 1e-3}
    changes = {f"stages.{n}.{key}": value for n in (0, 1) for key, value in small.items()}
    recipe = tiny_recipe(tiny, **changes)
    noted = [tmp_path / "0.jsonl", tmp_path / "1.jsonl"]

    def work() -> str:
        note_samples(noted[int(os.environ["RANK"])])
        return str(train(recipe, tmp_path / "two", quiet=True))

    on_ranks(2, work)
    steps = list(zip(*(map(json.loads, f.read_text().splitlines()) for f in noted), strict=True))
    text = {"row-3", "row-7"}
    mixed = [pair for pair in steps if 0 < sum(set(ids) <= text for ids in pair) < 2]
    assert mixed
    alone = train(recipe, tmp_path / "alone", quiet=True)
    agree(tmp_path / "two", alone)


def test_two_then_one_then_two(
    on_two: Path, finished: Path, tiny: Tiny, tmp_path: Path, note_samples: Recorder
) -> None:
    """Killed on two ranks at step 2, resumed by one, killed at step 5, and resumed by two."""
    recipe = tiny_recipe(tiny)
    one = as_if_killed(on_two, tmp_path / "one", 2)
    note_samples(tmp_path / "alone.jsonl")
    train(recipe, one, resume=True, quiet=True)
    agree(one, finished)
    last = json.loads((tmp_path / "alone.jsonl").read_text().splitlines()[-1])
    two = as_if_killed(one, tmp_path / "two", 5)
    assert (two / "checkpoints" / "step-0000005" / "optimizer.pt").exists()
    noted = [tmp_path / "0.jsonl", tmp_path / "1.jsonl"]

    def work() -> str:
        note_samples(noted[int(os.environ["RANK"])])
        return str(train(recipe, two, resume=True, quiet=True))

    on_ranks(2, work)
    agree(two, finished)
    taken = [name for file in noted for name in json.loads(file.read_text())]  # in their only step
    assert sorted(taken) == sorted(last)


def test_bfloat16_is_gathered_and_summed_in_float32(tiny: Tiny, tmp_path: Path) -> None:
    recipe = tiny_recipe(tiny, **{f"stages.{n}.precision": "bfloat16" for n in (0, 1)})
    alone = train(recipe, tmp_path / "alone", quiet=True)
    on_ranks(2, lambda: str(train(recipe, tmp_path / "two", quiet=True)))
    for step, entry in metrics(alone).items():
        assert metrics(tmp_path / "two")[step]["loss"] == pytest.approx(entry["loss"], rel=2e-2)


def short(tiny: Tiny, *assignments: str) -> Recipe:
    return override(tiny_recipe(tiny), ["stages.0.steps=2", "stages.1.steps=1", *assignments])


def test_a_loss_that_is_not_finite_stops_all_with_the_samples_of_all(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = loop.whole
    monkeypatch.setattr(loop, "whole", lambda norm: real(norm) * float("nan"))
    results = on_ranks(2, lambda: str(train(short(tiny), tmp_path / "run", quiet=True)))
    assert [kind for kind, _, _ in results] == ["NonFiniteError"] * 2
    assert [code for _, _, code in results] == [4, 4]
    assert results[0][1].count("row-") == 4  # a step's samples, two on each rank


def test_no_data_on_one_rank_ends_the_other(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = Steps.load

    def load(self: Steps, step: int) -> Any:
        if self.rank == 1 and step == 1:
            raise DataError("the file has changed")
        return real(self, step)

    monkeypatch.setattr(Steps, "load", load)
    results = on_ranks(2, lambda: str(train(short(tiny), tmp_path / "run", quiet=True)))
    assert results == [
        ("ElsewhereError", "rank 1: the file has changed", 2),
        ("DataError", "the file has changed", 2),
    ]


def test_a_signal_to_one_rank_stops_all_after_the_same_step(tiny: Tiny, tmp_path: Path) -> None:
    recipe = short(tiny, "stages.0.steps=500")
    run = tmp_path / "run"

    def work() -> str:
        if os.environ["RANK"] == "1":
            threading.Timer(0.1, _when_training, (run, os.getpid())).start()
        return str(train(recipe, run, quiet=True))

    results = on_ranks(2, work)
    assert [(kind, code) for kind, _, code in results] == [("Stopped", 75), ("ElsewhereError", 75)]
    last = ckpt.newest_valid(run / "checkpoints", pytest.fail)
    assert last is not None and ckpt.load_state(last).step == len(metrics(run))


def _when_training(run: Path, process: int) -> None:
    while not (run / "metrics.jsonl").exists() or len(metrics(run)) < 3:
        pass
    os.kill(process, signal.SIGTERM)


def test_a_mistake_is_said_once(tiny: Tiny, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "mine.txt").touch()
    results = on_ranks(2, lambda: str(train(short(tiny), tmp_path / "run", quiet=True)))
    assert [kind for kind, _, _ in results] == ["RecipeError", "ElsewhereError"]
    results = on_ranks(2, lambda: str(train(short(tiny, "shard=3"), tmp_path / "new", quiet=True)))
    assert "2 ranks cannot be parted into copies of 3" in results[0][1]


def test_damage_to_any_shard_is_found(on_two: Path, tmp_path: Path) -> None:
    saved = as_if_killed(on_two, tmp_path / "run", 3) / "checkpoints" / "step-0000003"
    shards = sorted((saved / "shards").iterdir())
    assert len(shards) == 2 and ckpt.problem(saved) is None
    for file in [*shards, saved / "optimizer.json"]:
        whole = file.read_bytes()
        file.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
        assert file.name in str(ckpt.problem(saved))
        file.write_bytes(whole)
    (saved / "shards" / "more.safetensors").touch()
    assert "is not in the manifest" in str(ckpt.problem(saved))


def test_shards_of_other_parameters_are_refused_in_words(on_two: Path, tmp_path: Path) -> None:
    """The stage trains fewer now: ``recipe.yaml`` was changed by hand."""
    run = as_if_killed(on_two, tmp_path / "run", 2)
    fewer = 'stages.0.trainable={"vision.*": 1.0e-3, "objectives.*": 1.0e-3}'
    changed = override(load(run / "recipe.yaml"), [fewer])
    (run / "recipe.yaml").write_text(changed.to_yaml())
    with pytest.raises(CheckpointError, match="has the optimizer of other parameters"):
        train(changed, run, resume=True, quiet=True)


@pytest.mark.slow
def test_the_command_under_torchrun(tiny: Tiny, tmp_path: Path) -> None:
    (tmp_path / "tiny.yaml").write_text(short(tiny).to_yaml())
    words = ["-m", "torch.distributed.run", "--nproc-per-node", "2", "-m", "oculi", "train"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, *words, str(tmp_path / "tiny.yaml"), "--out", str(tmp_path / "run")],
        env=environment, capture_output=True, text=True, check=False, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("stage 0, pretrain") == 1  # said by one of them
    assert (tmp_path / "run" / "stages" / "1-finetune" / "config.json").exists()
