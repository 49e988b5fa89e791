"""The LLM's pre-training text and its tokenizer."""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from oculi.errors import DataError
from oculi.testbed import checkpoint, language, level3, playroom
from oculi.testbed.interview import interview, lies, more
from oculi.testbed.questions import Question
from oculi.testbed.scene import Scene
from oculi.testbed.vocabulary import COLOURS, HELD_OUT_PAIRS, PLACES, SHAPES, SIZES, Dice
from oculi.testbed.words import WORDS

N = 3000


def test_words_are_common_different_and_not_playroom_s() -> None:
    assert 550 < len(WORDS) == len(set(WORDS))
    assert all(set(word) <= set(string.ascii_lowercase) for word in WORDS)
    assert not set(WORDS) & {*COLOURS, *SHAPES, *SIZES, *PLACES}


def test_skills_answers_are_true() -> None:
    for index in range(N):
        kind, prompt, answer = language.skills("test", index)
        assert kind == language.SKILLS[index % len(language.SKILLS)]
        if kind == "spell":
            assert answer.replace(" ", "") in prompt
            continue
        if kind in ("add", "subtract"):
            digits = "".join(c if c.isdigit() else " " for c in prompt).split()
            a, b = map(int, digits)
            assert int(answer) == (a + b if kind == "add" else a - b) >= 0
            continue
        given_ = prompt.rsplit(": ", 1)[1].split()
        order = {"copy": list, "reverse": lambda x: x[::-1], "sort words": sorted}
        expected = order.get(kind, lambda x: sorted(x, key=int))(given_)
        assert answer.split() == expected


def test_train_and_test_differ_and_repeat() -> None:
    train = [language.skills("train", index) for index in range(300)]
    assert train == [language.skills("train", index) for index in range(300)]
    assert len(set(train) & {language.skills("test", index) for index in range(300)}) < 30


def test_mixture_has_every_kind_and_few_guesses() -> None:
    turns = [language.turn("train", index) for index in range(N)]
    kinds = Counter(turn.kind for turn in turns)
    assert set(language.SKILLS) < set(kinds)
    assert {"colour", "position", "relation", "comparison", "description"} < set(kinds)
    assert 0.02 < kinds["guess"] / N < 0.10


def test_language_speaks_of_scenes_in_words_only() -> None:
    """A prompt is text; nothing in it stands for a picture, and every reading has its scene."""
    for index in range(N):
        turn = language.turn("train", index)
        assert "<" not in turn.prompt + turn.answer
        assert turn.answer
    for level in (1, 2):
        turn = language.reading(level, "train", 3)
        assert any(shape in turn.prompt for shape in SHAPES)


def stated(question: Question) -> str:
    """The answer in words, whether it was asked for as a letter or not."""
    return question.options["ABCD".index(question.answer)] if question.options else question.answer


def true_of_objects(question: Question, text: str, scene: Scene) -> bool:
    answer = stated(question)
    pairs = [o.name for o in scene.objects if o.name in text]
    if question.kind == "existence":
        return (answer == "yes") == bool(pairs)
    if question.kind in ("colour", "shape", "size"):
        return answer == scene.objects[0].value(question.kind)
    if question.kind == "comparison":
        sizes = {o.name: o.radius for o in scene.objects if o.name in text}
        return answer == (max if "larger" in text else min)(sizes, key=lambda name: sizes[name])
    if question.kind == "count":
        (value,) = {v for v in (*COLOURS, *SHAPES, *SIZES) if v in text.replace("pictures", "")}
        return answer == str(sum(value in (o.colour, o.shape, o.size) for o in scene.objects))
    return True


def true_of_words(question: Question, text: str, scene: Scene) -> bool:
    answer = stated(question)
    words = {word.place: word.string for word in scene.words}
    if question.kind == "read one":
        (place,) = [p for p in words if re.search(rf"[Aa]t the {p}\b(?! (left|right))", text)]
        return answer == words[place]
    if question.kind == "word place":
        return words[answer] in text
    if question.kind == "word count":
        return answer == str(len(words))
    return answer.replace(" then ", " ").replace(",", "").replace(";", "").split() == [
        word.string for word in scene.words
    ]


def true_of_chart(question: Question, text: str, scene: Scene) -> bool:
    chart, answer = scene.chart, stated(question)
    assert chart is not None
    named = [label for label in chart.labels if re.search(rf"\b{label}\b", text)]
    if question.kind == "value":
        return answer == str(chart.value(named[0]))
    if question.kind == "difference":
        return answer == str(abs(chart.value(named[0]) - chart.value(named[1])))
    among = chart.labels if question.kind == "extreme" else named
    large = "largest" in text or "larger" in text
    return answer == (max if large else min)(among, key=chart.value)


def judge(scene: Scene, question: Question) -> Callable[[Question, str, Scene], bool]:
    """Who knows whether an answer is true."""
    if scene.chart is not None:
        return true_of_chart
    return true_of_words if question.kind in level3.KINDS else true_of_objects


