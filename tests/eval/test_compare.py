"""Two evaluations, paired: the interval of the literature, the parts, and what is refused."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from oculi.errors import DataError
from oculi.eval.compare import compare, paired


def rows(right: Sequence[bool], **fields: Any) -> list[dict[str, Any]]:
    return [
        {
            "id": f"q{i}", "turn": 1, "group": ("colour", "shape")[i % 2],
            "question": "Which?\nA) red\nB) blue" if i % 4 == 3 else "Which?",
            "answer": "B" if i % 4 == 3 else "blue", "correct": one, **fields,
        }
        for i, one in enumerate(right)
    ]  # fmt: skip


def write(folder: Path, found: Sequence[Any]) -> Path:
    folder.mkdir(parents=True)
    lines = "".join(json.dumps(row) + "\n" for row in found)
    (folder / "answers.jsonl").write_text(lines, encoding="utf-8")
    return folder


def test_the_interval_is_newcombes() -> None:
    """Airway hyper-responsiveness before and after a transplantation: 1, 1, 7 and 12 children, for
    whom Fagerland, Lydersen and Laake 2014 (Statistics in Medicine 33, 2850-2875) give it."""
    before = [True] * 2 + [False] * 19
    after = [True] + [False] + [True] * 7 + [False] * 12
    found = paired(before, after)
    assert (found.n, found.first, found.second) == (21, 2, 8)
    assert (found.only_first, found.only_second) == (1, 7)
    assert found.difference == pytest.approx(6 / 21)
    assert (round(found.low, 3), round(found.high, 3)) == (0.026, 0.507)


def test_the_same_twice_differs_by_nothing() -> None:
    for answers in ([True] * 30, [False] * 30, [True, False] * 15):
        found = paired(answers, answers)
        assert found.difference == 0 and found.low <= 0 <= found.high
    assert paired([True, False] * 500, [True, False] * 500).low > -0.02


def test_pairs_decide_what_two_intervals_do_not() -> None:
    """Half of 200 are right for both, half of the rest for neither; ten for the second alone."""
    first = [True] * 100 + [False] * 100
    second = [True] * 110 + [False] * 90
    found = paired(first, second)
    assert found.low > 0 and "better" in found.line("all")
    assert "worse" in paired(second, first).line("all")


def test_the_ratio_is_bonetts_and_prices() -> None:
    """Complete response before and after a therapy, of 161 patients: the interval that the authors of
    the book about such tables give (Fagerland, Lydersen and Laake, chapter 8) is 0.758 to 0.991."""
    after = [True] * 59 + [True] * 16 + [False] * 6 + [False] * 80
    before = [True] * 59 + [False] * 16 + [True] * 6 + [False] * 80
    found = paired(after, before)
    assert found.ratio is not None
    assert [round(value, 4) for value in found.ratio] == [0.8667, 0.7579, 0.9910]
    assert "86.7% of it (75.8 to 99.1)" in found.line("all")


def test_a_ratio_at_the_ends() -> None:
    same = paired([True] * 30, [True] * 30).ratio
    assert same is not None and same[0] == 1 and same[1] < 1 < same[2]
    none = paired([True] * 30, [False] * 30).ratio
    assert none is not None and none[:2] == (0, 0) and 0 < none[2] < 0.2
    nothing = paired([False] * 30, [True] * 30)
    assert nothing.ratio is None and "of it" not in nothing.line("all")


def test_by_kind_and_by_form(tmp_path: Path) -> None:
    a = write(tmp_path / "a", rows([True] * 8))
    b = write(tmp_path / "b", rows([True, False] * 4)[::-1])  # in another order
    (found,) = compare(a, b / "answers.jsonl")
    assert list(found.groups) == ["all", "colour", "shape", "(multiple choice)", "(open)"]
    assert [g.n for g in found.groups.values()] == [8, 4, 4, 2, 6]
    assert found.groups["shape"].difference == -1 and found.groups["colour"].difference == 0
    assert found.left_out == (0, 0)
    assert json.loads(json.dumps(found.to_dict()))["groups"]["all"]["only_first"] == 4


def test_what_one_alone_was_asked_is_left_out_and_said(tmp_path: Path) -> None:
    a = write(tmp_path / "a", rows([True] * 8))
    b = write(tmp_path / "b", rows([True] * 5))
    (found,) = compare(a, b)
    assert found.groups["all"].n == 5 and found.left_out == (3, 0)
    assert "3 of the first, 0 of the second" in found.lines()[-1]


def test_an_answer_may_hold_what_separates_lines_elsewhere(tmp_path: Path) -> None:
    found = rows([True] * 4, prediction="blue\u2028or\x85")
    a = write(tmp_path / "a", [])
    lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in found)
    (a / "answers.jsonl").write_text(lines, encoding="utf-8")
    assert compare(a, a)[0].groups["all"].n == 4


def test_ids_may_repeat(tmp_path: Path) -> None:
    """Rows of a data file may share one, and so do the questions of a picture: they pair in order."""
    asked = [{"id": "x", "question": text} for text in ("How many?", "Which?", "Where?")]
    a = [{**row, **more} for row, more in zip(rows([True] * 3), asked, strict=True)]
    b = [{**row, **more} for row, more in zip(rows([True, False, True]), asked, strict=True)]
    other = [{**row, "group": "place"} for row in a]  # a name in two categories
    (found,) = compare(write(tmp_path / "a", a + other), write(tmp_path / "b", b + other))
    assert found.groups["all"].n == 6 and found.groups["all"].only_first == 1
    assert found.left_out == (0, 0)
    with pytest.raises(DataError, match=r'turn 1 of "x" asks "How many\?" in .* and "Where\?" in'):
        compare(tmp_path / "a", write(tmp_path / "c", a[::-1]))


def test_measures_too(tmp_path: Path) -> None:
    a = write(tmp_path / "a", rows([True] * 4, measures={"error": 3.0, "other": 1}))
    b = write(tmp_path / "b", rows([True] * 4, measures={"error": 1.0}))
    (found,) = compare(a, b)
    assert found.measures == {"error": {"mean": -2.0, "low": -2.0, "high": -2.0, "n": 4}}
    assert any(line.strip().startswith("error") for line in found.lines())


def test_every_evaluation_that_two_runs_share(tmp_path: Path) -> None:
    for run, names in (("a", "xyz"), ("b", "zxw")):
        for name in names:
            write(tmp_path / run / "evals" / name, rows([True] * 4))
    assert [one.name for one in compare(tmp_path / "a", tmp_path / "b")] == ["x", "z"]
    with pytest.raises(DataError, match="it is a run: name one of its evaluations"):
        compare(tmp_path / "a", tmp_path / "b" / "evals" / "x")


def test_some_kinds_alone(tmp_path: Path) -> None:
    """Together and each; an evaluation that has none of them is not in the way of others."""
    for run, right in (("a", [True] * 8), ("b", [True, False] * 4)):
        write(tmp_path / run / "evals" / "x", rows(right))
        write(tmp_path / run / "evals" / "y", rows(right, group="count"))
    a, b = tmp_path / "a", tmp_path / "b"
    (found,) = compare(a, b, ["sh*"])
    assert (found.name, found.groups["all"].n, found.groups["all"].difference) == ("x", 4, -1)
    assert found.left_out == (0, 0)
    both = compare(a, b, ["count", "*"])
    assert [one.groups["all"].n for one in both] == [8, 8]
    (some,) = compare(a, b, ["colour", "shape"])
    assert list(some.groups)[:3] == ["all", "colour", "shape"]
    with pytest.raises(
        DataError, match='of the kinds "place": there are "colour", "count", "shape"'
    ):
        compare(a, b, ["place"])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"answer": "red"}, "not the same questions"),
        ({"question": "What?"}, "not the same questions"),
        ({"id": "other"}, "share no question"),
        ({"correct": "yes"}, r"answers.jsonl:1: no usable correct"),
        ({"turn": True}, "no usable turn"),
        ({"measures": [1]}, "measures are not numbers"),
        ({"measures": {"error": "low"}}, "measures are not numbers"),
        ({"measures": {"error": float("nan")}}, "measures are not numbers"),
    ],
)
def test_what_is_not_the_same_is_refused(
    tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    a = write(tmp_path / "a", rows([True]))
    b = write(tmp_path / "b", rows([True], **change))
    with pytest.raises(DataError, match=message):
        compare(a, b)


def test_damage_is_named(tmp_path: Path) -> None:
    a = write(tmp_path / "a", rows([True]))
    for text, message in (
        (b"{", "answers.jsonl:1: not JSON"),
        (b"[1]", "answers.jsonl:1: not a row"),
        (b"\xff", "cannot be read"),
        (b"", "share no question"),
    ):
        (a / "answers.jsonl").write_bytes(text)
        with pytest.raises(DataError, match=message):
            compare(a, a)
    with pytest.raises(DataError, match=r"has no answers.jsonl"):
        compare(tmp_path, a)
    runs = [tmp_path / name for name in ("c", "d")]
    for run in runs:
        (run / "evals").mkdir(parents=True)
    with pytest.raises(DataError, match="share no evaluation"):
        compare(*runs)
