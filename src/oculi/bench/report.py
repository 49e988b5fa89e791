"""What every report says about where it was made, and its form as a page."""

from __future__ import annotations

import json
import os
import platform
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from oculi.errors import OculiError

LIBRARIES = ("torch", "transformers", "peft", "accelerate")


def versions() -> dict[str, str]:
    """Versions of what was measured with."""
    found = {"python": platform.python_version()}
    for library in LIBRARIES:
        try:
            found[library] = version(library)
        except ImportError:
            found[library] = "none"
    return found


def markdown(title: str, command: str, lines: list[str]) -> str:
    """A dated report with the command that made it."""
    day = datetime.now(UTC).date().isoformat()
    made = ", ".join(f"{name} {number}" for name, number in versions().items())
    head = [
        f"# {title}",
        "",
        f"Written by `{command}` on {day}, {os.cpu_count()} cores, {made}.",
        "Counters are exact within these versions; seconds on a shared machine are advice.",
        "",
    ]
    return "\n".join([*head, *lines]) + "\n"


def write(report: Any, title: str, command: str, path: Path) -> None:
    """The page at ``path`` and its numbers beside it as JSON; raises OculiError if that fails."""
    try:
        path.write_text(markdown(title, command, report.lines()), encoding="utf-8")
        numbers = json.dumps(report.to_json(), indent=1)
        path.with_suffix(".json").write_text(numbers + "\n", encoding="utf-8")
    except OSError as error:
        raise OculiError(f"cannot write the report {path}: {error.strerror}") from None
