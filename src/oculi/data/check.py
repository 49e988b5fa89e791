"""Look at data files before a run does: every bad row by name, and what the good ones hold.

Training leaves bad rows out and goes on; here each is listed with its file, line, id and reason,
pictures are really decoded, and nothing stops at the first defect.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from oculi.data.content import PLACEHOLDER
from oculi.data.formats import BadRow, FileScan
from oculi.data.forms import find_form
from oculi.data.kinds import find_files
from oculi.data.sample import Sample
from oculi.errors import DataError

# Longest side in pixels; the usual input sizes of vision towers are bounds.
SIDES = (32, 64, 112, 224, 336, 384, 448, 672, 896, 1024, 2048, 4096)

Progress = Callable[[int, int], None]


@dataclass
class Report:
    """What `check` found. `rows` = `good` + bad rows that stand in a file.

    `formats` and `containers` have an entry for every file, however it was named.
    """

    formats: dict[str, str | None] = field(default_factory=dict)
    containers: dict[str, str] = field(default_factory=dict)
    rows: int = 0
    good: int = 0
    with_images: int = 0
    without_images: int = 0
    images: int = 0
    turns: int = 0
    duplicates: int = 0
    literal_placeholders: int = 0
    sizes: Counter[str] = field(default_factory=Counter)
    notes: list[str] = field(default_factory=list)
    bad_rows: list[BadRow] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        """Whether every row can be used."""
        return not self.bad_rows

    @property
    def bad(self) -> int:
        """Rows that cannot be used."""
        return self.rows - self.good

    def lines(self) -> Iterator[str]:
        """Yield the report as text: each bad row, then the counts."""
        for bad in self.bad_rows:
            yield str(bad)
        for name, form in self.formats.items():
            kind = self.containers.get(name)
            yield f"{name}: {form or 'unknown format'}{f' ({kind})' if kind else ''}"
        yield f"rows {self.rows}: {self.good} good, {self.bad} bad"
        yield (
            f"good rows: {self.with_images} with images, {self.without_images} without; "
            f"{self.images} images, {self.turns} turns"
        )
        for note in self.notes:
            yield f"note: {note}"
        if self.duplicates:
            yield f"duplicate ids: {self.duplicates} (allowed; each row is used)"
        if self.literal_placeholders:
            yield (
                f'note: {self.literal_placeholders} rows without images hold "{PLACEHOLDER}", '
                "which is plain text there"
            )
        if self.images:
            yield "longest side of the images in pixels:"
            for label, count in self._histogram():
                yield f"  {label:>9}  {count}"

    def to_json(self) -> dict[str, Any]:
        """Return the report as plain values for `json.dump`."""
        values = {key: value for key, value in vars(self).items() if key != "bad_rows"}
        values["sizes"] = dict(self._histogram())
        values |= {"ok": self.ok, "bad": self.bad}
        return values | {"bad_rows": [asdict(bad) for bad in self.bad_rows]}

    def _histogram(self) -> list[tuple[str, int]]:
        order = [*map(_label, SIDES), _label(SIDES[-1] + 1)]
        return [(label, self.sizes[label]) for label in order if self.sizes[label]]


def check(
    paths: Iterable[Path],
    image_root: Path | None = None,
    decode: bool = True,
    on_progress: Progress | None = None,
    *,
    form: str | None = None,
    for_training: bool = True,
) -> Report:
    """Read data files to the end and report every bad row; bad input never raises.

    Every image's header is read; with `decode` its pixels are too, which alone finds truncated
    files. `paths` may hold patterns and folders. `image_root` defaults to each file's own folder,
    `form` to what the rows' keys tell; a name that is no format raises DataError. `on_progress` is
    called with the bytes of the data files done and in total.
    """
    if form is not None:
        find_form(form)
    report = Report()
    scans: list[FileScan] = []
    for file in _files(paths, report):
        try:
            scans.append(FileScan(file, image_root, form=form, for_training=for_training))
        except DataError as error:
            _note(report, file, error)
    before, total = 0, sum(rows.size for rows in scans)
    for rows in scans:
        for _ in _check_file(rows, decode, report):
            if on_progress is not None:
                on_progress(before + rows.done, total)
        before += rows.size
    return report


def _files(paths: Iterable[Path], report: Report) -> Iterator[Path]:
    for path in map(Path, paths):
        try:
            yield from find_files(path)
        except DataError as error:
            _note(report, path, error)


def _note(report: Report, path: Path, error: DataError) -> None:
    """A whole file that cannot be used, as a bad row without a number."""
    report.bad_rows.append(BadRow("", 0, str(error).removeprefix(f"{path}: "), str(path)))
    report.formats.setdefault(str(path), None)


def _check_file(rows: FileScan, decode: bool, report: Report) -> Iterator[None]:
    """Enter a file into the report, giving way after every row."""
    name = str(rows.path)
    try:
        for found in rows:
            report.rows += 1
            if isinstance(found, BadRow):
                report.bad_rows.append(found)
            else:
                _check_sample(found[1], name, found[0].line, decode, report)
            yield
    except DataError as error:
        _note(report, rows.path, error)
    report.formats[name] = rows.form
    report.containers[name] = rows.container.kind
    report.duplicates += rows.duplicates
    report.notes += [f"{name}: {rows.container.note}"] if rows.container.note else []
    rows.container.close()


def _check_sample(sample: Sample, file: str, line: int, decode: bool, report: Report) -> None:
    found = []
    for image in sample.images:
        try:
            found.append(image.load().size if decode else image.size())
        except DataError as error:
            report.bad_rows.append(BadRow(sample.id, line, str(error), file))
            return
    report.good += 1
    report.turns += len(sample.messages)
    report.images += len(found)
    report.sizes.update(_label(max(size)) for size in found)
    if found:
        report.with_images += 1
        return
    report.without_images += 1
    turns = (message.text for message in sample.messages if message.role == "user")
    report.literal_placeholders += any(PLACEHOLDER in text for text in turns)


def _label(side: int) -> str:
    below = next((bound for bound in SIDES if side <= bound), None)
    return f"> {SIDES[-1]}" if below is None else f"<= {below}"