@pytest.mark.parametrize("level", language.LEVELS)
def test_interviews_ask_different_kinds_and_answer_truly(level: int) -> None:
    for index in range(200):
        scene, _ = playroom.text_item(level, "text", index)
        asked = interview(scene, 4, Dice(1, index))
        assert 2 <= len(asked) <= 4
        assert len({question.kind for question in asked}) == len(asked)
        for question in asked:
            assert judge(scene, question)(question, question.text.split("\n")[0], scene), question


@pytest.mark.parametrize("level", playroom.LEVELS)
def test_more_is_asked_of_a_picture_truly_and_first_of_other_kinds(level: int) -> None:
    for index in range(60):
        item = playroom.item(level, "train", index)
        asked = more(item, 8)
        assert asked == more(item, 8) and asked[:3] == more(item, 3) and 3 < len(asked) <= 8
        assert len({q.text for q in (item.question, *asked)}) == len(asked) + 1
        assert len({q.kind for q in (item.question, *asked[:2])}) == 3
        for question in asked:
            assert judge(item.scene, question)(question, question.text.split("\n")[0], item.scene)
            for colour, shape in HELD_OUT_PAIRS:
                assert f"{colour} {shape}" not in question.text


def test_dialogues_tell_the_scene_once() -> None:
    for index in range(N // 10):
        talk = language.dialogue("train", index)
        assert 1 <= len(talk) <= 6 and all(turn.prompt and turn.answer for turn in talk)
        assert 1 <= len(language.primer("train", index)) <= 5
        assert talk == language.dialogue("train", index)


def test_interviews_of_chosen_kinds_and_forms() -> None:
    asked_at_all = 0
    for index in range(50):
        scene, _ = playroom.text_item(2, "text", index)
        assert all(question.options for question in interview(scene, 6, Dice(1, index), choices=3))
        asked = interview(scene, 6, Dice(1, index), choices=0, kinds=("relation", "relation"))
        assert all(q.kind == "relation" and not q.options for q in asked) and len(asked) <= 2
        asked_at_all += len(asked)
    assert asked_at_all > 20


def test_what_is_hard_comes_every_other_time() -> None:
    hard = set(language._HARD)
    for index in range(1, 41, 2):
        assert language.choosing("train", index) == language.dialogue("train", index)
    for index in range(0, 160, 8):
        for talk in (language.choosing("train", index), language.chosen("train", index)):
            assert all(re.fullmatch("[A-D]", turn.answer) for turn in talk)
        assert {turn.kind for turn in language.choosing("train", index + 4)} <= hard | {"chosen"}


def test_a_kind_alone_is_asked_again_about_something_else() -> None:
    kinds = ("relation",)
    number = [
        len(more(playroom.item(2, "train", playroom.of_kinds(2, "train", kinds, i)), 5, kinds))
        for i in range(60)
    ]
    assert max(number) > 2 and sum(number) > 60


@pytest.mark.parametrize(
    ("place", "other", "answer"),
    [
        ("top left", "top right", "left"), ("right", "centre", "right"), ("top", "bottom", "above"),
        ("bottom right", "right", "below"), ("top left", "centre", ""), ("top", "top", ""),
    ],
)  # fmt: skip
def test_how_two_places_lie(place: str, other: str, answer: str) -> None:
    assert lies(place, other) == answer


def test_unknown_split_is_named() -> None:
    with pytest.raises(DataError, match='did you mean "train"'):
        language.skills("tran", 0)


@pytest.fixture(scope="module")
def tokenizer():
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(checkpoint("llm"))


@settings(max_examples=150, deadline=None)
@given(text=st.text(st.characters(exclude_categories=["Cs"]), max_size=60))
def test_any_text_survives_the_round_trip(tokenizer, text: str) -> None:
    """Up to NFC, which is Qwen2's normal form."""
    import unicodedata

    ids = tokenizer(text).input_ids
    assert tokenizer.decode(ids) == unicodedata.normalize("NFC", text)


def test_tokenizer_is_small_fast_and_splits_digits(tokenizer) -> None:
    assert tokenizer.is_fast and len(tokenizer) == 1024
    assert tokenizer.tokenize("1234") == ["1", "2", "3", "4"]
    cost = len(tokenizer("What colour is the large star at the top left?").input_ids)
    assert cost <= 12
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    special += ["<|vision_start|>", "<|vision_end|>", "<|image_pad|>"]
    assert all(len(tokenizer(token).input_ids) == 1 for token in special)
    assert (tokenizer.pad_token, tokenizer.eos_token) == (special[0], special[2])


def test_chat_template_is_chatml_without_a_default_system_prompt(tokenizer) -> None:
    messages = [
        {"role": "system", "content": "S"},
        {"role": "user", "content": "U"},
        {"role": "assistant", "content": "A"},
    ]
    text = tokenizer.apply_chat_template(messages, tokenize=False)
    assert text == (
        "<|im_start|>system\nS<|im_end|>\n<|im_start|>user\nU<|im_end|>\n"
        "<|im_start|>assistant\nA<|im_end|>\n"
    )
    alone = tokenizer.apply_chat_template(messages[1:2], tokenize=False, add_generation_prompt=True)
    assert alone == "<|im_start|>user\nU<|im_end|>\n<|im_start|>assistant\n"
