"""``oculi bench kills``: all kills and planted defects, spread over the cores, and what came of it."""

from __future__ import annotations

import gc
import json
import os
import platform
import resource
import shutil
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NoReturn

from oculi.bench.kills import Job, Kills, quiet_libraries
from oculi.bench.kills_planted import DEFECTS, Defect
from oculi.bench.kills_world import build_world
from oculi.training.run import train

ROOM = 2**29  # bytes, several times what a run of the harness needs
AGAIN = 7  # the resumed run dies at its place of this number, or of a multiple


@dataclass
class Report:
    """What a run of the harness found.

    Attributes:
        places: numbered places of one training. kills: processes that were killed, by mode.
        mismatches: one line for each resumed run that is not the whole one.
        planted: what caught each defect, or None.
        seconds: all of it took. cpu_seconds: of all processes; the time on idle cores is near to it
            divided by their number.
    """

    places: int
    kills: Counter[str] = field(default_factory=Counter)
    mismatches: list[str] = field(default_factory=list)
    planted: dict[str, str | None] = field(default_factory=dict)
    seconds: float = 0.0
    cpu_seconds: float = 0.0

    @property
    def caught(self) -> int:
        """Planted defects that were noticed."""
        return sum(found is not None for found in self.planted.values())

    @property
    def ok(self) -> bool:
        """Nothing differs, and nothing planted was missed."""
        return not self.mismatches and self.caught == len(self.planted)

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return {
            "kills": self.kills.total(), "mismatches": len(self.mismatches),
            "planted": len(self.planted), "planted_caught": self.caught,
            "seconds": round(self.seconds, 1), "cpu_seconds": round(self.cpu_seconds, 1),
            "places": self.places, "by_mode": dict(self.kills),
            "first_mismatches": self.mismatches[:20], "caught_by": self.planted,
        }  # fmt: skip

    def lines(self) -> list[str]:
        """For people."""
        by_mode = ", ".join(f"{count} {mode}" for mode, count in self.kills.items())
        return [
            f"{self.kills.total()} kills at {self.places} places ({by_mode}): "
            f"{len(self.mismatches)} mismatches",
            *self.mismatches[:20],
            f"{self.caught} of {len(self.planted)} planted defects caught",
            *(f"  missed: {name}" for name, found in self.planted.items() if found is None),
            f"{self.seconds:.1f} s, {self.cpu_seconds:.1f} s of CPU time",
        ]

    def markdown(self, command: str) -> str:
        """A page for benchmarks/."""
        rows = [f"| {name} | {found or 'missed'} |" for name, found in self.planted.items()]
        return "\n".join(
            [
                "# Kills",
                "",
                f"Written by `{command}` on {datetime.now(UTC):%Y-%m-%d}, {os.cpu_count()} cores, "
                f"{platform.machine()}. Places are calls of `durable.reach` on the path of `oculi",
                "train`; what is killed, torn and compared is said in `docs/reliability.md`.",
                "",
                *(f"- {line}" for line in self.lines()),
                "",
                "| planted defect | caught by |",
                "|---|---|",
                *rows,
                "",
            ]
        )


def bench_kills(
    quick: bool = False,
    thorough: bool = False,
    lanes: int | None = None,
    on_progress: Callable[[int, int], None] | None = None,
) -> Report:
    """Kill, resume and compare; see ``oculi.bench.kills``.

    Args:
        quick, thorough: see ``all_jobs``.
        lanes: processes; None: one for each core.
        on_progress: told how many kills and defects are done.
    """
    began = time.monotonic()
    with (
        tempfile.TemporaryDirectory(prefix="oculi-kills-", dir=fast_folder()) as name,
        quiet_libraries(),
    ):
        folder = Path(name)
        recipe = build_world(folder / "world")
        train(recipe, folder / "warm", quiet=True)  # imports what forked processes then have
        shutil.rmtree(folder / "warm")
        gc.freeze()
        kills = Kills(folder / "main", recipe)
        tasks: list[Job | Defect] = [*DEFECTS, *all_jobs(kills, quick, thorough)]

        def work(task: Job | Defect, lane: int) -> Any:
            if isinstance(task, Defect):
                return plant(task, folder / f"planted-{lane}", recipe)
            return asdict(kills.run(task, lane))

        results = spread(tasks, work, lanes or os.cpu_count() or 1, on_progress)
    report = Report(places=len(kills.places))
    for task, result in zip(tasks, results, strict=True):
        if isinstance(task, Defect):
            report.planted[task.name] = result
            continue
        report.kills[task.mode] += result["kills"]
        if result["problem"]:
            report.mismatches.append(
                f"{task.mode} kill {task.number}, {task.label} ({task.occurrence}): "
                f"{result['problem']}"
            )
    report.seconds = time.monotonic() - began
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    report.cpu_seconds = sum(each.ru_utime + each.ru_stime for each in used)
    return report


