"""``oculi bench edge``: its numbers and its goals."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from oculi.bench import edge
from oculi.bench.edge import Report, Scores, Speed
from oculi.data.sample import ImageSlot, Message
from oculi.edge.measure import Measured
from oculi.eval.asked import Question


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


def test_opening_a_picture_is_no_part_of_an_answer(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    now = [0.0]

    def passes(seconds: float) -> None:
        now[0] += seconds

    picture: Any = SimpleNamespace(load=lambda: passes(1.0))
    messages = (Message("user", (ImageSlot(0), "\nWhat?")),)
    question = Question("a", 1, "kind", messages, (picture,), "What?", "red")
    model: Any = SimpleNamespace(parameters=list)
    processor: Any = SimpleNamespace(
        encode=lambda talk, add_generation_prompt: talk,
        tokenizer=SimpleNamespace(eos_token_id=1, pad_token_id=0),
    )
    monkeypatch.setattr(edge, "time", SimpleNamespace(perf_counter=lambda: now[0]))
    monkeypatch.setattr(edge, "answer_torch", lambda *given: passes(0.5))
    for name in ("load", "export_onnx", "ask", "summary"):
        monkeypatch.setattr(edge, name, lambda *given, **named: None)
    found = edge._speed("tiny", model, processor, [question], tmp_path, 1, lambda: None)
    assert found.torch == 0.5


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
