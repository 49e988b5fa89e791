"""Files that are whole after a kill or a power cut, or not there at all.

What must survive is written aside, fsynced, renamed, and then the folder is fsynced that holds the
name; without the last step a power cut may take the name back. Every such step reports itself to
``reach``: that is where ``oculi bench kills`` kills, and in production it is one comparison.
"""

from __future__ import annotations

import errno
import os
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from oculi.errors import DiskError

PARTIAL, REMOVED = ".partial", ".removed"  # suffixes of what is not there yet, and not any more

# Told the name of a place, the path it is about and, of a rename, what that was called before; set by
# the kill harness alone.
observer: Callable[[str, Path | None, Path | None], None] | None = None

_FULL = {errno.ENOSPC: "make room", errno.EDQUOT: "make room", errno.EFBIG: "raise the limit"}
_CLOSED = {
    errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EEXIST, errno.ENAMETOOLONG,
}  # fmt: skip
_IN_TEXT = re.compile(r"\(os error (\d+)\)")  # how safetensors hands on an errno


def reach(place: str, path: Path | None = None, before: Path | None = None) -> None:
    """A place at which the process may die; nothing happens there unless the harness looks on."""
    if observer is not None:
        observer(place, path, before)


def sync(path: Path) -> None:
    """Wait until a file, or the names in a folder, are on the disk; raises OSError."""
    reach("sync", path)
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    reach("synced", path)


def sync_tree(folder: Path) -> None:
    """``sync`` for every file and folder below a folder, and for itself; raises OSError."""
    for path in sorted(folder.iterdir()):
        if path.is_dir():
            sync_tree(path)
        elif path.is_file():
            sync(path)
    sync(folder)


def move(source: Path, target: Path) -> None:
    """Give what is complete its name, for good: rename, then fsync the folder; raises OSError."""
    reach("rename", target, source)
    source.rename(target)
    reach("renamed", target, source)
    sync(target.parent)


def write_text(path: Path, text: str) -> None:
    """Replace a file's text by another as a whole; raises OSError."""
    write_bytes(path, text.encode("utf-8"))


def write_bytes(path: Path, content: bytes) -> None:
    """Replace what a file holds as a whole; raises OSError."""
    partial = path.with_name(path.name + PARTIAL)
    reach("write", partial)
    partial.write_bytes(content)
    sync(partial)
    move(partial, path)


def discard(folder: Path) -> None:
    """Remove a folder, such that one removed by half never looks like one; raises OSError."""
    if not folder.exists():
        return
    removed = folder.with_suffix(REMOVED)
    shutil.rmtree(removed, ignore_errors=True)
    move(folder, removed)
    reach("remove", removed)
    shutil.rmtree(removed)


def clean(folder: Path) -> None:
    """Remove what a kill has left in a folder of things that are written aside."""
    for path in folder.glob("*"):
        if path.suffix in (PARTIAL, REMOVED):
            shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink()


def disk_problem(error: BaseException) -> tuple[str, str] | None:
    """Why a write failed and what to do about it, or None if the disk is not the reason.

    torch and safetensors wrap what the system said; it is looked for in the chain of errors.
    """
    link: BaseException | None = error
    while link is not None:
        number = link.errno if isinstance(link, OSError) else None
        if found := _IN_TEXT.search(str(link)):
            number = int(found[1])
        if number in _FULL:
            return os.strerror(number), _FULL[number]
        if number in _CLOSED:
            return os.strerror(number), "choose a folder that can be written"
        if number == errno.EIO:
            return os.strerror(number), "look at the disk"
        link = link.__cause__ or link.__context__
    return None


@contextmanager
def disk_errors(what: str, hint: str = "") -> Iterator[None]:
    """Turn what the system says about a full, read-only or foreign disk into one line.

    Args:
        what: begins the message, as ``"the run folder X"``.
        hint: what else to do, with its punctuation.

    Raises:
        DiskError: instead of the OSError or of what a library has made of it.
    """
    try:
        yield
    except (OSError, RuntimeError, ValueError) as error:
        raise_disk_error(error, what, hint)
        raise
    except Exception as error:
        if type(error).__name__ == "SafetensorError":  # not imported here: commands start fast
            raise_disk_error(error, what, hint)
        raise


def raise_disk_error(error: BaseException, what: str, hint: str = "") -> None:
    """Raise the DiskError for what went wrong, if the disk is the reason; else return."""
    if problem := disk_problem(error):
        why, remedy = problem
        raise DiskError(f"{what} cannot be written: {why}; {remedy}{hint}") from None
