"""The errors a user is meant to read.

Everything that can go wrong because of a file, a setting or a row raises one of these, with one
line that says what is wrong, where, and what to do. The command line prints that line and exits;
any other exception reaching it is a bug in oculi and keeps its traceback. The exit codes are
listed in docs/reliability.md.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import ClassVar

ELSEWHERE = "elsewhere"  # the code where another process has failed, and has said why


class OculiError(Exception):
    """Base of all errors that are the input's fault; the message is one line for the user.

    `code` is a stable word for programs (JSON output, the server's error body), `exit_code` what
    the command exits with; the message is for people and may change.
    """

    code: ClassVar[str] = "error"
    exit_code: int = 2


class RecipeError(OculiError):
    """A recipe or a command-line setting is wrong."""

    code: ClassVar[str] = "recipe"


class DataError(OculiError):
    """A data file, a row in it or a picture is wrong."""

    code: ClassVar[str] = "data"


class CheckpointError(OculiError):
    """A checkpoint or model folder is missing, damaged or of another kind."""

    code: ClassVar[str] = "checkpoint"


class AblationError(OculiError):
    """An ablation is not known, or its folder holds another one."""

    code: ClassVar[str] = "ablation"


class NoUsableCheckpointError(CheckpointError):
    """A run has checkpoints, and every one of them is damaged."""

    code: ClassVar[str] = "no-usable-checkpoint"
    exit_code = 5


class BadSamplesError(DataError):
    """So many samples were bad that what is left is not the data that was meant."""

    code: ClassVar[str] = "bad-samples"
    exit_code = 3


class DiskError(OculiError):
    """A file cannot be written: the disk is full, the folder is read-only or belongs to others."""

    code: ClassVar[str] = "disk"
    exit_code = 6


class LoaderError(OculiError):
    """The processes that make batches were killed or hang."""

    code: ClassVar[str] = "loader"
    exit_code = 7


class EndpointError(OculiError):
    """A model's endpoint refuses, fails or cannot be reached."""

    code: ClassVar[str] = "endpoint"
    exit_code = 8


def nearest(name: str, known: Iterable[str]) -> str:
    """Return `; did you mean "x"?` for the known name closest to `name`, or `""` for none.

    Made to be appended to a message: `f'unknown key "{name}"{nearest(name, keys)}'`.
    """
    by_lower = {candidate.lower(): candidate for candidate in known}
    close = difflib.get_close_matches(name.lower(), by_lower, n=1, cutoff=0.6)
    return f'; did you mean "{by_lower[close[0]]}"?' if close else ""


def shown(text: str, limit: int = 60) -> str:
    """Return `text` in double quotes, safe to print: shortened, with control characters escaped.

    Ids, keys and file names come from data files; unescaped, they could move the cursor of the
    terminal that prints them or, as lone surrogates, make printing itself fail.
    """
    short = text if len(text) <= limit else text[: limit - 3] + "..."
    return '"' + "".join(c if c.isprintable() else repr(c)[1:-1] for c in short) + '"'
