"""The one way by which text from a file gets into a page."""

from __future__ import annotations

import html
import re

LONGEST = 600  # characters of a question, an answer, a note
NAME = 80  # characters of a stage's, a task's or an objective's name

# Control characters, those that turn the direction of what follows, and lone surrogates.
_UNSAFE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


def text(value: str, limit: int = LONGEST) -> str:
    """Any text for the page, inside an element or a quoted attribute: escaped and shortened."""
    short = value if len(value) <= limit else value[: limit - 1] + "…"
    return html.escape(_UNSAFE.sub("\ufffd", short), quote=True)
