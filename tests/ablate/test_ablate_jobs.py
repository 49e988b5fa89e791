"""Several runs at once give what one after another gives; one that fails or is stopped loses nothing."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from helpers import Tiny, tiny_recipe
from oculi.ablate import jobs
from oculi.ablate.jobs import Job, done
from oculi.errors import AblationError, NoUsableCheckpointError, OculiError


def plan(tiny: Tiny, folder: Path, rows: int = 2) -> list[Job]:
    recipe = tiny_recipe(tiny)
    short = [stage.model_copy(update={"steps": 2}) for stage in recipe.stages]
    made = []
    for number in range(rows):
        seeded = recipe.model_copy(update={"seed": number, "stages": tuple(short), "evals": ()})
        made.append(Job("row", number, seeded, folder, ("cost",), {}, True))
    return made


def test_side_by_side_is_as_one_after_another(tiny: Tiny, tmp_path: Path) -> None:
    said: list[str] = []
    alone = list(done(plan(tiny, tmp_path / "one"), 1, said.append))
    both = list(done(plan(tiny, tmp_path / "two"), 2, said.append))
    assert said == ["run 1 of 2: row-seed0", "run 2 of 2: row-seed1"] * 2
    for one, other in zip(alone, both, strict=True):
        assert one.job.seed == other.job.seed and one.trained and other.trained
        assert one.found.ended == other.found.ended == "finished"
        assert one.found.values == pytest.approx(other.found.values, rel=1e-4)
    # What is there is not done again, and comes in order even so.
    again = list(done(plan(tiny, tmp_path / "two", 3), 3, said.append))
    assert [(one.job.seed, one.trained) for one in again] == [(0, False), (1, False), (2, True)]


class Fails(Job):
    """A run that ends with an error of its own exit code."""

    def do(self) -> jobs.Result:
        raise NoUsableCheckpointError("all checkpoints are damaged")


def test_a_failure_keeps_its_message_and_code(tiny: Tiny, tmp_path: Path) -> None:
    (job,) = plan(tiny, tmp_path, 1)
    with pytest.raises(AblationError, match="row-seed0: all checkpoints are damaged") as raised:
        list(done([Fails(**vars(job))], 2, print))
    assert raised.value.exit_code == NoUsableCheckpointError.exit_code != AblationError.exit_code


class Dies(Job):
    """A run whose process is killed, as by a machine that is out of memory."""

    def do(self) -> jobs.Result:
        os.kill(os.getpid(), signal.SIGKILL)
        raise AssertionError


def test_a_process_that_dies_is_named(tiny: Tiny, tmp_path: Path) -> None:
    (job,) = plan(tiny, tmp_path, 1)
    with pytest.raises(OculiError, match="row-seed0: its process ended with exit code -9"):
        list(done([Dies(**vars(job))], 2, print))


TWO_LONG_RUNS = """
import sys
from pathlib import Path
from oculi.ablate.jobs import Job, done
from oculi.recipe import load
from oculi.training.signals import Stopped

if __name__ == "__main__":
    recipe, runs = load(Path(sys.argv[1])), Path(sys.argv[2])
    made = [recipe.model_copy(update={"seed": seed}) for seed in (0, 1)]
    try:
        list(done([Job("row", r.seed, r, runs, (), {}, True) for r in made], 2, print))
    except Stopped as stopped:
        print(stopped)
        sys.exit(stopped.exit_code)
"""


def test_told_to_stop_all_save_and_none_is_left(tiny: Tiny, tmp_path: Path) -> None:
    (long,) = plan(tiny, tmp_path, 1)
    stages = [stage.model_copy(update={"steps": 100_000}) for stage in long.recipe.stages]
    recipe = long.recipe.model_copy(update={"stages": tuple(stages)})
    (tmp_path / "recipe.yaml").write_text(recipe.to_yaml())
    (tmp_path / "two.py").write_text(TWO_LONG_RUNS)
    command = [sys.executable, "two.py", "recipe.yaml", "runs"]
    running = subprocess.Popen(
        command, cwd=tmp_path, stdout=subprocess.PIPE, text=True, start_new_session=True
    )
    deadline = time.monotonic() + 120
    logs = [tmp_path / "runs" / name / "metrics.jsonl" for name in ("row-seed0", "row-seed1")]
    while not all(log.exists() and log.stat().st_size for log in logs):
        assert running.poll() is None and time.monotonic() < deadline
        time.sleep(0.1)
    running.send_signal(signal.SIGTERM)
    said, _ = running.communicate(timeout=120)
    assert running.returncode == 75 and "stopped by SIGTERM; go on with --resume" in said, said
    assert not running_in(running.pid)
    assert all(any((log.parent / "checkpoints").iterdir()) for log in logs)


def running_in(group: int, patience: float = 10) -> bool:
    """Whether a process of a group is still there; multiprocessing's own tracker takes a moment."""
    deadline = time.monotonic() + patience
    while time.monotonic() < deadline:
        try:
            os.killpg(group, 0)
        except ProcessLookupError:
            return False
        time.sleep(0.1)
    return True


@pytest.mark.parametrize(
    ("named", "place", "gets"), [(None, 3, "1"), ("4,7,9", 1, "7"), ("GPU-8f,GPU-2c", 2, "GPU-8f")]
)
def test_each_process_has_a_device_in_turn(
    named: str | None, place: int, gets: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    count = 2 if named is None else len(named.split(","))
    monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 16)
    threads: list[int] = []
    monkeypatch.setattr(torch, "set_num_threads", threads.append)
    # Set first, so that what is set below is undone.
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", named or "")
    jobs.own_share(place, 4)
    assert os.environ["CUDA_VISIBLE_DEVICES"] == gets and threads == [4]
