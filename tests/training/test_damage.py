"""What damages a run's folder, and how it goes on: damaged checkpoints, bad samples, closed disks."""

import errno
import json
import os
import random
import shutil
from pathlib import Path
from typing import Any

import pytest

from helpers import Tiny, as_if_killed, exported, losses, metrics, tiny_recipe, write_rows
from oculi import durable
from oculi.errors import (
    BadSamplesError,
    CheckpointError,
    DiskError,
    NoUsableCheckpointError,
    RecipeError,
)
from oculi.export.load import load_unmerged
from oculi.recipe import Recipe, load, override
from oculi.training import checkpoint as ckpt
from oculi.training.run import train

FLIPS, CUTS = 500, 300


# -------------------------------------------------------------------------------- checkpoints


@pytest.fixture
def two(finished: Path, tmp_path: Path) -> Path:
    """A folder of two checkpoints of a real run."""
    folder = tmp_path / "checkpoints"
    for name in ("step-0000005", "step-0000006"):
        shutil.copytree(finished / "checkpoints" / name, folder / name)
    return folder


def used(folder: Path) -> tuple[str, list[str]]:
    """The checkpoint that a resume would use, and what it would say."""
    said: list[str] = []
    found = ckpt.newest_valid(folder, said.append)
    assert found is not None
    return found.name, said


