"""What a run says while it works: a line with ETA on the terminal, files of JSON lines, TensorBoard."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from oculi import durable

METRICS, EVENTS, BAD_SAMPLES = "metrics.jsonl", "events.jsonl", "bad-samples.jsonl"
SHOWN = "shown.jsonl"


class RunLog:
    """Writes one record per logged step, and what is out of the ordinary into files of its own.

    Args:
        run: the run's folder; ``metrics.jsonl`` has a line per logged step, ``events.jsonl`` one per
            loss spike, step that was not finite and damaged checkpoint, ``bad-samples.jsonl`` one per
            sample that was left out, ``shown.jsonl`` one per checkpoint at which an objective has shown
            what it makes of pictures. Every line has ``stage`` and ``step``.
        quiet: no progress on the terminal.
    """

    def __init__(self, run: Path, quiet: bool = False) -> None:
        self._run = run
        self._file = (run / METRICS).open("a", encoding="utf-8")
        self._quiet = quiet
        self._board = _tensorboard(run)
        self._started = time.monotonic()
        self._first_step: int | None = None

    def record(self, entry: dict[str, Any], total_steps: int) -> None:
        """Log a step; ``total_steps`` counts over all stages, for TensorBoard."""
        self._file.write(json.dumps(entry) + "\n")
        self._file.flush()
        durable.reach("logged", self._run / METRICS)
        if self._board:
            for key, value in entry.items():
                if isinstance(value, float):
                    self._board.add_scalar(f"{entry['stage']}/{key}", value, total_steps)
        self._progress(entry)

    def event(self, kind: str, stage: str, step: int, **what: Any) -> None:
        """Write down something out of the ordinary, and say it."""
        self._append(EVENTS, {"event": kind, "stage": stage, "step": step, **what})
        self.say(f"{kind} at step {step} of stage {stage}; see {self.place(EVENTS)}")

    def bad_sample(self, stage: str, step: int, **what: Any) -> None:
        """Write down a sample that was left out."""
        self._append(BAD_SAMPLES, {"stage": stage, "step": step, **what})

    def shown(self, stage: str, step: int, total_steps: int, **what: Any) -> None:
        """Write down what an objective shows at a checkpoint: its ``objective`` and ``scores``."""
        self._append(SHOWN, {"stage": stage, "step": step, **what})
        for name, value in what["scores"].items() if self._board else ():
            self._board.add_scalar(f"{stage}/{what['objective']}/{name}", value, total_steps)

    def place(self, name: str) -> str:
        """Where a file of the log is, for messages."""
        return str(self._run / name)

    def _append(self, name: str, entry: dict[str, Any]) -> None:
        with (self._run / name).open("a", encoding="utf-8") as file:
            file.write(json.dumps(entry) + "\n")
        durable.reach("logged", self._run / name)

    def sync(self) -> None:
        """Wait until all that was written is on the disk: a checkpoint must not be ahead of its log."""
        for name in (METRICS, EVENTS, BAD_SAMPLES, SHOWN):
            if (self._run / name).exists():
                durable.sync(self._run / name)
        durable.sync(self._run)

    def rewind(self, keep: Callable[[dict[str, Any]], bool]) -> None:
        """Drop the lines that ``keep`` refuses, and a last line that was cut by a kill."""
        self._file.close()
        for name in (METRICS, EVENTS, BAD_SAMPLES, SHOWN):
            if (self._run / name).exists():
                durable.write_text(self._run / name, _kept(self._run / name, keep))
        self._file = (self._run / METRICS).open("a", encoding="utf-8")

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

    def warn(self, text: str) -> None:
        """A line that is printed in any case."""
        print(text, file=sys.stderr, flush=True)

    def close(self) -> None:
        """Close the files; what was logged is in them already."""
        with suppress(OSError):  # a full disk, which has been said by what wrote before
            self._file.close()
            if self._board:
                self._board.close()


class SilentLog(RunLog):
    """Of a rank that is not the first: writes nothing and says nothing."""

    def __init__(self, run: Path) -> None:
        self._run = run

    def record(self, entry: dict[str, Any], total_steps: int) -> None: ...

    def event(self, kind: str, stage: str, step: int, **what: Any) -> None: ...

    def bad_sample(self, stage: str, step: int, **what: Any) -> None: ...

    def shown(self, stage: str, step: int, total_steps: int, **what: Any) -> None: ...

    def sync(self) -> None: ...

    def rewind(self, keep: Callable[[dict[str, Any]], bool]) -> None: ...

    def start_stage(self) -> None: ...

    def say(self, text: str) -> None: ...

    def warn(self, text: str) -> None: ...

    def close(self) -> None: ...


def _kept(path: Path, keep: Callable[[dict[str, Any]], bool]) -> str:
    kept = []
    # After a power cut the end of a file may be anything.
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            entry = json.loads(line)
            wanted = isinstance(entry, dict) and keep(entry)
        except (ValueError, KeyError, TypeError):
            continue
        kept += [line + "\n"] if wanted else []
    return "".join(kept)


def _tensorboard(run: Path) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:  # the extra "log" is not installed; metrics.jsonl has everything
        return None
    return SummaryWriter(str(run / "tensorboard"))
