"""``oculi eval``: seeing, blind or both, where the results go, and the verdict."""

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from oculi import cli
from oculi.eval import command
from oculi.eval.command import Results, evaluate_command
from oculi.eval.score import wilson
from oculi.eval.tasks import open_task


def scored(correct: int, n: int, blind: bool = False) -> dict[str, Any]:
    exact = vars(wilson(correct, n))
    group = {**exact, "majority": 0.25, "majority_answer": "red"}
    return {
        "task": "t", "blind": blind, "exact": exact, "groups": {"colour": group},
        "majority": {"score": 0.25},
    }  # fmt: skip


# Of 100: 60 has the interval 0.50 to 0.69, 40 has 0.31 to 0.50, 30 has 0.22 to 0.40.
VERDICTS = [(60, 30, True), (60, 40, True), (60, 42, False), (60, 60, False), (30, 60, False)]


@pytest.mark.parametrize(("seeing", "blind", "above"), VERDICTS)
def test_above_blind_means_that_the_intervals_are_apart(
    seeing: int, blind: int, above: bool
) -> None:
    results = Results(scored(seeing, 100), scored(blind, 100, True), Path("f"))
    assert results.ok is above
    said = "seeing is clearly above blind" if above else "seeing is NOT clearly above blind"
    assert any(line.startswith(said) for line in results.lines())
    assert results.to_dict()["above_blind"] is above


def test_one_measurement_has_no_verdict() -> None:
    for results in (
        Results(scored(0, 10), None, Path("f")),
        Results(None, scored(9, 10, True), Path("f")),
    ):
        assert results.ok
        assert not any("above" in line for line in results.lines())
        assert results.to_dict()["task"] == "t"
    lines = Results(scored(3, 10), None, Path("f")).lines()
    assert lines[0].startswith("t, seeing: 30.0% exact (3 of 10; 95 % interval 10.8% to 60.3%)")
    assert "constant 25.0%" in lines[1] and lines[-1] == "answers: f"


@pytest.fixture
def measure(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    """The command with a model that is right when it sees; what it was asked is kept."""
    calls: list[tuple[bool, Path]] = []

    def fake(model: Any, processor: Any, task: Any, out: Path, **settings: Any) -> Any:
        calls.append((settings["blind"], out))
        out.mkdir(parents=True)
        result = scored(10 if settings["blind"] else 90, 100, settings["blind"])
        (out / "result.json").write_text(json.dumps(result))
        return result

    monkeypatch.setattr(command, "evaluate", fake)

    def run(**settings: Any) -> tuple[Results, list[tuple[bool, Path]]]:
        defaults: dict[str, Any] = {
            "blind": False, "above_blind": False, "limit": None, "batch": 64,
            "max_new_tokens": 4, "out": None, "on_progress": None,
        }  # fmt: skip
        results = evaluate_command(
            None, None, tmp_path / "model", open_task("playroom:1"), **{**defaults, **settings}
        )  # type: ignore[arg-type]
        return results, calls

    return run


def test_seeing_alone(measure: Any, tmp_path: Path) -> None:
    results, calls = measure()
    folder = tmp_path / "model" / "evals" / "playroom-1"
    assert calls == [(False, folder)] and results.blind is None and results.folder == folder


def test_so_many_questions_at_a_time(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    asked: list[int] = []

    def fake(*given: Any, **settings: Any) -> Any:
        asked.append(settings["batch"])
        return scored(90, 100, False)

    monkeypatch.setattr(command, "evaluate", fake)
    monkeypatch.setattr(cli, "_open", lambda checkpoint: (None, None))
    arguments = ["eval", str(tmp_path), "--task", "playroom:1", "--out", str(tmp_path / "out")]
    for more in ([], ["--batch", "2"]):
        assert CliRunner().invoke(cli.app, [*arguments, *more]).exit_code == 0
    assert asked == [64, 2]


def test_blind_alone_says_where_its_answers_are(measure: Any, tmp_path: Path) -> None:
    results, calls = measure(blind=True)
    folder = tmp_path / "model" / "evals" / "playroom-1-blind"
    assert calls == [(True, folder)] and results.seeing is None
    assert results.lines()[-1] == f"answers: {folder}"


def test_both_do_not_overwrite_each_other(measure: Any, tmp_path: Path) -> None:
    results, calls = measure(above_blind=True)
    evals = tmp_path / "model" / "evals"
    assert calls == [(False, evals / "playroom-1"), (True, evals / "playroom-1-blind")]
    assert results.ok and results.seeing is not None and results.blind is not None


@pytest.mark.parametrize(
    ("settings", "places"),
    [
        ({}, [(False, "")]),
        ({"blind": True}, [(True, "")]),
        ({"above_blind": True}, [(False, ""), (True, "blind")]),
        ({"above_blind": True, "blind": True}, [(False, ""), (True, "blind")]),
    ],
)
def test_another_folder(
    measure: Any, tmp_path: Path, settings: dict[str, Any], places: list[tuple[bool, str]]
) -> None:
    out = tmp_path / "out"
    results, calls = measure(out=out, **settings)
    assert calls == [(blind, out / name) for blind, name in places]
    assert results.folder == out