def test_every_flipped_bit_is_found_and_the_checkpoint_before_is_used(two: Path) -> None:
    newest, dice = two / "step-0000006", random.Random(0)
    files = sorted(newest.iterdir())
    assert len(files) == 4 and used(two) == ("step-0000006", [])
    for number in range(FLIPS):
        file = files[number % 4]
        data = file.read_bytes()
        bit = dice.randrange(8 * len(data))
        # In place, for speed: the tensors are megabytes in other runs.
        with file.open("r+b") as handle:
            handle.seek(bit // 8)
            handle.write(bytes([data[bit // 8] ^ 1 << bit % 8]))
            handle.flush()
            name, (line,) = used(two)
            assert name == "step-0000005", f"bit {bit} of {file.name}"
            assert file.name in line and "using step-0000005 instead" in line
            handle.seek(bit // 8)
            handle.write(data[bit // 8 : bit // 8 + 1])
    assert used(two) == ("step-0000006", [])


def test_every_truncation_is_found_and_the_checkpoint_before_is_used(two: Path) -> None:
    newest, dice = two / "step-0000006", random.Random(1)
    files = sorted(newest.iterdir())
    for number in range(CUTS):
        file = files[number % 4]
        data = file.read_bytes()
        length = [0, len(data) - 1][number // 4] if number < 8 else dice.randrange(len(data))
        os.truncate(file, length)
        name, (line,) = used(two)
        assert name == "step-0000005" and file.name in line, f"{file.name} cut to {length}"
        file.write_bytes(data)
    assert used(two) == ("step-0000006", [])


def test_files_of_another_step_do_not_pass(two: Path) -> None:
    shutil.copy(two / "step-0000005" / "tensors.safetensors", two / "step-0000006")
    assert used(two)[0] == "step-0000005"
    shutil.copytree(two / "step-0000005", two / "step-0000007")  # whole, under another name
    name, said = used(two)
    assert name == "step-0000005"
    assert "step-0000007 holds step 5: it is a copy of another checkpoint" in said[0]


@pytest.mark.parametrize("file", ["tensors.safetensors", "optimizer.pt", "MANIFEST.json"])
def test_a_run_goes_on_from_the_checkpoint_before(
    finished: Path, recipe: Recipe, tmp_path: Path, file: str, capsys: pytest.CaptureFixture[str]
) -> None:
    run = as_if_killed(finished, tmp_path / "run", 5)
    damaged = run / "checkpoints" / "step-0000005" / file
    damaged.write_bytes(damaged.read_bytes()[:-3])
    train(recipe, run, resume=True, quiet=True)
    assert losses(run) == losses(finished)
    said = capsys.readouterr().err
    assert str(damaged) in said or file in said
    assert "using step-0000003 instead" in said
    (event,) = map(json.loads, (run / "events.jsonl").read_text().splitlines())
    assert event["event"] == "damaged checkpoint" and file in event["what"]
    found = ckpt.checkpoints(run / "checkpoints")
    assert len(found) == 4 and all(ckpt.problem(path) is None for path in found)
    assert (run / "checkpoints" / "step-0000005.damaged").is_dir()  # kept, but no checkpoint


def test_a_damaged_checkpoint_does_not_count_among_those_that_are_kept(
    finished: Path, recipe: Recipe, tmp_path: Path
) -> None:
    """With one to keep, the whole one before it would go for it otherwise."""
    run = as_if_killed(finished, tmp_path / "run", 5)
    (run / "checkpoints" / "step-0000005" / "optimizer.pt").write_bytes(b"")
    chosen = override(recipe, ["keep_last=1", "stages.1.checkpoint_every=1"])
    train(chosen, run, resume=True, quiet=True)
    assert [path.name for path in ckpt.checkpoints(run / "checkpoints")] == ["step-0000006"]
    assert losses(run) == losses(finished)


def test_what_a_kill_left_over_is_pruned_on_the_resume(
    finished: Path, recipe: Recipe, tmp_path: Path
) -> None:
    """Killed after the last checkpoint was written, and before the old ones went."""
    run = Path(shutil.copytree(finished, tmp_path / "run"))
    train(override(recipe, ["keep_last=2"]), run, resume=True, quiet=True)
    names = [path.name for path in ckpt.checkpoints(run / "checkpoints")]
    assert names == ["step-0000005", "step-0000006"]


def test_a_run_without_a_whole_checkpoint_says_so(
    finished: Path, recipe: Recipe, tmp_path: Path
) -> None:
    run = as_if_killed(finished, tmp_path / "run", 3)
    for folder in (run / "checkpoints").iterdir():
        (folder / "optimizer.pt").unlink()
    before = (run / "metrics.jsonl").read_bytes()
    with pytest.raises(NoUsableCheckpointError, match=r"optimizer\.pt is missing") as caught:
        train(recipe, run, resume=True, quiet=True)
    assert caught.value.exit_code == 5 and "\n" not in str(caught.value)
    assert (run / "metrics.jsonl").read_bytes() == before


def test_a_merge_uses_the_newest_whole_one_too(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = Path(shutil.copytree(finished, tmp_path / "run"))
    for name in ("step-0000006", "step-0000005"):
        (run / "checkpoints" / name / "state.json").write_text("{}")
    assert load_unmerged(run).state.total_steps == 3
    assert "step-0000006/state.json is damaged" in capsys.readouterr().err
    with pytest.raises(CheckpointError, match=r"remove .*step-0000006 to use an earlier"):
        load_unmerged(run / "checkpoints" / "step-0000006")  # asked for by name: none instead


def test_an_exported_stage_that_was_damaged_is_not_trained_on(
    finished: Path, recipe: Recipe, tmp_path: Path
) -> None:
    """Between its export and the first checkpoint of the next stage nothing else would notice."""
    run = as_if_killed(finished, tmp_path / "run", 3)
    shutil.copytree(finished / "stages" / "0-pretrain", run / "stages" / "0-pretrain")
    file = run / "stages" / "0-pretrain" / "model.safetensors"
    data = bytearray(file.read_bytes())
    data[-10] ^= 1
    file.write_bytes(data)
    with pytest.raises(CheckpointError, match=r"does not hold what was trained: .* differs"):
        train(recipe, run, resume=True, quiet=True)
    shutil.rmtree(run / "stages" / "0-pretrain")
    train(recipe, run, resume=True, quiet=True)
    assert losses(run) == losses(finished)


# -------------------------------------------------------------------------------- keeping them


def test_old_checkpoints_of_a_run_are_pruned_and_the_rule_may_change(
    recipe: Recipe, tmp_path: Path, finished: Path
) -> None:
    changes = ["stages.0.checkpoint_every=1", "stages.1.checkpoint_every=1", "keep_last=2"]
    run = train(override(recipe, [*changes, "keep_every=3"]), tmp_path / "run", quiet=True)
    names = sorted(path.name for path in (run / "checkpoints").iterdir())
    assert names == ["step-0000003", "step-0000005", "step-0000006"]
    assert losses(run) == losses(finished)
    shutil.rmtree(run / "checkpoints" / "step-0000006")
    shutil.rmtree(run / "stages" / "1-finetune")
    train(override(recipe, ["keep_last=1"]), run, resume=True, quiet=True)
    assert [path.name for path in (run / "checkpoints").iterdir()] == ["step-0000006"]
    assert load(run / "recipe.yaml").keep_last == 1 and losses(run) == losses(finished)


def test_every_step_knows_what_saving_cost(finished: Path) -> None:
    waits = [entry["save_wait"] for entry in metrics(finished).values()]
    # Steps 3 and 6 log before their own checkpoint, step 3 the wait for that of step 2.
    assert waits[0] == 0 and waits[2] > 0


@pytest.mark.parametrize(
    ("changes", "said"),
    [({"keep_every": 5}, "keep_every needs keep_last"), ({"keep_last": 0}, "keep_last: ")],
)
def test_rules_that_keep_nothing_are_refused(
    tiny: Tiny, changes: dict[str, Any], said: str
) -> None:
    with pytest.raises(RecipeError, match=said):
        tiny_recipe(tiny, **changes)


# -------------------------------------------------------------------------------- bad samples


def cut(picture: Path) -> None:
    """Its header stays: the check before the first step reads no further."""
    data = picture.read_bytes()
    picture.write_bytes(data[: data.index(b"IDAT") + 8])


def test_a_bad_sample_is_left_out_counted_and_written_down(tiny: Tiny, tmp_path: Path) -> None:
    data = write_rows(tmp_path / "rows")
    picture = tmp_path / "rows" / "1.png"
    cut(picture)
    source = [{"kind": "file", "path": str(data)}]
    recipe = tiny_recipe(tiny, **{"stages.0.data": source, "stages.1.data": source})
    run = train(recipe, tmp_path / "run", quiet=True)
    listed = [json.loads(line) for line in (run / "bad-samples.jsonl").read_text().splitlines()]
    # 12 draws of 8 rows in each stage: one or two of them meet it.
    assert {entry["id"] for entry in listed} == {"row-1"} and 2 <= len(listed) <= 4
    assert all("truncated or damaged" in entry["reason"] for entry in listed)
    assert [entry["stage"] for entry in listed] == sorted(
        (entry["stage"] for entry in listed), reverse=True
    )
    last = list(metrics(run).values())[-1]
    assert last["bad_samples"] == sum(entry["stage"] == "finetune" for entry in listed)
    # Resumed from the middle: the same samples are left out, and listed once.
    again = as_if_killed(run, tmp_path / "again", 5)
    train(recipe, again, resume=True, quiet=True)
    assert losses(again) == losses(run)
    assert (again / "bad-samples.jsonl").read_text() == (run / "bad-samples.jsonl").read_text()


def test_too_many_bad_samples_end_the_run(tiny: Tiny, tmp_path: Path) -> None:
    data = write_rows(tmp_path / "rows")
    for picture in (tmp_path / "rows").glob("*.png"):
        cut(picture)
    source = [{"kind": "file", "path": str(data)}]
    recipe = tiny_recipe(tiny, **{"stages.0.data": source, "stages.0.steps": 9})
    with pytest.raises(BadSamplesError) as caught:
        train(recipe, tmp_path / "run", quiet=True)
    listed = tmp_path / "run" / "bad-samples.jsonl"
    assert str(listed) in str(caught.value) and "\n" not in str(caught.value)
    assert len(listed.read_text().splitlines()) > 10


# -------------------------------------------------------------------------------- the disk


def closed(number: int, name: str) -> Any:
    """An observer that refuses to write files of this name."""

    def refuse(place: str, path: Path | None, before: Path | None) -> None:
        if place in ("write", "logged") and path is not None and path.name == name:
            raise OSError(number, os.strerror(number), str(path))

    return refuse


@pytest.mark.parametrize("name", ["metrics.jsonl", "tensors.safetensors", "1-finetune.partial"])
@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS])
def test_a_disk_that_refuses_ends_the_run_and_leaves_what_was_saved(
    finished: Path, recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    name: str, number: int,
) -> None:  # fmt: skip
    run = as_if_killed(finished, tmp_path / "run", 5)
    with monkeypatch.context() as patch:
        patch.setattr(durable, "observer", closed(number, name))
        with pytest.raises(DiskError) as caught:
            train(recipe, run, resume=True, quiet=True)
    said = str(caught.value)
    assert os.strerror(number) in said and "--resume" in said and "\n" not in said
    assert ckpt.problem(run / "checkpoints" / "step-0000005") is None
    train(recipe, run, resume=True, quiet=True)  # when there is room again
    assert losses(run) == losses(finished)
    found, wanted = exported(run), exported(finished)
    assert all((found[key] == wanted[key]).all() for key in wanted)


@pytest.mark.parametrize("place", ["file", "long"])
def test_a_folder_that_cannot_be_made_is_one_line(
    recipe: Recipe, tmp_path: Path, place: str
) -> None:
    (tmp_path / "file").write_text("x")
    out = tmp_path / "file" / "run" if place == "file" else tmp_path / ("x" * 300)
    with pytest.raises(DiskError, match=r"cannot be written.*choose a folder"):
        train(recipe, out, quiet=True)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_of_somebody_else_is_one_line(recipe: Recipe, tmp_path: Path) -> None:
    (tmp_path / "theirs").mkdir(mode=0o500)
    with pytest.raises(DiskError, match="Permission denied"):
        train(recipe, tmp_path / "theirs" / "run", quiet=True)
