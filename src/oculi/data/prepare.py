"""`oculi data prepare`: read data files once, so that no training has to.

Two passes: `FileScan` finds the rows of every file, then parts of them are measured; both by
several processes, each piece of work kept as it is done. At the end the pieces become flat arrays
(`oculi.data.prepared`), and what could not be used a quarantine file.
"""

from __future__ import annotations

import fcntl
import itertools
import json
import os
import shutil
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from pydantic import ValidationError

from oculi.data.formats import BadRow, default_root
from oculi.data.forms import find_form
from oculi.data.index import processor_fingerprint
from oculi.data.kinds import PREPARED, PREPARING, find_files, is_prepared, open_container
from oculi.data.measuring import PART_ROWS, Job, Part, write
from oculi.data.phrasings import Phrasings
from oculi.data.prepared import (
    ARRAYS,
    Array,
    Manifest,
    Plan,
    SourceFile,
    file_sum,
    open_shards,
    read_manifest,
)
from oculi.data.preparereport import make_report, reason
from oculi.data.shards import ShardedRows
from oculi.data.workers import run_all
from oculi.errors import DataError

if TYPE_CHECKING:
    from oculi.model import OculiProcessor

QUARANTINE, REPORT = "quarantine.jsonl", "report.md"
_PIECES = "parts"
_OURS = (  # the one that says what the folder is goes last
    *(f"{name}.npy" for name in ARRAYS),
    *(QUARANTINE, REPORT, "report.json", PREPARING),
)

Progress = Callable[[int, int], None]


def prepare(
    paths: Iterable[Path],
    out: Path,
    processor: OculiProcessor,
    *,
    image_root: Path | None = None,
    form: str | None = None,
    tag: str | None = None,
    max_length: int | None = None,
    min_edge: int | None = None,
    phrasings: Phrasings | None = None,
    workers: int = 1,
    overwrite: bool = False,
    on_file: Progress | None = None,
    on_progress: Progress | None = None,
) -> Path:
    """Prepare data files for training with one processor; go on where an earlier try has stopped.

    Args:
        paths: files, patterns or folders, in the order of the rows.
        out: the folder to write.
        processor: whose tokens are counted.
        image_root, form, tag: as of a source in a recipe.
        max_length: rows of more tokens are bad ones; None: none is.
        min_edge: so are rows with a picture whose longer edge has fewer pixels; VoRA takes pictures
            above 448 (section 4.1), which is 449.
        phrasings: questions for captions; lengths are with them.
        workers: processes; the result does not depend on it.
        overwrite: start anew in a folder that holds another preparation.
        on_file: told in how many files the rows are found, and of how many.
        on_progress: told how many rows are measured, and of how many.

    Returns:
        the report, `out/report.md`.

    Raises:
        DataError: a file cannot be read, no row can be used, or `out` is taken.
    """
    if form is not None:
        find_form(form)
    plan = Plan(
        form=form,
        tag=tag,
        image_root=None if image_root is None else os.path.abspath(image_root),
        max_length=max_length,
        min_edge=min_edge,
        phrasings=phrasings.texts if phrasings else None,
        phrasings_seed=phrasings.seed if phrasings else 0,
        processor=processor_fingerprint(processor),
        files=_files(paths, image_root),
    )
    _check_place(out, plan)
    out.mkdir(parents=True, exist_ok=True)
    with _lock(out):
        if overwrite:
            _clear(out)
        if not _finished(out, plan):
            job = _begin(out, plan, processor)
            parts = _scan(job, workers, on_file)
            _measure(job, parts, workers, on_progress)
            _finish(out, job, parts)
        (out / PREPARING).unlink(missing_ok=True)
        shutil.rmtree(out / _PIECES, ignore_errors=True)
    return out / REPORT


def _files(paths: Iterable[Path], image_root: Path | None) -> tuple[SourceFile, ...]:
    files = []
    for path in paths:
        for file in find_files(Path(path)):
            container = open_container(file)
            files.append(SourceFile.of(container, image_root or default_root(file)))
            container.close()
    if not files:
        raise DataError("there are no files to prepare")
    return tuple(files)


