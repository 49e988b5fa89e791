"""Saving beside training: what is saved is the moment of the call; a full disk takes nothing away."""

import errno
import os
import resource
import signal
import subprocess
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from oculi import durable
from oculi.errors import DiskError
from oculi.training import checkpoint as ckpt
from oculi.training import saver as saver_module
from oculi.training.saver import Saver, copied, size_of


def state(step: int) -> ckpt.State:
    return ckpt.State(0, step, step, lora=False, base="b", base_tensors={}, seconds=0.0)


def steps(folder: Path) -> list[int]:
    return [int(path.name[5:]) for path in ckpt.checkpoints(folder)]


def save(saver: Saver, step: int, value: float = 0.0) -> None:
    saver.save(state(step), {"w": torch.full((4,), value)}, {"lr": value})


def test_a_checkpoint_is_the_moment_of_the_call(tmp_path: Path) -> None:
    """Training changes the weights in place while they are being written."""
    saver = Saver(tmp_path, None, None)
    go = threading.Event()
    weight, moment = torch.zeros(3), torch.ones(3)
    optimizer = {"parts": [{"state": {0: {"exp_avg": moment, "step": torch.tensor(1.0)}}}]}
    saver.save(state(1), {"w": weight}, optimizer, lambda: go.wait(10) and None)
    weight += 5
    moment += 5
    assert steps(tmp_path) == []
    go.set()
    saver.wait()
    saver.close()
    assert ckpt.load(tmp_path / "step-0000001")[1]["w"].tolist() == [0, 0, 0]
    found = torch.load(tmp_path / "step-0000001" / "optimizer.pt", weights_only=True)
    assert found["parts"][0]["state"][0]["exp_avg"].tolist() == [1, 1, 1]


def test_a_copy_shares_nothing() -> None:
    value = {"a": [torch.zeros(2), (torch.ones(1),)], "b": 3, "c": {"d": torch.zeros(1)}}
    other: Any = copied(value)
    assert other["b"] == 3 and torch.equal(other["a"][1][0], torch.ones(1))

    def places(part: Any) -> list[int]:
        if isinstance(part, Tensor):
            return [part.data_ptr()]
        parts = part.values() if isinstance(part, dict) else part if type(part) is not int else ()
        return [place for each in parts for place in places(each)]

    assert len(places(value)) == 3 and not set(places(value)) & set(places(other))
    assert size_of(value) == size_of(other) == 16


def test_training_waits_for_the_copy_and_for_the_save_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = ckpt.save

    def slow(*arguments: Any) -> Path:
        time.sleep(0.3)
        return real(*arguments)

    monkeypatch.setattr(ckpt, "save", slow)
    saver = Saver(tmp_path, None, None)
    began = time.monotonic()
    save(saver, 1)
    assert time.monotonic() - began < 0.2 and saver.waited < 0.2
    save(saver, 2)  # has to wait for the first one
    assert 0.2 < saver.waited < 1.5
    saver.wait()
    assert 0.4 < saver.waited <= time.monotonic() - began
    assert steps(tmp_path) == [1, 2]
    saver.close()


@pytest.mark.parametrize(
    ("last", "every", "left"),
    [
        (None, None, [1, 2, 3, 4, 5, 6]),
        (2, None, [5, 6]),
        (1, None, [6]),
        (2, 3, [3, 5, 6]),
        (1, 2, [2, 4, 6]),
        (9, 1, [1, 2, 3, 4, 5, 6]),
    ],
)
def test_old_checkpoints_go(
    tmp_path: Path, last: int | None, every: int | None, left: list[int]
) -> None:
    saver = Saver(tmp_path, last, every)
    for step in range(1, 7):
        save(saver, step)
    saver.wait()
    assert steps(tmp_path) == left
    assert all(ckpt.problem(path) is None for path in tmp_path.iterdir())


def test_old_checkpoints_go_only_when_the_new_one_is_on_the_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    saver = Saver(tmp_path, 1, None)
    save(saver, 1)
    saver.wait()
    order: list[str] = []

    def note(place: str, path: Path | None, before: Path | None) -> None:
        if path is not None and path.is_dir() and place in ("synced", "rename", "committed"):
            order.append(f"{place} {path.name}")

    monkeypatch.setattr(durable, "observer", note)
    save(saver, 2)
    saver.wait()
    # The new one has its name for good before the old one is touched.
    parent = f"synced {tmp_path.name}"
    assert order[:3] == ["synced step-0000002.partial", parent, "committed step-0000002"]
    assert steps(tmp_path) == [2]


