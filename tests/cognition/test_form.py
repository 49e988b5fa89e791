"""Text of values: there and back, and what hostile answers score."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from oculi.cognition.form import STYLES, Form, colour_scores, index_scores

COLOURS = Form(4, 3, 256)
TRUE = np.arange(12, dtype=np.int64).reshape(4, 3) * 20


@given(
    st.integers(1, 6), st.integers(1, 3), st.integers(2, 20000), st.integers(0, 2**32),
    st.sampled_from(list(STYLES)),
)  # fmt: skip
def test_what_is_written_is_read_and_has_one_length(
    cells: int, channels: int, limit: int, seed: int, style: str
) -> None:
    form = Form(cells, channels, limit, style)
    values = np.random.default_rng(seed).integers(0, limit, (cells, channels))
    text = form.write(values)
    assert np.array_equal(form.read(text), values)
    assert len(text) == len(form.write(np.full((cells, channels), limit - 1)))


def test_how_it_looks() -> None:
    assert Form(2, 3, 256).write(np.array([[163, 178, 193], [12, 4, 255]])) == (
        "163 178 193,012 004 255"
    )
    assert Form(2, 3, 10).write(np.array([[6, 7, 7], [0, 0, 9]])) == "6 7 7,0 0 9"
    assert Form(3, 1, 8192).write(np.array([[51], [8191], [0]])) == "0051,8191,0000"

    colours = np.array([[163, 178, 193], [12, 4, 255]])
    assert Form(2, 3, 256, "joined").write(colours) == "163178193,012004255"
    assert Form(2, 3, 256, "hex").write(colours) == "#a3b2c1,#0c04ff"


@pytest.mark.parametrize(
    ("style", "text"),
    [
        ("hex", "a3b2c1"), ("hex", "#a3b2c"), ("hex", "#a3b2c11"), ("hex", "#a3b2cg"),
        ("hex", "##a3b2c"), ("hex", "#-1b2c1"), ("hex", "#0x0x0x"), ("hex", "163 178 193"),
        ("joined", "16317819"), ("joined", "163178999"), ("joined", "163 178 193"),
        ("joined", "+63178193"), ("joined", ""),
    ],
)  # fmt: skip
def test_another_style_cannot_be_read(style: str, text: str) -> None:
    assert Form(1, 3, 256, style).read(text) is None


def test_white_space_and_zeros_do_not_matter() -> None:
    assert np.array_equal(Form(2, 1, 256).read("  7 ,  012\n"), [[7], [12]])


@pytest.mark.parametrize(
    "text",
    [
        "", "red", "1 2 3", "1 2 3,4 5 6,7 8 9", "1 2 3,4 5 6,7 8 9,10 11 12,", "-1 2 3," * 4,
        "1 2 3,4 5 6,7 8 9,10 11 256", "1 2 3,4 5 6,7 8 9,10 11", "1.0 2 3,4 5 6,7 8 9,10 11 12",
        "١ 2 3,4 5 6,7 8 9,10 11 12", "²  2 3,4 5 6,7 8 9,10 11 12", "9" * 5000, "1 2 3," * 10**6,
        "nan inf 0,4 5 6,7 8 9,10 11 12", "1 2 3,4 5 6,7 8 9,10 11 12 <|im_end|>", "\x00", "\ud800",
        f"{'0' * 5000} 2 3,4 5 6,7 8 9,10 11 12",
    ],
    ids=range(18),
)  # fmt: skip
def test_what_cannot_be_read_is_wrong(text: str) -> None:
    assert COLOURS.read(text) is None
    assert colour_scores(COLOURS.read(text), TRUE, 256) == {
        "colour_error": 255.0, "cell_accuracy": 0.0, "readable": 0.0,
    }  # fmt: skip
    assert index_scores(None, TRUE) == {"index_accuracy": 0.0, "readable": 0.0}


@given(st.text(max_size=200))
def test_any_text_is_read_or_not(text: str) -> None:
    found = COLOURS.read(text)
    assert found is None or (found.shape == (4, 3) and 0 <= found.min() <= found.max() < 256)


def test_scores_of_what_can_be_read() -> None:
    said = TRUE.copy()
    assert colour_scores(said, TRUE, 256) == {
        "colour_error": 0.0, "cell_accuracy": 1.0, "readable": 1.0,
    }  # fmt: skip
    said[0, 0] += 24
    found = colour_scores(said, TRUE, 256)
    assert found["colour_error"] == 2.0 and found["cell_accuracy"] == 0.75
    # A level of ten is 25.6 of 256; one off in one of two channels.
    coarse = colour_scores(np.array([[1, 2]]), np.array([[2, 2]]), 10)["colour_error"]
    assert coarse == pytest.approx(12.8)
    assert colour_scores(np.array([[1]]), np.array([[0]]), 2)["colour_error"] <= 255
    indices = index_scores(np.array([[1], [2], [3], [4]]), np.array([[1], [9], [3], [9]]))
    assert indices == {"index_accuracy": 0.5, "readable": 1.0}