def _check_place(out: Path, plan: Plan) -> None:
    if out.exists() and not out.is_dir():
        raise DataError(f"{out}: is a file; choose another --out")
    for file in plan.files:
        if Path(file.path).is_dir() and Path(os.path.abspath(out)).is_relative_to(file.path):
            raise DataError(
                f"{out}: lies in {file.path}, whose files are read; choose another --out"
            )
    found = {each.name for each in out.iterdir()} if out.is_dir() else set()
    # A kill may have left the first file that is written, without its name.
    found = {name for name in found if name != ".lock" and not name.startswith(f".{PREPARING}.")}
    if found and not found & {PREPARED, PREPARING}:
        raise DataError(f"{out}: exists and is not empty; choose another --out")


def _clear(out: Path) -> None:
    shutil.rmtree(out / _PIECES, ignore_errors=True)
    if is_prepared(out):
        # Not finished any more, but still ours; it holds no plan, so that nothing goes on from it.
        (out / PREPARED).replace(out / PREPARING)
    for name in _OURS:
        (out / name).unlink(missing_ok=True)


def _finished(out: Path, plan: Plan) -> bool:
    """Whether the folder is done; raises DataError when it is another plan's."""
    if not is_prepared(out):
        return False
    _compare(out, read_manifest(out).plan, plan)
    return True


def _begin(out: Path, plan: Plan, processor: OculiProcessor) -> Job:
    """Write down what will be done, or compare with what was begun."""
    begun = out / PREPARING
    if begun.exists():
        try:
            old = Plan.model_validate_json(begun.read_bytes())
        except (OSError, ValidationError):
            raise DataError(f"{begun}: is damaged; add --overwrite to start anew") from None
        _compare(out, old, plan)
    write(begun, lambda file: file.write(plan.model_dump_json(indent=1).encode()))
    (out / _PIECES).mkdir(exist_ok=True)
    return Job(plan, out / _PIECES, processor)


def _compare(out: Path, old: Plan, new: Plan) -> None:
    other = [name for name in Plan.model_fields if getattr(old, name) != getattr(new, name)]
    if other:
        what = "with files that have changed since, or other ones" if other[0] == "files" else ""
        raise DataError(
            f"{out}: was begun {what or f'with another {other[0]}'}; add --overwrite to start anew, "
            "or choose another --out"
        )


def _scan(job: Job, workers: int, on_file: Progress | None) -> list[Part]:
    """Find the rows of all files, and cut them into parts."""
    numbers = range(len(job.plan.files))
    waiting = [number for number in numbers if job.scanned(number) is None]
    tell = on_file or (lambda done, total: None)
    tell(len(numbers) - len(waiting), len(numbers))
    for done, _ in enumerate(run_all(job, "scan", waiting, workers), 1):
        tell(len(numbers) - len(waiting) + done, len(numbers))
    parts: list[Part] = []
    for number in numbers:
        rows = len(_there(job.scanned(number), job)[0])
        starts = range(0, rows, PART_ROWS)
        parts += [Part(number, start, min(rows, start + PART_ROWS)) for start in starts]
    return parts


def _measure(job: Job, parts: Sequence[Part], workers: int, on_progress: Progress | None) -> None:
    waiting = [part for part in parts if job.measured(part) is None]
    total = sum(part.stop - part.start for part in parts)
    done = total - sum(part.stop - part.start for part in waiting)
    for part in run_all(job, "measure", waiting, workers):
        done += part.stop - part.start
        if on_progress is not None:
            on_progress(done, total)


