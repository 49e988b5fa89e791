"""What was measured against what was promised."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Goal:
    """One promise.

    Attributes:
        name: what is compared. measured, limit: numbers of one unit.
        at_least: the limit is a least value, not a most.
        advice: depends on the clock, so that missing it fails nothing.
    """

    name: str
    measured: float
    limit: float
    at_least: bool = False
    advice: bool = False

    @property
    def met(self) -> bool:
        """Whether it holds."""
        return self.measured >= self.limit if self.at_least else self.measured <= self.limit

    def to_dict(self) -> dict[str, Any]:
        """For ``--json``."""
        return {
            "name": self.name, "measured": self.measured, "limit": self.limit,
            "at_least": self.at_least, "advice": self.advice, "met": self.met,
        }  # fmt: skip

    def line(self) -> str:
        """For the terminal and for Markdown."""
        sign = ">=" if self.at_least else "<="
        verdict = "met" if self.met else "missed, advice only" if self.advice else "MISSED"
        return f"{self.name}: {self.measured:.3g} {sign} {self.limit:g}, {verdict}"


def table(heads: list[str], rows: list[list[str]]) -> list[str]:
    """A table that reads well as text and as Markdown."""
    cells = [heads, *rows]
    widths = [max(len(row[i]) for row in cells) for i in range(len(heads))]

    def line(row: list[str]) -> str:
        first, *others = row
        padded = [first.ljust(widths[0])]
        padded += [cell.rjust(width) for cell, width in zip(others, widths[1:], strict=True)]
        return f"| {' | '.join(padded)} |"

    rule = [f"{'-' * (widths[0] + 2)}", *(f"{'-' * (width + 1)}:" for width in widths[1:])]
    return [line(heads), f"|{'|'.join(rule)}|", *map(line, rows)]
