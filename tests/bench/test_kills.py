"""The kill harness: it kills for real, sees nothing where nothing is wrong, and sees what is planted."""

import json
import random
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from oculi import durable
from oculi.bench.kills import Kills, difference, forked, quiet_libraries
from oculi.bench.kills_disk import Disk, flip
from oculi.bench.kills_planted import DEFECTS, Defect
from oculi.bench.kills_report import Report, all_jobs, plant, spread
from oculi.bench.kills_world import build_world
from oculi.cli import app
from oculi.recipe import Recipe


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Recipe]:
    with quiet_libraries():
        yield build_world(tmp_path_factory.mktemp("kills") / "world")


@pytest.fixture(scope="module")
def kills(recipe: Recipe, tmp_path_factory: pytest.TempPathFactory) -> Kills:
    return Kills(tmp_path_factory.mktemp("main"), recipe)


def test_places_are_everywhere_that_training_can_die(kills: Kills) -> None:
    names = {label.split(":")[0] for label, _ in kills.places}
    assert names == {
        "write", "sync", "rename", "remove", "copied", "committed", "logged", "step", "stepped",
        "finish", "folded", "finished",
    }  # fmt: skip
    labels = [label for label, _ in kills.places]
    for part in ("recipe.yaml", "MANIFEST.json", "optimizer.pt", "0-pretrain", "1-finetune"):
        assert any(part in label for label in labels), part
    assert len(kills.jobs("torn")) == len(kills.places) > len(kills.jobs("clean")) > 80
    # What a user is promised: at least 200 kills, whichever way the command is called.
    assert 200 <= len(all_jobs(kills, quick=True)) < len(all_jobs(kills))
    assert len(all_jobs(kills, thorough=True)) == 2 * len(all_jobs(kills))


def test_some_kills_of_every_kind(kills: Kills) -> None:
    """A few of those of the command, which is run by ``make nightly``."""
    jobs = all_jobs(kills, thorough=True)
    chosen = [
        next(j for j in jobs if j.mode == "clean" and "optimizer.pt" in j.label),
        next(j for j in jobs if j.mode == "torn" and j.label.startswith("rename:run/stages")),
        next(j for j in jobs if j.mode == "torn" and j.label.startswith("committed")),
        [j for j in jobs if j.mode == "rot"][5],
        next(j for j in jobs if j.mode == "clean" and j.label == "folded" and j.again),
    ]
    for job in chosen:
        result = kills.run(job, 0)
        assert result.problem == "" and result.kills >= 1, job


@pytest.mark.parametrize(
    "name", ["torch's dice are not set again", "files are not fsynced", "the optimizer starts anew"]
)
def test_what_is_planted_is_caught(recipe: Recipe, tmp_path: Path, name: str) -> None:
    (defect,) = (one for one in DEFECTS if one.name == name)
    assert plant(defect, tmp_path / "planted", recipe)


def test_a_harmless_change_is_not_caught(recipe: Recipe, tmp_path: Path) -> None:
    from contextlib import nullcontext

    assert plant(Defect("nothing", nullcontext, "folded"), tmp_path / "planted", recipe) is None


def test_defects_have_names_of_their_own() -> None:
    assert len({defect.name for defect in DEFECTS}) == len(DEFECTS) >= 10


# ------------------------------------------------------------------------------------- the parts


def die(run: Path, disk: Disk, task: Any) -> None:
    """Run a task in a process that the disk kills."""

    def child() -> None:
        durable.observer = disk
        task()

    assert forked(child, run.parent / "output") == -signal.SIGKILL


