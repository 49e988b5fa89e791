"""``oculi bench edge``: its numbers and its goals."""

from typing import Any

import pytest

from oculi.bench.edge import Report, Scores, Speed
from oculi.edge.measure import Measured


def measured(seconds: float) -> Measured:
    return Measured("int8", 50, 16, 3, 0.01, 0.02, 0.001, 0.002, seconds, 1 / seconds)


def test_goals_follow_from_the_numbers() -> None:
    speed = Speed("tiny", 2.6, 0.4, measured(0.1))
    good = Report(2, [speed], Scores("playroom:1", 500, 500, 90.0, 89.2))
    assert speed.times == pytest.approx(4) and good.ok
    assert [goal.met for goal in good.goals()] == [True, True, True]
    other = Report(2, [speed], Scores("playroom:1", 500, 499, 90.0, 89.2))
    worse = Report(2, [speed], Scores("playroom:1", 500, 500, 90.0, 88.8))
    slow = Report(2, [Speed("tiny", 2.6, 0.2, measured(0.1))], None)
    assert not other.ok and not worse.ok
    assert slow.ok and not slow.goals()[0].met  # the clock is advice
    text = "\n".join(good.lines())
    assert "500 questions" in text and "4.00" in text
    assert good.to_json()["speeds"][0]["times"] == pytest.approx(4)


@pytest.mark.slow
def test_it_measures_both_sides(tmp_path: Any) -> None:
    from oculi.bench.edge import bench_edge

    seen: list[tuple[int, int]] = []
    report = bench_edge(
        None, "playroom:1", 2, 2, True, lambda done, total: seen.append((done, total))
    )
    assert report.ok and len(report.speeds) == 2 and report.scores is None
    assert seen[-1] == (12, 12)
    (pair,) = report.prefills
    assert pair.name == "tiny" and 0 < pair.macs < 1 and pair.time > 0
    for one in report.speeds:
        assert one.edge.new_tokens == 16 and one.torch > 0 and one.edge.precision == "int8"
