"""Instructions: the built-in ones are whole, and a file of one's own is checked by name."""

from pathlib import Path

import pytest

from oculi.data.synth.instructions import BUILTIN, read_instructions
from oculi.errors import DataError

PAPER = ("brief-caption", "detailed-caption", "brief-vqa", "detailed-vqa")


def test_the_strategies_of_the_papers_are_there() -> None:
    known = read_instructions()
    assert set(known.strategies) == {*PAPER, "recaption"}
    for name in PAPER[:2]:
        asked = known.strategy(name)
        assert asked.reply == "caption" and asked.question == "wording"
        assert len(set(asked.wordings)) == len(asked.wordings) >= 20
    assert known.strategy("brief-vqa").pairs.most == 2
    assert known.strategy("recaption").question == "own"


def test_every_prompt_shows_the_json_that_is_taken() -> None:
    for asked in read_instructions().strategies.values():
        keys = ('"Caption"',) if asked.reply == "caption" else ('"Pairs"', '"Query"', '"Answer"')
        said = asked.ask(asked.wording(0, "x"), "")
        assert all(key in said for key in keys)
        assert "{wording}" not in said and "{text}" not in said


def test_wordings_depend_on_seed_and_picture_and_are_all_used() -> None:
    asked = read_instructions().strategy("brief-caption")
    drawn = [asked.wording(0, f"{i}") for i in range(400)]
    assert set(drawn) == set(asked.wordings)
    assert drawn == [asked.wording(0, f"{i}") for i in range(400)]
    assert drawn != [asked.wording(1, f"{i}") for i in range(400)]
    assert asked.wording(0, "0") == "What is the main content of this picture?"  # in any process


def test_texts_that_are_put_in_are_not_looked_through() -> None:
    asked = read_instructions().strategy("recaption").model_copy(
        update={"prompt": "{wording} It said: {text}", "wordings": ("x",)}
    )  # fmt: skip
    assert asked.ask("say {text}", "a {wording} {text}") == "say {text} It said: a {wording} {text}"
    twice = asked.model_copy(update={"prompt": "{wording} Again: {wording}"})
    assert twice.ask("say {wording}", "") == "say {wording} Again: say {wording}"


MINE = """
version: "mine"
strategies:
  colours:
    reply: pairs
    characters: 40
    tokens: {usual: 10, most: 20}
    prompt: Which colours?
"""


def test_a_file_may_bring_strategies_of_its_own(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text(MINE)
    known = read_instructions(file)
    assert known.version == "mine" and known.strategy("colours").ask("", "") == "Which colours?"
    file.write_bytes(BUILTIN.read_bytes())
    assert read_instructions(file) == read_instructions()


@pytest.mark.parametrize(
    ("old", "new", "reason"),
    [
        ("reply: pairs", "reply: poem", "strategies.colours.reply"),
        ("characters: 40", "characters: on", "strategies.colours.characters"),
        ("characters: 40", "letters: 40", "strategies.colours"),
        ("reply: pairs", "reply: caption", "no wordings"),
        ("Which colours?", "'{wording}'", "no wordings"),
        ('version: "mine"', "version: 2026-11-22", "is no file of instructions"),
        ("strategies:", "strategies: [", "is no file of instructions"),
        ("strategies:", "strategies: !!python/object/apply:os.getcwd []\nx:", "no file of instr"),
    ],
)
def test_a_file_that_is_wrong_is_named(tmp_path: Path, old: str, new: str, reason: str) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text(MINE.replace(old, new))
    with pytest.raises(DataError, match=reason) as caught:
        read_instructions(file)
    assert str(file) in str(caught.value) and "\n" not in str(caught.value)


def test_files_that_are_none(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="No such file"):
        read_instructions(tmp_path / "none.yaml")
    (tmp_path / "bytes").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(DataError, match="is no file of instructions"):
        read_instructions(tmp_path / "bytes")
    with pytest.raises(DataError, match='did you mean "brief-vqa"'):
        read_instructions().strategy("brief-vqu")
