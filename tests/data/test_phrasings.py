"""Questions for captions: who gets one, and which, wherever the row lies."""

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from datafiles import png
from helpers import Drawn, mixture, sample
from oculi.data.formats import FileSource as FileRows
from oculi.data.index import check_lengths, processor_fingerprint, sample_length
from oculi.data.phrasings import Phrasings, find_phrasings
from oculi.data.prepare import prepare
from oculi.data.prepared import PreparedRows
from oculi.data.sample import ImageSlot
from oculi.data.source import open_source
from oculi.data.turns import plain
from oculi.errors import DataError
from oculi.recipe import FileSource

CAPTION = sample("c", ("#",), "a red star", images=(Drawn(8, 8),))
ASK = Phrasings(("What is it?", "Describe it.", "Caption this."))


def captions(folder: Path, count: int = 40) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    rows = [{"file_name": f"{n}.png", "text": f"star {n}"} for n in range(count)]
    for row in rows:
        (folder / str(row["file_name"])).write_bytes(png())
    (folder / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return folder


def spec(path: Path, phrasings: str | None = "brief", seed: int = 0) -> FileSource:
    return FileSource(path=str(path), phrasings=phrasings, phrasings_seed=seed)


def questions(source: Any) -> dict[str, str]:
    return {one.messages[1].text: one.messages[0].text for one in source}


def test_a_caption_gets_a_question_after_its_pictures() -> None:
    asked = ASK(CAPTION)
    assert asked.messages[0].content[0] == ImageSlot(0)
    assert asked.messages[0].content[1] in {f"\n{text}" for text in ASK.texts}
    assert asked.messages[1] == CAPTION.messages[1] and asked.images == CAPTION.images
    asked.validate(for_training=True)
    assert ASK(asked) == asked


def test_who_has_a_question_keeps_it() -> None:
    assert [ASK(talk) for talk in mixture()] == mixture()
    blank = sample("b", ("#", "\n "), "x", images=(Drawn(4, 4),))
    assert ASK(blank).messages[0].text.strip() in ASK.texts
    later = sample("l", "Hi", "Hello", ("#",), "a", ("#", "?"), "b", images=(Drawn(4, 4),) * 2)
    assert [m.text for m in ASK(later).messages[::2]][::2] == ["Hi", "?"]
    assert ASK(later).messages[2].text.strip() in ASK.texts


def test_the_wording_is_a_function_of_seed_id_and_answer(tmp_path: Path) -> None:
    one = questions(open_source(spec(captions(tmp_path / "one"))))
    assert len(set(one.values())) > 10
    assert questions(open_source(spec(captions(tmp_path / "two")))) == one
    some = FileRows(tmp_path / "one", phrasings=find_phrasings("brief"), limit=5)
    assert questions(some).items() <= one.items()
    assert questions(open_source(spec(tmp_path / "one", seed=1))) != one
    assert set(questions(open_source(spec(tmp_path / "one", None))).values()) == {""}


def test_wordings_come_equally_often() -> None:
    drawn = Counter(
        ASK(sample(f"{n}", ("#",), "a", images=(Drawn(4, 4),))).messages[0].text for n in range(900)
    )
    assert min(drawn.values()) > 250 and len(drawn) == 3


def test_plain_turns_drop_what_was_given() -> None:
    assert plain(ASK(CAPTION)).messages == CAPTION.messages


def test_built_in_lists_and_files(tmp_path: Path) -> None:
    brief, detailed = find_phrasings("brief"), find_phrasings("detailed")
    assert brief and detailed and not set(brief.texts) & set(detailed.texts)
    file = tmp_path / "mine.txt"
    file.write_text("\ufeffOne?\n\n  Two <image>?  \n", encoding="utf-8")
    assert find_phrasings(str(file), 3) == Phrasings(("One?", "Two <image>?"), 3)
    for name, reason in (("breif", 'did you mean "brief"'), (str(tmp_path), "directory")):
        with pytest.raises(DataError, match=reason):
            find_phrasings(name)
    file.write_text(" \n")
    with pytest.raises(DataError, match="no line with a wording"):
        find_phrasings(str(file))
    file.write_bytes(b"\xff\xfe")
    with pytest.raises(DataError, match="is not UTF-8"):
        find_phrasings(str(file))


def test_prepared_lengths_are_those_of_training(
    tmp_path: Path, make_processor: Callable[..., Any]
) -> None:
    processor, folder, out = make_processor(), captions(tmp_path / "rows"), tmp_path / "out"
    mine = tmp_path / "mine.txt"
    mine.write_text("Short?\nA question that is a good deal longer than the other one?")
    asked = find_phrasings(str(mine), 7)
    prepare([folder], out, processor, phrasings=asked)
    mine.unlink()  # the folder stands for itself
    rows = PreparedRows(out)
    lengths = rows.lengths(processor_fingerprint(processor))
    assert [sample_length(one, processor) for one in rows] == lengths.tolist()
    assert len(set(lengths.tolist())) > 1
    assert questions(rows) == questions(FileRows(folder, phrasings=asked))
    assert questions(open_source(FileSource(path=str(out)))) == questions(rows)
    with pytest.raises(DataError, match="was prepared with other phrasings"):
        open_source(spec(out))
    with pytest.raises(DataError, match="was begun with another phrasings_seed"):
        prepare([folder], out, processor, phrasings=Phrasings(asked.texts, 8))  # type: ignore[union-attr]


def test_kept_lengths_know_the_phrasings(
    tmp_path: Path, make_processor: Callable[..., Any]
) -> None:
    """A stage that is long enough without questions must be measured again with them."""
    processor, folder, cache = make_processor(), captions(tmp_path / "rows", 3), tmp_path / "index"
    bare = max(sample_length(one, processor) for one in open_source(spec(folder, None)))
    check_lengths([spec(folder, None)], processor, bare, cache)
    with pytest.raises(DataError, match="are longer than"):
        check_lengths([spec(folder, "detailed")], processor, bare, cache)
    assert len(list(cache.iterdir())) == 2
