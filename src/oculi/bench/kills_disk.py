"""A disk that remembers what was fsynced: where a process dies, and what a power cut leaves of it.

After a plain kill the system writes out all that the process has handed over. After a power cut only
what was fsynced is certain: the rest of a file may be cut off or be anything, and a rename is taken
back unless the folder was fsynced since.
"""

from __future__ import annotations

import os
import random
import shutil
import signal
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path

SIDE = "committed.txt"  # beside the run: the checkpoints that the process was told are safe


@dataclass
class Disk:
    """To be set as ``durable.observer``: kills this process at one place.

    Args:
        run: the run's folder.
        label: the place, or None to let the run go on to its end; see ``labels``.
        occurrence: of that place, from 0.
        nth: instead of a label: the place of this number, whatever it is.
        torn: leave only what was fsynced.
        seed: of what becomes of the rest.
        delay: seconds that every save takes longer, so that training gets ahead of it.

    Attributes:
        labels: of every place that was reached, in order.
    """

    run: Path
    label: str | None = None
    occurrence: int = 0
    nth: int | None = None
    torn: bool = False
    seed: int = 0
    delay: float = 0.0
    labels: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._lock = threading.Lock()
        self._synced = {str(p): p.stat().st_size for p in self.run.rglob("*") if p.is_file()}
        self._renames: list[tuple[Path, Path, bytes | None]] = []
        self._seen = 0

    def __call__(self, place: str, path: Path | None, before: Path | None) -> None:
        """Note what happens, and die here if this is the place."""
        if self.delay and place == "write":
            time.sleep(self.delay)
        with self._lock:
            self._note(place, path, before)
            if place in ("synced", "renamed"):
                return  # the place before or after it sees the same disk
            where = "" if path is None else f":{path.relative_to(self.run.parent)}"
            self.labels.append(label := f"{place}{where}")
            if self.nth == len(self.labels) - 1:
                self._die()
            if label == self.label:
                if self._seen == self.occurrence:
                    self._die()
                self._seen += 1

    def _note(self, place: str, path: Path | None, before: Path | None) -> None:
        if path is None:
            return
        if place == "committed":
            with (self.run.parent / SIDE).open("a") as file:
                file.write(path.name + "\n")
        elif place == "synced" and path.is_dir():
            self._renames = [r for r in self._renames if r[1].parent != path]
        elif place == "synced":
            self._synced[str(path)] = path.stat().st_size
        elif place == "rename" and before is not None:
            self._renames.append((before, path, path.read_bytes() if path.is_file() else None))
        elif place == "renamed" and before is not None:
            self._move(str(before), str(path))

    def _move(self, source: str, target: str) -> None:
        inside = source + os.sep
        for name in [n for n in self._synced if n == source or n.startswith(inside)]:
            self._synced[target + name.removeprefix(source)] = self._synced.pop(name)

    def _die(self) -> None:
        if self.torn:
            self._lose_power()
        os.kill(os.getpid(), signal.SIGKILL)

    def _lose_power(self) -> None:
        dice = random.Random(self.seed)
        for path in sorted(self.run.rglob("*")):
            if path.is_file() and path.name != ".lock":
                self._tear(path, self._synced.get(str(path), 0), dice)
        for source, target, overwritten in reversed(self._renames):
            # The rename itself may not have come to pass: then there is nothing to take back.
            if not source.exists() and target.exists() and source.parent.exists():
                shutil.move(target, source)
                if overwritten is not None:
                    target.write_bytes(overwritten)

    @staticmethod
    def _tear(path: Path, certain: int, dice: random.Random) -> None:
        """Cut off a part of what was not fsynced, or make it anything."""
        data = path.read_bytes()
        rest = len(data) - certain
        if rest <= 0:
            return
        left = dice.randrange(rest)
        if dice.random() < 0.5:
            path.write_bytes(data[: certain + left])
        else:
            path.write_bytes(data[: certain + left] + dice.randbytes(rest - left))


def flip(file: Path, dice: random.Random) -> str:
    """Flip one bit of a file; returns which."""
    data = bytearray(file.read_bytes())
    bit = dice.randrange(8 * len(data))
    data[bit // 8] ^= 1 << bit % 8
    file.write_bytes(data)
    return f"bit {bit} of {file.name}"