@pytest.mark.parametrize("where", ["tensors.safetensors", "optimizer.pt", "MANIFEST.json", "sync"])
def test_a_full_disk_leaves_the_last_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    saver = Saver(tmp_path, 1, None)
    save(saver, 1, 7.0)
    saver.wait()

    def full(place: str, path: Path | None, before: Path | None) -> None:
        if path is not None and (path.name == where or place == where):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))

    with monkeypatch.context() as patch:
        patch.setattr(durable, "observer", full)
        save(saver, 2)
        with pytest.raises(DiskError) as caught:
            saver.wait()
    said = str(caught.value)
    assert "checkpoint step-0000002" in said and "No space left on device; make room" in said
    assert "step-0000001 is intact, and --resume goes on from there" in said and "\n" not in said
    assert [path.name for path in tmp_path.iterdir()] == ["step-0000001"]  # the stub takes no room
    assert ckpt.load(tmp_path / "step-0000001")[1]["w"].tolist() == [7.0] * 4
    save(saver, 2)  # and later there is room again
    saver.wait()
    assert steps(tmp_path) == [2]


def test_a_failed_save_is_told_before_the_next_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*arguments: Any) -> Path:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr(ckpt, "save", refuse)
    saver = Saver(tmp_path, None, None)
    saver.check()
    save(saver, 1)
    saver.close()
    with pytest.raises(DiskError, match="Read-only file system"):
        saver.check()


def test_too_little_room_is_said_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    saver = Saver(tmp_path, None, None)
    save(saver, 1)
    saver.wait()
    usage = saver_module.shutil.disk_usage(tmp_path)
    monkeypatch.setattr(saver_module.shutil, "disk_usage", lambda path: usage._replace(free=2**20))
    saver.save(state(2), {"w": torch.zeros(2**20)}, {})
    with pytest.raises(DiskError, match=r"needs 4 MiB, and 1 are free.*step-0000001 is intact"):
        saver.wait()
    assert steps(tmp_path) == [1]


def limited(task: Any, output: Path) -> int:
    """Run a task in a forked process whose files may hold 100 kB; its exit code."""
    pid = os.fork()
    if pid:
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    try:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
        task()
        os._exit(0)
    except DiskError as error:
        output.write_text(str(error))
        os._exit(6)
    finally:
        os._exit(1)


@pytest.mark.parametrize("big", ["tensors", "optimizer"])
def test_a_file_that_the_system_cuts_off(tmp_path: Path, big: str) -> None:
    """A real refusal in the middle of a write, by both libraries that write."""
    folder, data = tmp_path / "checkpoints", {"w": torch.zeros(100_000)}
    small = {"w": torch.zeros(1)}
    first = Saver(folder, None, None)
    first.save(state(1), small, small)
    first.close()

    def task() -> None:
        saver = Saver(folder, None, None)
        saver.save(state(2), *((data, small) if big == "tensors" else (small, data)))
        saver.wait()

    assert limited(task, tmp_path / "said") == 6
    assert (
        "File too large; raise the limit; step-0000001 is intact" in (tmp_path / "said").read_text()
    )
    assert [path.name for path in folder.iterdir()] == ["step-0000001"]


MOUNT = """
set -e
mount -t tmpfs -o size=20m tmpfs {folder}
{python} {script} {folder} full
mount -o remount,ro {folder}
{python} {script} {folder} read-only
umount {folder}
"""
SCRIPT = """
import sys
from pathlib import Path
import torch
from oculi.errors import DiskError
from oculi.training import checkpoint as ckpt
from oculi.training import saver as module

folder, how = Path(sys.argv[1]) / "checkpoints", sys.argv[2]
module.SPARE = -2**60  # the check beforehand is another test's
state = lambda n: ckpt.State(0, n, n, lora=False, base="b", base_tensors={}, seconds=0.0)
saver = module.Saver(folder, None, None)
if how == "full":
    saver.save(state(1), {"w": torch.zeros(2**20)}, {})
try:
    saver.save(state(2), {"w": torch.zeros(2**23 if how == "full" else 1)}, {})
    saver.wait()
except DiskError as error:
    print(error)
assert [p.name for p in folder.iterdir()] == ["step-0000001"], list(folder.iterdir())
assert ckpt.problem(folder / "step-0000001") is None
"""


@pytest.mark.slow
def test_a_disk_that_is_really_full_and_one_that_is_read_only(tmp_path: Path) -> None:
    import sys

    (tmp_path / "script.py").write_text(SCRIPT)
    (disk := tmp_path / "disk").mkdir()
    text = MOUNT.format(folder=disk, python=sys.executable, script=tmp_path / "script.py")
    try:
        allowed = subprocess.run(["unshare", "-rm", "true"], check=False).returncode == 0
    except FileNotFoundError:
        allowed = False
    if not allowed:
        pytest.skip("needs a mount namespace of its own (unshare -rm)")
    command = ["unshare", "-rm", "bash", "-c", text]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    full, read_only = done.stdout.splitlines()
    assert "No space left on device; make room; step-0000001 is intact" in full
    assert "Read-only file system; choose a folder that can be written" in read_only
