"""The table of cells: losses against the reference, the goal, and what is not claimed in brackets."""

import re
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from oculi.ablate import intervals
from oculi.ablate.grid import grid_json, grid_lines
from oculi.ablate.judge import judge
from oculi.ablate.runs import Measured
from oculi.ablate.spec import Ablation, Cell, Grid, Row
from oculi.recipes.tiny import vora_tiny

QUESTIONS = 2000
GRID = Grid(
    title="Loss against the square",
    labels=("shape",),
    cells=(
        Cell("1x1", ("square",)),
        Cell("2x1", ("wide",), "wide"),
        Cell("3x1", ("wider",), "wider"),
        Cell("4x1", ("widest",)),
    ),
    row="new",
    reference="1x1",
    most=0.03,
    paper="no number",
    beside=("old",),
)
LOST = {"1x1": 0, "2x1": 20, "3x1": 60, "4x1": 200}  # of the questions


def measured(lost: Callable[[str], int]) -> Measured:
    answers = {}
    for cell in LOST:
        wrong = lost(cell)
        answers[f"score@{cell}"] = (False,) * wrong + (True,) * (QUESTIONS - wrong)
    values = {name: sum(right) / QUESTIONS for name, right in answers.items()}
    values |= {f"tokens@{cell}": 36.0 * int(cell[0]) for cell in LOST}
    return Measured(values, answers, {}, 1.0, "finished")


@pytest.fixture
def results(monkeypatch: pytest.MonkeyPatch) -> dict[tuple[str, int], Measured]:
    monkeypatch.setattr(intervals, "RESAMPLES", 500)  # ten thousand take a second for all cells
    runs = {"new": measured(lambda cell: LOST[cell]), "old": measured(lambda cell: 1000)}
    return {(row, seed): run for row, run in runs.items() for seed in (0, 1)}


@pytest.mark.parametrize("seeds", [[0], [0, 1]])
def test_the_table(results: Any, seeds: list[int]) -> None:
    lines = grid_lines(GRID, results, seeds, quick=False)
    assert lines[0] == "## Loss against the square" and "The same 2,000 questions" in lines[2]
    header, _, *rows = ([c.strip() for c in line.split("|")[1:-1]] for line in lines[4:])
    assert header[:4] == ["cell", "shape", "tokens", "new (%)"] and header[-1] == "old (%)"
    assert header[5] == "at most 3.0 points"
    assert rows[0] == ["1x1", "square", "36", "100.0", "reference", "", "50.0"]
    verdicts = {row[0]: row[5] for row in rows[1:]}
    assert verdicts == {"2x1": "**yes**", "3x1": "**not decidable**", "4x1": "(no)"}
    assert re.fullmatch(r"\+1\.0 points \[\+0\.[567], \+1\.[345]\]", rows[1][4])


def test_the_numbers_are_the_claims(results: Any) -> None:
    assert [claim.name for claim in GRID.claims()] == ["wide", "wider"]
    found = {entry["cell"]: entry for entry in grid_json(GRID, results, [0, 1], quick=False)}
    judged = judge(GRID.claims()[0], results, [0, 1])
    assert judged.interval is not None
    assert found["2x1"]["interval"] == [judged.interval.low, judged.interval.high]
    assert found["2x1"]["verdict"] == "confirmed" and found["2x1"]["claimed"] == "wide"
    assert found["1x1"]["loss"] == 0 and found["4x1"]["claimed"] is None
    assert found["4x1"]["exact"] == {"new": 0.9, "old": 0.5} and found["4x1"]["tokens"] == 144


def test_quick_and_missing_runs(results: Any) -> None:
    assert "quick: not a result" in grid_lines(GRID, results, [0], quick=True)[7]
    gone = {**results, ("new", 0): Measured({}, {}, {}, 1.0, "not finite")}
    (line,) = [line for line in grid_lines(GRID, gone, [0], False) if line.startswith("| 2x1")]
    assert "new-seed0 has no score@1x1 (not finite)" in line and "not decidable" in line


def test_a_cell_without_a_task_is_refused() -> None:
    made: dict[str, Any] = {
        "name": "made-up", "source": "no paper", "question": "?", "base": vora_tiny,
        "rows": (Row("new"), Row("old")), "labels": (), "columns": ("score@1x1",),
        "claims": GRID.claims(),
    }  # fmt: skip
    tasks = {cell: f"playroom:1@{cell}" for cell in LOST}
    ablation = Ablation(**made, tasks=tasks, grid=GRID)
    with pytest.raises(ValueError, match='no task for the cell "4x1"'):
        replace(ablation, tasks={k: v for k, v in tasks.items() if k != "4x1"})
    with pytest.raises(ValueError, match='no row "old"'):
        replace(ablation, rows=ablation.rows[:1])
    with pytest.raises(ValueError, match="two cells"):
        replace(ablation, grid=replace(GRID, cells=GRID.cells * 2))
