"""One row of a data file: from its bytes or its values to a Sample.

What a row may hold is said in `oculi.data.forms`; what it holds besides is ignored.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any, NoReturn

from oculi.data.container import Row
from oculi.data.content import first_twice, kind, text, wrong
from oculi.data.forms import Form, find_form, recognise, without_nulls
from oculi.data.images import ImageError
from oculi.data.sample import IMAGE, RowError, Sample
from oculi.errors import shown

_ID = re.compile(rb'"id"\s*:\s*(?:"([^"\\\n]{1,200})"|(\d{1,20}))')


def parse_row(
    raw: bytes,
    path: Path,
    line: int,
    root: Path,
    form: str | None = None,
    *,
    for_training: bool = True,
) -> Sample:
    """Parse one JSON row's bytes into a valid Sample; its images are not opened.

    `form` is a name out of `oculi.data.forms`; without it the row's keys tell.
    Raises RowError (a DataError) naming file, line and id.
    """
    try:
        chosen = None if form is None else find_form(form)
        sample = build_sample(decode_row(raw, line), chosen, path, line, root)
    except RowError as error:
        raise RowError(error.reason, error.id, f"{path}:{line}") from None
    sample.validate(for_training=for_training)
    return sample


def guess_id(raw: bytes) -> str:
    """Find the id of a row that does not parse; it helps to find the row in its file."""
    match = _ID.search(raw, 0, 4096)
    return (match[1] or match[2]).decode("utf-8", "replace") if match else ""


def _no_constant(name: str) -> NoReturn:
    wrong(f"{name} is not JSON; use null or a number")


def _no_duplicates(pairs: list[tuple[str, Any]]) -> Row:
    row = dict(pairs)
    if len(row) != len(pairs) and (twice := first_twice(key for key, _ in pairs)) is not None:
        wrong(f"the key {shown(twice)} is there twice in one object")
    return row


_DECODER = json.JSONDecoder(object_pairs_hook=_no_duplicates, parse_constant=_no_constant)


def decode_row(raw: bytes, line: int) -> Row:
    """Parse one JSON object; raises RowError."""
    try:
        value = _DECODER.decode(raw.decode("utf-8"))
    except UnicodeDecodeError as error:
        wrong(f"not valid UTF-8 at byte {error.start + 1} of the row")
    except json.JSONDecodeError as error:
        place = f"line {line + error.lineno - 1}, column {error.colno}"
        wrong(f"not valid JSON: {error.msg} at {place}")
    except ValueError:
        wrong("not valid JSON: a number is too long")
    except RecursionError:
        wrong("nested too deeply")
    if not isinstance(value, dict):
        wrong(f"the row is {kind(value)}; it must be an object")
    return value


def build_sample(row: Row, form: Form | None, path: Path, line: int, root: Path) -> Sample:
    """Build the sample of a decoded row; raises RowError with the id as far as it is known.

    `form` None: the form that the row's keys tell.
    """
    id = row_id(row, f"{path.name}:{line}")
    try:
        given = without_nulls(row)
        chosen = form or recognise(row)
        if not chosen.fits(given):
            wrong(f"this is a row of the format {recognise(row).name}, not {chosen.name}")
        messages, images = chosen.build(given, root)
        modality = given.get("modality", IMAGE)
        if not isinstance(modality, str) or not modality.isidentifier():
            wrong(f'"modality" is {shown(str(modality))}; it must be a name, as image or audio')
    except ImageError as error:
        raise RowError(str(error), id) from None
    except RowError as error:
        raise RowError(error.reason, error.id or id) from None
    return Sample(id, messages, tuple(images), f"{path}:{line}", modality=modality)


def row_id(row: Row, default: str) -> str:
    value = row.get("id")
    if value is None:
        return default
    if isinstance(value, bool) or not isinstance(value, str | int):
        wrong(f'"id" is {kind(value)}; it must be a string or a whole number')
    return text(str(value), '"id"')


def has_tag(row: Row, tag: str) -> tuple[bool, list[str]]:
    """Whether a row belongs to a stage's tag, and the tags that it has.

    A row's `stage` or `stages` is one tag or a list of them; a row without any belongs to all.
    Raises RowError for anything else.
    """
    key = "stages" if row.get("stages") is not None else "stage"
    value = row.get(key)
    if value is None:
        return True, []
    names = value if isinstance(value, list) else [value]
    for name in names:
        if isinstance(name, bool) or not isinstance(name, str | int):
            wrong(f'"{key}" holds {kind(name)}; it must be a name or a list of names')
    tags = [str(name) for name in names]
    return tag in tags, tags
