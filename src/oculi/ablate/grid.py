"""The table of a grid: what one row's models lose in each cell against one of them, and the goal."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Any

from oculi.ablate.judge import QUICK, Judged, Results, judge
from oculi.ablate.metrics import shown_difference
from oculi.ablate.spec import Cell, Grid


def grid_lines(grid: Grid, results: Results, seeds: Sequence[int], quick: bool) -> list[str]:
    """Title, what the numbers are, and a Markdown table with a line for each cell."""
    most = shown_difference(f"score@{grid.reference}", grid.most, sign="")
    questions = len(results[grid.row, seeds[0]].answers.get(f"score@{grid.reference}", ()))
    head = [
        "cell", *grid.labels, "tokens", f"{grid.row} (%)",
        f"loss against {grid.reference}, 95 % interval", f"at most {most}",
        *(f"{row} (%)" for row in grid.beside),
    ]  # fmt: skip
    lines = [head, ["---"] * len(head)]
    for cell in grid.cells:
        lines.append(_line(grid, cell, results, seeds, quick))
    return [
        f"## {grid.title}", "",
        f"The same {questions:,} questions in each cell, paired one by one; tokens are those of "
        f"{grid.row}. A verdict in brackets is of a cell of which nothing is claimed.", "",
        *(f"| {' | '.join(cells)} |" for cells in lines),
    ]  # fmt: skip


def _line(grid: Grid, cell: Cell, results: Results, seeds: Sequence[int], quick: bool) -> list[str]:
    name = f"score@{cell.name}"
    tokens = _mean(results, grid.row, f"tokens@{cell.name}", seeds)
    loss, said = "reference", ""
    if cell.name != grid.reference:
        judged = judge(grid.claim(cell), results, seeds)
        loss, said = judged.shown(), _said(judged, cell, quick)
    rows = (grid.row, *grid.beside)
    own, *others = (_shown(_mean(results, row, name, seeds), 1, 100) for row in rows)
    return [cell.name, *cell.labels, _shown(tokens, 0), own, loss, said, *others]


def _said(judged: Judged, cell: Cell, quick: bool) -> str:
    if quick:
        return QUICK
    words = {"confirmed": "yes", "not confirmed": "no"}.get(judged.verdict, judged.verdict)
    return f"**{words}**" if cell.claimed else f"({words})"


def _mean(results: Results, row: str, metric: str, seeds: Sequence[int]) -> float | None:
    found = [results[row, seed].values.get(metric) for seed in seeds]
    known = [value for value in found if value is not None]
    return statistics.fmean(known) if known else None


def _shown(value: float | None, digits: int, scale: int = 1) -> str:
    return "-" if value is None else f"{scale * value:.{digits}f}"


def grid_json(
    grid: Grid, results: Results, seeds: Sequence[int], quick: bool
) -> list[dict[str, Any]]:
    """For ``report.json``: an entry for each cell; shares, not per cent."""
    found = []
    for cell in grid.cells:
        judged = judge(grid.claim(cell), results, seeds)
        interval = judged.interval
        found.append(
            {
                "cell": cell.name,
                **dict(zip(grid.labels, cell.labels, strict=True)),
                "tokens": _mean(results, grid.row, f"tokens@{cell.name}", seeds),
                "exact": {
                    row: _mean(results, row, f"score@{cell.name}", seeds)
                    for row in (grid.row, *grid.beside)
                },
                "loss": interval and interval.effect,
                "interval": interval and [interval.low, interval.high],
                "most": grid.most,
                "claimed": cell.claimed or None,
                "sample": judged.sample,
                "verdict": QUICK if quick else judged.verdict,
            }
        )
    return found