def _finish(out: Path, job: Job, parts: Sequence[Part]) -> None:
    """The pieces as flat arrays, then the reports, and the manifest when all is there."""
    arrays, contents, counts = _join(out, job, parts)
    reasons = _quarantine(out / QUARANTINE, job, parts)
    if not len(arrays["rows"]):
        raise DataError(_nothing(out, job))
    rows = ShardedRows(out, open_shards(job.plan, counts, arrays["rows"]))
    report = make_report(
        rows, arrays["tokens"], arrays["image_counts"], arrays["image_sizes"], contents, reasons
    )
    rows.close()
    text = "\n".join(["# Prepared data", "", *report.lines(), ""])
    write(out / REPORT, lambda file: file.write(text.encode()))
    said = json.dumps(report.to_json(), indent=1)
    write(out / "report.json", lambda file: file.write(said.encode()))
    made = {
        name: Array(length=len(array), sha256=file_sum(out / f"{name}.npy"))
        for name, array in arrays.items()
    }
    manifest = Manifest(plan=job.plan, rows=tuple(counts), arrays=made)
    write(out / PREPARED, lambda file: file.write(manifest.model_dump_json(indent=1).encode()))


def _join(
    out: Path, job: Job, parts: Sequence[Part]
) -> tuple[dict[str, NDArray[Any]], NDArray[np.uint64], list[int]]:
    """The arrays of `oculi.data.prepared`, the hashes of the rows, and good rows per file."""
    counts, images = [0] * len(job.plan.files), 0
    for part in parts:
        found = _there(job.measured(part), job)
        counts[part.file] += int(np.count_nonzero(found.tokens_R >= 0))
        images += len(found.image_sizes_I)
    lengths = {name: images if name == "image_sizes" else sum(counts) for name in ARRAYS}
    arrays = {
        name: np.lib.format.open_memmap(
            out / f"{name}.npy", mode="w+", dtype=dtype, shape=(lengths[name],)
        )
        for name, dtype in ARRAYS.items()
    }
    contents = np.empty(sum(counts), np.uint64)
    at = shown = 0
    for part in parts:
        found = _there(job.measured(part), job)
        good = found.tokens_R >= 0
        end = at + int(np.count_nonzero(good))
        table, _ = _there(job.scanned(part.file), job)
        arrays["rows"][at:end] = table[part.start : part.stop][good]
        arrays["tokens"][at:end] = found.tokens_R[good]
        arrays["image_counts"][at:end] = found.image_counts_R[good]
        contents[at:end] = found.contents_R[good]
        arrays["image_sizes"][shown : shown + len(found.image_sizes_I)] = found.image_sizes_I
        at, shown = end, shown + len(found.image_sizes_I)
    for array in arrays.values():
        array.flush()
    return dict(arrays), contents, counts


def _quarantine(path: Path, job: Job, parts: Sequence[Part]) -> Counter[str]:
    """Write the bad rows, by file and line, and count their reasons."""
    reasons: Counter[str] = Counter()
    with path.open("w", encoding="utf-8") as out:
        for bad in _bad_rows(job, parts):
            reasons[reason(bad)] += 1
            out.write(json.dumps(asdict(bad)) + "\n")
    return reasons


def _bad_rows(job: Job, parts: Sequence[Part]) -> Iterator[BadRow]:
    of_file = {
        number: list(own) for number, own in itertools.groupby(parts, lambda part: part.file)
    }
    for number in range(len(job.plan.files)):
        bad = list(_there(job.scanned(number), job)[1])
        for part in of_file.get(number, ()):
            bad += _there(job.measured(part), job).bad_rows
        yield from sorted(bad, key=lambda row: row.line)


def _nothing(out: Path, job: Job) -> str:
    with (out / QUARANTINE).open(encoding="utf-8") as file:
        first = file.readline()
    if first:
        return (
            f"no row can be used; the first: {BadRow(**json.loads(first))}; all: {out / QUARANTINE}"
        )
    return f"no row has the stage tag {job.plan.tag}"


def _there(piece: Any, job: Job) -> Any:
    if piece is None:
        raise DataError(f"{job.folder}: a piece is missing or damaged; run the same command again")
    return piece


@contextmanager
def _lock(out: Path) -> Iterator[None]:
    with (out / ".lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise DataError(f"{out}: is being prepared by another process") from None
        yield
