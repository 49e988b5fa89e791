"""What a run says while it works: a line with ETA on the terminal, metrics.jsonl, TensorBoard."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any


class RunLog:
    """Writes one record per logged step.

    Args:
        run: the run's folder.
        quiet: no progress on the terminal.
    """

    def __init__(self, run: Path, quiet: bool = False) -> None:
        self._file = (run / "metrics.jsonl").open("a", encoding="utf-8")
        self._quiet = quiet
        self._board = _tensorboard(run)
        self._started = time.monotonic()
        self._first_step: int | None = None

    def record(self, entry: dict[str, Any], total_steps: int) -> None:
        """Log a step; ``total_steps`` counts over all stages, for TensorBoard."""
        self._file.write(json.dumps(entry) + "\n")
        self._file.flush()
        if self._board:
            for key, value in entry.items():
                if isinstance(value, float):
                    self._board.add_scalar(f"{entry['stage']}/{key}", value, total_steps)
        self._progress(entry)

    def rewind(self, keep: Callable[[dict[str, Any]], bool]) -> None:
        """Drop the records that ``keep`` refuses, and a last line that was cut by a kill."""
        path = Path(self._file.name)
        self._file.close()
        kept = []
        for line in path.read_text(encoding="utf-8").splitlines():
            try:
                wanted = keep(json.loads(line))
            except ValueError:
                continue
            kept += [line + "\n"] if wanted else []
        partial = path.with_suffix(".partial")
        partial.write_text("".join(kept), encoding="utf-8")
        partial.replace(path)
        self._file = path.open("a", encoding="utf-8")

    def start_stage(self) -> None:
        """Forget the pace of the stage before."""
        self._started, self._first_step = time.monotonic(), None

    def _progress(self, entry: dict[str, Any]) -> None:
        if self._quiet:
            return
        if self._first_step is None:
            self._started, self._first_step = time.monotonic(), entry["step"]
        done = entry["step"] - self._first_step
        pace = (time.monotonic() - self._started) / done if done else 0.0
        left = pace * (entry["steps"] - entry["step"])
        eta = f"ETA {int(left // 60)}:{int(left % 60):02d}" if done else "ETA ..."
        losses = "  ".join(f"{key} {entry[key]:.3f}" for key in entry["objectives"])
        print(
            f"{entry['stage']} {entry['step']}/{entry['steps']}  loss {entry['loss']:.3f}  {losses}  "
            f"{entry['samples_per_second']:.0f} samples/s  {eta}",
            file=sys.stderr,
            flush=True,
        )

    def say(self, text: str) -> None:
        """A line for the person who waits."""
        if not self._quiet:
            print(text, file=sys.stderr, flush=True)

    def close(self) -> None:
        self._file.close()
        if self._board:
            self._board.close()


def _tensorboard(run: Path) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:  # the extra "log" is not installed; metrics.jsonl has everything
        return None
    return SummaryWriter(str(run / "tensorboard"))
