"""What a synthesis will take: no more than it may, and nothing is promised that is not known."""

from pathlib import Path
from typing import Any

import pytest

from datafiles import png, said, write_parquet
from endpoint import write_pictures
from oculi.data import rowfile
from oculi.data.synth.estimate import Estimate, Prices, estimate
from oculi.data.synth.instructions import read_instructions
from oculi.data.synth.pictures import Pictures
from oculi.data.synth.plan import Entry, Plan


def expected(
    source: Path, entries: dict[str, Entry] | None = None, **settings: Any
) -> tuple[Estimate, str]:
    """The estimate, and its text in one piece."""
    known = read_instructions()
    plan = Plan(
        strategy="brief-caption",
        instructions=known.version,
        instruction=known.strategy("brief-caption"),
        model="m",
        settings=settings,
    )
    found = estimate(
        Pictures(source), plan, entries or {}, tries=3, image_tokens="tiles", prices=Prices(0, 10)
    )
    return found, "\n".join(found.lines())


@pytest.mark.parametrize(
    ("settings", "most"),
    [
        ({}, 200),
        ({"max_tokens": 900}, 900),
        ({"max_tokens": None, "max_completion_tokens": 600}, 600),
        ({"max_completion_tokens": 600}, 600),  # beside our own: servers take either
        ({"max_completion_tokens": 100}, 200),
        ({"max_tokens": None}, None),
        ({"max_tokens": "many"}, None),
    ],
)
def test_the_longest_answer_is_what_the_request_allows(
    tmp_path: Path, settings: dict[str, Any], most: int | None
) -> None:
    found, text = expected(write_pictures(tmp_path / "p", [30, 31]), **settings)
    assert found.answer_tokens == 2 * 45 and found.cost == pytest.approx(2 * 45 * 10 / 1e6)
    if most is None:
        assert found.most_answer_tokens is found.most_cost is None
        assert "(at most: unknown, the request sets no limit)" in text
        assert "cost: 0.00 estimated, unknown if all goes wrong" in text
    else:
        assert found.most_answer_tokens == 2 * 3 * most
        assert found.most_cost == pytest.approx(2 * 3 * most * 10 / 1e6)
        assert f"(at most {2 * 3 * most})" in text


def test_no_usual_answer_is_longer_than_the_longest(tmp_path: Path) -> None:
    found, _ = expected(write_pictures(tmp_path / "p", [30]), max_tokens=10)
    assert (found.answer_tokens, found.most_answer_tokens) == (10, 30)


def test_pictures_that_have_changed_are_to_be_paid_for(tmp_path: Path) -> None:
    folder = write_pictures(tmp_path / "p", [30, 31])
    digests = ["", "another"]  # of a record from before there were digests; of other bytes
    entries = {
        item.key: Entry("ok", 1, 0, digest)
        for item, digest in zip(Pictures(folder), digests, strict=True)
    }
    found, text = expected(folder, entries)
    assert (found.answered, found.requests, found.changed) == (1, 1, 1)
    assert "changed since they were asked about: 1 pictures" in text


def test_what_cannot_stand_in_a_row_is_not_asked_about(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    row = {"id": "a", "images": [png().ljust(500, b"\0")], "conversations": said("<image>?", "x")}
    monkeypatch.setattr(rowfile, "MAX_EMBEDDED", 400)
    found, text = expected(write_parquet(tmp_path, [row]))
    assert (found.requests, found.unreadable) == (0, 1) and "too large to stand in a row" in text
