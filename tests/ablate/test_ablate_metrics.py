"""Numbers of a run's log: means, steps to a loss, collapses."""

import json
import math
from pathlib import Path

import numpy as np
import pytest

from oculi.ablate import metrics
from oculi.ablate.asking import right
from oculi.ablate.metrics import (
    final_mean,
    level_at,
    logged,
    named,
    relative_steps,
    running_mean,
    shown_difference,
    shown_value,
    spikes,
    stability,
    steps_to,
)


def falling(steps: int, half_life: float) -> np.ndarray:
    return 1 + 2 * 0.5 ** (np.arange(1, steps + 1) / half_life)


def test_final_mean_is_of_the_last_tenth() -> None:
    assert final_mean(np.arange(100.0)) == pytest.approx(94.5)
    assert final_mean(np.array([3.0, 5.0])) == 5.0


def test_running_mean_is_of_whole_windows() -> None:
    values = np.arange(400.0)
    means = running_mean(values)
    assert len(means) == 400 - metrics.WINDOW + 1
    assert means[0] == pytest.approx(24.5) and means[-1] == pytest.approx(374.5)


def test_steps_to_a_level() -> None:
    values = np.concatenate([np.full(100, 2.0), np.full(300, 1.0)])
    assert steps_to(values, 2.0) == 50  # the first whole window
    assert steps_to(values, 1.0) == 150  # the first window of ones only
    assert steps_to(values, 1.5) == 125
    assert math.isnan(steps_to(values, 0.9))
    assert level_at(values, 0.25) == 2.0 and level_at(values, 1.0) == 1.0


def test_relative_steps_find_a_planted_advantage_that_widens() -> None:
    base = falling(700, 200)
    steps = np.arange(1, 701)
    # This row is at step s where the baseline is at s + s^2 / 700.
    ahead = 1 + 2 * 0.5 ** ((steps + steps**2 / 700) / 200)
    found = relative_steps(
        {"base": base, "ahead": ahead, "late": falling(700, 1000)}, "base",
        {"early": 0.3, "late": 0.75},
    )  # fmt: skip
    assert found["base"] == {"steps@early": 1.0, "steps@late": 1.0}
    assert found["ahead"]["steps@late"] < found["ahead"]["steps@early"] - 0.05 < 0.9
    assert math.isnan(found["late"]["steps@late"])  # it never got there


@pytest.mark.parametrize(
    ("losses", "spiking", "finite", "collapsed", "unstable"),
    [
        (falling(700, 200), 0, True, 0, 0),
        (falling(700, 200), 2, True, 0, 1),
        (np.concatenate([falling(400, 100), np.full(300, 3.0)]), 1, True, 1, 1),  # not recovered
        (np.concatenate([falling(400, 100), np.full(20, 3.0), falling(300, 90)]), 1, True, 0, 1),
        (falling(30, 10), 0, False, 1, 1),
        (np.array([]), 0, False, 1, 1),  # not finite at the first step
    ],
    ids=["well", "spiked", "collapsed", "recovered", "not finite", "at once"],
)
def test_stability(
    losses: np.ndarray, spiking: int, finite: bool, collapsed: int, unstable: int
) -> None:
    found = stability(losses, spiking, finite)
    assert (found["collapsed"], found["unstable"]) == (collapsed, unstable)
    assert found["spikes"] == spiking and found["spiked"] == (spiking > 0)


def test_a_log_is_read_by_stage(tmp_path: Path) -> None:
    entries = [
        {"stage": stage, "step": step, "lm": 1.0 / step, "objectives": ["lm"]}
        for stage in ("pretrain", "finetune")
        for step in (1, 2)
    ]
    lines = "".join(json.dumps(entry) + "\n" for entry in entries)
    (tmp_path / "metrics.jsonl").write_text(lines)
    events = [("loss spike", "pretrain"), ("loss spike", "finetune"), ("not finite", "pretrain")]
    lines = "".join(json.dumps({"event": e, "stage": s, "step": 1}) + "\n" for e, s in events)
    (tmp_path / "events.jsonl").write_text(lines)
    found = logged(tmp_path, "pretrain")
    assert found.keys() == {"step", "lm"} and found["lm"].tolist() == [1.0, 0.5]
    assert spikes(tmp_path, "pretrain") == 1
    assert logged(tmp_path / "none", "pretrain") == {} and spikes(tmp_path / "none", "x") == 0


def test_what_a_text_holds_does_not_part_lines(tmp_path: Path) -> None:
    """JSON may leave these characters as they are; only a newline ends a line."""
    said = "blue\u2028or\u2029red\x85"
    rows = [{"stage": "s", "event": "loss spike", "correct": True, "said": said}] * 2
    lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    for name in ("events.jsonl", "answers.jsonl"):
        (tmp_path / name).write_text(lines, encoding="utf-8")
    assert spikes(tmp_path, "s") == 2 and right(tmp_path) == [True, True]
    (tmp_path / "answers.jsonl").write_text("")
    assert right(tmp_path) == []


def test_names_and_units() -> None:
    assert named("score@168x84").title == "168x84" and named("score@168x84").percent
    assert named("score:colour").title == "colour" and named("block.3").title == "block 3"
    assert shown_value("score", 0.5512) == "55.1 %" and shown_value("loss", 0.5) == "0.500"
    assert shown_difference("score", 0.024, 0.01, 0.03) == "+2.4 points [+1.0, +3.0]"
    assert shown_difference("loss", -0.016, -0.02, 0.0) == "-0.016 [-0.020, +0.000]"
    with pytest.raises(ValueError, match='no metric "blue"'):
        named("blue")
