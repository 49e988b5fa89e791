"""Files that are whole or not there: the order of what reaches the disk, and errors in one line."""

import errno
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import SafetensorError

from oculi import durable
from oculi.errors import DiskError


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str]]:
    """Every place that is reached, with the name of its path."""
    places: list[tuple[str, str]] = []

    def note(place: str, path: Path | None, before: Path | None) -> None:
        places.append((place, "" if path is None else path.name))

    monkeypatch.setattr(durable, "observer", note)
    return places


def test_a_text_is_synced_before_it_has_its_name_and_the_name_after(
    tmp_path: Path, seen: list[tuple[str, str]]
) -> None:
    file = tmp_path / "a.yaml"
    file.write_text("old")
    durable.write_text(file, "new")
    assert file.read_text() == "new" and list(tmp_path.iterdir()) == [file]
    assert seen == [
        ("write", "a.yaml.partial"), ("sync", "a.yaml.partial"), ("synced", "a.yaml.partial"),
        ("rename", "a.yaml"), ("renamed", "a.yaml"), ("sync", tmp_path.name),
        ("synced", tmp_path.name),
    ]  # fmt: skip


def test_what_is_synced_is_given_to_the_system(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "b").write_text("x")
    (tmp_path / "a").write_text("x")
    synced: list[str] = []
    monkeypatch.setattr(os, "fsync", lambda d: synced.append(os.readlink(f"/proc/self/fd/{d}")))
    durable.sync_tree(tmp_path)
    assert synced == [str(tmp_path / name) for name in ("a", "in/b", "in")] + [str(tmp_path)]


def test_a_folder_that_is_removed_by_half_has_lost_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "step-1"
    folder.mkdir()
    (folder / "a").write_text("x")
    (tmp_path / "step-2.partial").mkdir()
    (tmp_path / "b.yaml.partial").write_text("cut")

    def killed(*arguments: Any, **named: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(durable.shutil, "rmtree", killed)
        with pytest.raises(KeyboardInterrupt):
            durable.discard(folder)
    (tmp_path / "step-3").mkdir()
    durable.discard(tmp_path / "step-1")  # it is gone: nothing to do
    durable.clean(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["step-3"]


def chained(number: int) -> RuntimeError:
    """What torch raises after a write that the system refused."""
    try:
        try:
            raise OSError(number, os.strerror(number))
        except OSError:
            raise RuntimeError("[enforce fail] . unexpected pos 704 vs 598") from None
    except RuntimeError as error:
        return error


FULL = "No space left on device; make room"


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (OSError(errno.ENOSPC, "x"), FULL),
        (chained(errno.ENOSPC), FULL),
        (SafetensorError(f"Error: I/O error: full (os error {errno.ENOSPC})"), FULL),
        (OSError(errno.EDQUOT, "x"), "make room"),
        (OSError(errno.EROFS, "x"), "Read-only file system; choose a folder that can be written"),
        (PermissionError(errno.EACCES, "x"), "Permission denied; choose a folder"),
        (OSError(errno.EIO, "x"), "look at the disk"),
    ],
)
def test_a_disk_that_does_not_write_is_one_line(error: Exception, said: str) -> None:
    with pytest.raises(DiskError) as caught, durable.disk_errors("the file X", "; Y is intact"):
        raise error
    message = str(caught.value)
    assert message.startswith("the file X cannot be written: ") and said in message
    assert message.endswith("; Y is intact") and "\n" not in message
    assert caught.value.exit_code == 6


@pytest.mark.parametrize("error", [RuntimeError("a bug"), FileNotFoundError(2, "x"), KeyError("x")])
def test_other_errors_stay_what_they_are(error: Exception) -> None:
    with pytest.raises(type(error)) as caught, durable.disk_errors("the file X"):
        raise error
    assert caught.value is error


def test_torch_says_what_the_system_said(tmp_path: Path) -> None:
    """Given an open file; given a path it would say ``unexpected pos``, and nothing else."""
    with (
        pytest.raises(DiskError, match="No space left on device"),
        durable.disk_errors("/dev/full"),
        open("/dev/full", "wb") as file,
    ):
        torch.save({"a": torch.zeros(100_000)}, file)
