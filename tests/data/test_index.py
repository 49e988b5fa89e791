"""Lengths before training: exact, without decoding, kept, and refused when too long."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from helpers import Drawn, mixture, write_rows
from oculi.data import index
from oculi.data.index import check_lengths, measure, sample_length
from oculi.data.loader import encode_sample
from oculi.data.source import open_source
from oculi.errors import DataError
from oculi.recipe import FileSource, PlayroomSource


@pytest.fixture
def rows(tmp_path: Path) -> FileSource:
    return FileSource(path=str(write_rows(tmp_path / "rows")))


def test_a_length_is_what_training_will_see(make_processor: Callable[..., Any]) -> None:
    for settings in ({}, {"mode": "square", "size": 8}, {"max_patches": 3}):
        processor = make_processor(**settings)
        for made in mixture():
            assert sample_length(made, processor) == len(encode_sample(made, processor).input_ids)


def test_no_picture_is_decoded(
    rows: FileSource, make_processor: Callable[..., Any], tmp_path: Path
) -> None:
    """A file cut behind its header still has a size; training or ``data check`` will name it."""
    processor, picture = make_processor(), tmp_path / "rows" / "0.png"
    Drawn(64, 64).load().save(picture)
    wanted = measure(open_source(rows), processor)
    picture.write_bytes(picture.read_bytes()[:6000])
    with pytest.raises(DataError, match="truncated"):
        open_source(rows)[0].images[0].load()
    assert measure(open_source(rows), processor).tolist() == wanted.tolist()


def test_too_long_samples_are_counted_and_the_longest_named(
    rows: FileSource, make_processor: Callable[..., Any], tmp_path: Path
) -> None:
    processor = make_processor()
    lengths = measure(open_source(rows), processor)
    check_lengths([rows], processor, int(lengths.max()), tmp_path / "index")
    with pytest.raises(DataError) as caught:
        check_lengths([rows], processor, int(lengths.max()) - 1, tmp_path / "index")
    said = str(caught.value)
    count = int((lengths == lengths.max()).sum())
    assert said.startswith(f"{count} of 8 samples in {rows.path} are longer than")
    assert f'"row-{lengths.argmax()}", has {lengths.max()}' in said and "\n" not in said


def test_what_was_measured_is_kept(
    rows: FileSource, make_processor: Callable[..., Any], tmp_path: Path, monkeypatch: Any
) -> None:
    calls: list[int] = []

    def counted(*arguments: Any) -> Any:
        calls.append(1)
        return measure(*arguments)

    monkeypatch.setattr(index, "measure", counted)
    processor, cache = make_processor(), tmp_path / "index"
    for expected in (1, 1):
        check_lengths([rows], processor, 999, cache)
        assert len(calls) == expected
    check_lengths([rows], make_processor(max_patches=2), 999, cache)
    assert len(calls) == 2  # pictures have other lengths
    tokenizer = make_processor().tokenizer
    tokenizer.chat_template = "> " + tokenizer.chat_template
    check_lengths([rows], make_processor(tokenizer), 999, cache)
    assert len(calls) == 3  # conversations have other lengths
    path = Path(rows.path)
    path.write_text(path.read_text().replace("What colour", "So what colour"))
    check_lengths([rows], processor, 999, cache)
    assert len(calls) == 4
    os.utime(path, (1, 1))
    check_lengths([rows], processor, 999, cache)
    assert len(calls) == 5


def test_a_pattern_and_a_folder_are_measured_too(
    make_processor: Callable[..., Any], tmp_path: Path
) -> None:
    """By their files: another row in one of them, or another of them, is measured again."""
    files = [write_rows(tmp_path / "rows" / name, 3) for name in ("a", "b")]
    spec, cache = FileSource(path=str(tmp_path / "rows" / "*" / "rows.json")), tmp_path / "index"
    check_lengths([spec], make_processor(), 999, cache)
    files[1].write_text(files[1].read_text().replace("What colour", "What " * 999))
    with pytest.raises(DataError, match="3 of 6 samples"):
        check_lengths([spec], make_processor(), 999, cache)


def test_a_cache_that_was_cut_is_made_again(
    rows: FileSource, make_processor: Callable[..., Any], tmp_path: Path
) -> None:
    processor, cache = make_processor(), tmp_path / "index"
    check_lengths([rows], processor, 999, cache)
    (file,) = cache.iterdir()
    for damaged in (file.read_bytes()[:-4], file.read_bytes()[:20], b"", b"not numpy at all"):
        file.write_bytes(damaged)
        check_lengths([rows], processor, 999, cache)
        assert len(np.load(file)) == 8
    assert list(cache.iterdir()) == [file]


def test_a_missing_picture_is_an_error_at_the_start(
    rows: FileSource, make_processor: Callable[..., Any], tmp_path: Path
) -> None:
    (tmp_path / "rows" / "4.png").unlink()
    with pytest.raises(DataError, match=r"4\.png.* does not exist") as caught:
        check_lengths([rows], make_processor(), 999, tmp_path / "index")
    assert "row-4" in str(caught.value) and "\n" not in str(caught.value)


def test_few_unreadable_pictures_are_left_to_training(
    make_processor: Callable[..., Any], tmp_path: Path
) -> None:
    """One of 120 is under 1 % and has no length; two are over it."""
    path = write_rows(tmp_path / "rows", 120)
    source = FileSource(path=str(path))
    (tmp_path / "rows" / "4.png").write_bytes(b"")
    lengths = measure(open_source(source), make_processor())
    assert np.flatnonzero(lengths == 0).tolist() == [4]
    check_lengths([source], make_processor(), 999, tmp_path / "index")
    (tmp_path / "rows" / "8.png").unlink()
    with pytest.raises(DataError, match=r"4\.png.* is empty .*\(and 1 more, over 1% of all\)"):
        check_lengths([source], make_processor(max_patches=3), 999, tmp_path / "index")


REFUSING = {
    "refuses": "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system') }}{% endif %}",
    "drops": "{% set messages = messages | rejectattr('role', 'eq', 'system') | list %}",
}


@pytest.mark.parametrize("how", REFUSING)
def test_a_conversation_that_the_template_refuses_has_no_length(
    how: str, make_processor: Callable[..., Any], make_tokenizer: Callable[..., Any], tmp_path: Path
) -> None:
    """The first row of 120 has a system turn: under 1 %; of 60 it is over it, and named."""
    path = tmp_path / "rows.jsonl"
    lines = [{"instruction": f"q{i}", "output": "a"} for i in range(120)]
    lines[0]["system"] = "Be brief."
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    tokenizer = make_tokenizer()
    tokenizer.chat_template = REFUSING[how] + tokenizer.chat_template
    processor = make_processor(tokenizer)
    lengths = measure(open_source(FileSource(path=str(path))), processor)
    assert np.flatnonzero(lengths == 0).tolist() == [0]
    with pytest.raises(
        DataError, match=rf"rows\.jsonl:1: .*template {how}.* system, user"
    ) as caught:
        measure(open_source(FileSource(path=str(path), limit=60)), processor)
    assert "\n" not in str(caught.value)


def test_playroom_needs_no_pass(make_processor: Callable[..., Any], tmp_path: Path) -> None:
    check_lengths([PlayroomSource(level=1, samples=10**9)], make_processor(), 8, tmp_path / "index")


def test_progress_ends_at_the_total(rows: FileSource, make_processor: Callable[..., Any]) -> None:
    seen: list[tuple[int, int]] = []
    measure(open_source(rows), make_processor(), lambda done, total: seen.append((done, total)))
    assert seen[-1] == (8, 8)