def test_a_power_cut_takes_what_was_not_fsynced(tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    (run / "before").write_text("before")  # of a run that ended in peace

    def task() -> None:
        (run / "synced").write_bytes(b"s" * 100)
        durable.sync(run / "synced")
        with (run / "synced").open("ab") as file:
            file.write(b"t" * 100)
        (run / "unsynced").write_bytes(b"u" * 100)
        durable.reach("here")

    die(run, Disk(run, "here", torn=True), task)
    assert (run / "before").read_text() == "before"
    kept = (run / "synced").read_bytes()
    assert kept[:100] == b"s" * 100 and kept != b"s" * 100 + b"t" * 100
    assert (run / "unsynced").read_bytes() != b"u" * 100


def test_a_power_cut_takes_back_a_rename_unless_the_folder_was_fsynced(tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    (run / "old").write_text("old")

    def task() -> None:
        for name in ("a", "b"):
            (run / f"{name}.partial").mkdir()
            durable.move(run / f"{name}.partial", run / name)
        (run / "old.partial").write_text("new")
        durable.sync(run / "old.partial")
        durable.reach("rename", run / "old", run / "old.partial")
        (run / "old.partial").rename(run / "old")
        durable.reach("renamed", run / "old", run / "old.partial")
        durable.reach("here")

    # Killed at the second move, before the folder was fsynced again; and after the last rename.
    die(run, Disk(run, "sync:run", occurrence=1, torn=True), task)
    assert sorted(path.name for path in run.iterdir()) == ["a", "b.partial", "old"]
    for path in ("a", "b.partial"):
        (run / path).rmdir()
    die(run, Disk(run, "here", torn=True), task)
    assert sorted(p.name for p in run.iterdir()) == ["a", "b", "old", "old.partial"]
    assert (run / "old").read_text() == "old" and (run / "old.partial").read_text() == "new"


def test_a_plain_kill_leaves_everything(tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()

    def task() -> None:
        for number in range(3):
            (run / str(number)).write_text("x" * 50)
            durable.reach("wrote", run / str(number))

    die(run, Disk(run, "wrote:run/1"), task)
    assert {path.name: path.read_text() for path in run.iterdir()} == {"0": "x" * 50, "1": "x" * 50}


def test_a_flip_is_one_bit(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(bytes(10))
    for seed in range(20):
        flip(tmp_path / "a", random.Random(seed))
        data = (tmp_path / "a").read_bytes()
        assert sum(byte.bit_count() for byte in data) == 1
        (tmp_path / "a").write_bytes(bytes(10))


def test_a_difference_is_named_by_its_place() -> None:
    assert difference({"a": [1, {"b": 2}]}, {"a": [1, {"b": 2}]}) == ""
    assert difference({"a": [1, {"b": 2}]}, {"a": [1, {"b": 3}]}) == "a.1.b is 3, not 2"
    assert difference({"a": [1]}, {"a": [1, 1]}) == "a is [1, 1], not [1]"
    assert difference({}, {"a": 1}) == "a is 1, not None"


def test_tasks_are_spread_and_keep_their_order() -> None:
    seen: list[tuple[int, int]] = []
    found = spread(list(range(7)), lambda task, lane: [task, lane], 3, lambda *n: seen.append(n))
    assert [task for task, _ in found] == list(range(7)) and {lane for _, lane in found} == {
        0,
        1,
        2,
    }
    assert seen[-1] == (7, 7)

    def fail(task: int, lane: int) -> None:
        raise KeyError(task)

    with pytest.raises(RuntimeError, match="KeyError"):
        spread([1], fail, 1)


def test_the_report_says_what_was_missed() -> None:
    report = Report(places=3, seconds=1.0)
    report.kills.update(clean=3, torn=2)
    assert report.ok
    report.planted = {"one": "losses differ", "two": None}
    assert not report.ok and report.caught == 1
    assert "  missed: two" in report.lines() and "5 kills at 3 places" in report.lines()[0]
    found = report.to_json()
    assert {"kills", "mismatches", "planted", "planted_caught", "seconds"} <= found.keys()
    assert (found["kills"], found["planted"], found["planted_caught"]) == (5, 2, 1)
    page = report.markdown("oculi bench kills")
    assert "| one | losses differ |" in page and "| two | missed |" in page
    report.planted, report.mismatches = {}, ["torn kill 3"]
    assert not report.ok and "1 mismatches" in report.lines()[0]


@pytest.mark.slow
@pytest.mark.parametrize("how", ["--quick", "--thorough"])
def test_the_command(tmp_path: Path, how: str) -> None:
    done = CliRunner().invoke(
        app, ["bench", "kills", how, "--json", "--out", str(tmp_path / "r.md")]
    )
    assert done.exit_code == 0, done.stdout
    found = json.loads(done.stdout)
    assert found["kills"] >= 200 and found["mismatches"] == 0
    assert found["planted_caught"] == found["planted"] >= 10
    assert "0 mismatches" in (tmp_path / "r.md").read_text()