def fast_folder() -> str | None:
    """A file system in memory, if there is one with room: fsync waits for no disk there, and what an
    fsync is worth is simulated. None: the usual place."""
    memory = "/dev/shm"
    if not os.access(memory, os.W_OK) or shutil.disk_usage(memory).free < ROOM:
        return None
    return memory


def all_jobs(kills: Kills, quick: bool = False, thorough: bool = False) -> list[Job]:
    """The kills of a run of the harness.

    Args:
        quick: every place clean, and three of four torn.
        thorough: besides every place clean and torn, and bits flipped in what steps go on from, each
            of them again with a second kill while the first one is recovered from.
    """
    clean, torn = kills.jobs("clean"), kills.jobs("torn")
    if quick:
        return clean + [job for i, job in enumerate(torn) if i % 4]
    jobs = clean + torn + [job for job in kills.jobs("rot") if job.label == "step"]
    if not thorough:
        return jobs
    return jobs + [replace(job, again=AGAIN * (1 + i % 9)) for i, job in enumerate(jobs)]


def plant(defect: Defect, folder: Path, recipe: Any) -> str | None:
    """Kill the defective trainer at a few places; what gave it away, or None."""
    shutil.rmtree(folder, ignore_errors=True)
    kills = Kills(folder, recipe, defect.patched, defect.delay)
    for job in defect.jobs(kills):
        if problem := kills.run(job, 0).problem:
            return problem.replace(f"{folder}/", "").replace(f"{folder.parent}/", "")
    return None


def spread(
    tasks: Sequence[Any],
    work: Callable[[Any, int], Any],
    lanes: int,
    on_progress: Callable[[int, int], None] | None = None,
) -> list[Any]:
    """``work(task, lane)`` for each task, in forked processes; what it returns is plain values."""
    with tempfile.TemporaryDirectory(prefix="oculi-lanes-") as name:
        folder = Path(name)
        read, write = os.pipe()
        pids = []
        for lane in range(lanes):
            pid = os.fork()
            if pid == 0:
                os.close(read)
                _lane(folder / str(lane), tasks[lane::lanes], work, lane, write)
            pids.append(pid)
        os.close(write)
        done = 0
        while ticks := os.read(read, 1024):  # a byte for each task, until the last lane has ended
            done += len(ticks)
            if on_progress is not None:
                on_progress(done, len(tasks))
        os.close(read)
        codes = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids]
        texts = [(folder / str(lane)).read_text() for lane in range(lanes)]
    results: list[Any] = [None] * len(tasks)
    for lane, (code, text) in enumerate(zip(codes, texts, strict=True)):
        if code:
            raise RuntimeError(text)
        results[lane::lanes] = json.loads(text)
    return results


def _lane(
    output: Path, tasks: Sequence[Any], work: Callable[[Any, int], Any], lane: int, ticks: int
) -> NoReturn:
    code, text, results = 1, "", []
    try:
        for task in tasks:
            results.append(work(task, lane))
            os.write(ticks, b".")
        text, code = json.dumps(results), 0
    except BaseException:
        text = traceback.format_exc()
    finally:
        output.write_text(text)
        os._exit(code)
