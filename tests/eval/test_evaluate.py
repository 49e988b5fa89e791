"""Evaluation: free generation, every answer kept, and no way for a batch to change one."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import oculi
from helpers import HOSTILE, Drawn, Tiny, sample
from oculi.data.sample import Message
from oculi.errors import DataError
from oculi.eval import evaluate as module
from oculi.eval.asked import Question, Task
from oculi.eval.chat import Conversation
from oculi.eval.evaluate import answer, encode_question, evaluate
from oculi.eval.tasks import open_task, questions


@pytest.fixture(scope="module")
def loaded(finished: Path) -> tuple[Any, Any]:
    return oculi.load(finished)


def task(*samples: Any, group: str | None = None) -> Task:
    found = [q for made in samples for q in questions(made, group)]
    return Task("made", lambda limit: found[:limit])


MADE = [
    sample("a", ("#", "\nWhat colour?"), "red", images=(Drawn(8, 8, 1),)),
    sample("b", "How many squares are there in the picture?", "three"),
    sample(
        "c", ("#", "#", "same?"), "no", "sure?", "yes", images=(Drawn(16, 4, 2), Drawn(4, 8, 3))
    ),
    sample("d", HOSTILE, HOSTILE),
]


def rows(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "answers.jsonl").read_text().splitlines()]


def test_every_answer_is_written_in_order(loaded: tuple[Any, Any], tmp_path: Path) -> None:
    out = tmp_path / "deep" / "out"
    result = evaluate(*loaded, task(*MADE), out, max_new_tokens=5, labels={"checkpoint": "x"})
    found = rows(out)
    assert [(row["id"], row["turn"], row["question"], row["answer"]) for row in found] == [
        ("a", 1, "What colour?", "red"),
        ("b", 1, "How many squares are there in the picture?", "three"),
        ("c", 1, "same?", "no"),
        ("c", 2, "sure?", "yes"),
        ("d", 1, HOSTILE, HOSTILE),
    ]
    for row in found:
        assert row["correct"] == (row["prediction"].strip() == row["answer"].strip())
    assert result == json.loads((out / "result.json").read_text())
    assert (result["task"], result["blind"], result["checkpoint"]) == ("made", False, "x")
    assert result["exact"]["n"] == 5
    assert result["exact"]["correct"] == sum(row["correct"] for row in found)
    assert {name: group["n"] for name, group in result["groups"].items()} == {
        "turn 1": 4, "turn 2": 1,
    }  # fmt: skip
    assert result["decoding"] == {"greedy": True, "max_new_tokens": 5}
    # The picture beside a question is the last one of its history.
    assert [row["image"] is None for row in found] == [False, True, False, False, True]
    from PIL import Image

    with Image.open(out / found[2]["image"]) as picture:
        assert picture.size == (4, 8)


def test_the_longest_true_answer_can_be_given(
    loaded: tuple[Any, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nine cells of 16 levels need more than 64 tokens: cut there, a perfect model scores 0."""
    processor = loaded[1]
    asked = open_task("pixels:playroom:3?grid=3x3&levels=16")
    ids = [processor.chat.encode_text(question.answer) for question in asked.load(3)]

    def perfect(model: Any, processor: Any, prompts: Any, most: int) -> list[str]:
        chosen = [ids[int(place)] for place in order[: len(prompts)]]
        return [processor.tokenizer.decode(one[:most]) for one in chosen]

    lengths = [module._length(question, processor, False) for question in asked.load(3)]
    order = sorted(range(3), key=lambda i: lengths[i])
    monkeypatch.setattr(module, "answer", perfect)
    result = evaluate(*loaded, asked, tmp_path / "needed", limit=3)
    longest = max(map(len, ids))
    assert longest > 64 and result["exact"]["score"] == 1
    assert result["decoding"]["max_new_tokens"] == longest + 1  # and the end of the turn
    assert (
        evaluate(*loaded, asked, tmp_path / "cut", limit=3, max_new_tokens=64)["exact"]["score"]
        == 0
    )
    short = evaluate(*loaded, task(*MADE[:1]), tmp_path / "short")
    assert short["decoding"]["max_new_tokens"] == 64


def test_the_batch_size_changes_no_answer(loaded: tuple[Any, Any], tmp_path: Path) -> None:
    """Left padding, other rows' images, the order of prompts: nothing may leak into an answer."""
    found = []
    for size in (1, 2, 64):
        evaluate(*loaded, task(*MADE), tmp_path / str(size), batch=size, max_new_tokens=12)
        found.append([row["prediction"] for row in rows(tmp_path / str(size))])
    assert found[0] == found[1] == found[2]
    assert len(set(found[0])) > 1  # a model that says one thing always would prove nothing


def test_a_blind_prompt_has_no_image(loaded: tuple[Any, Any], tmp_path: Path) -> None:
    model, processor = loaded
    question = questions(MADE[2])[1]
    seeing, blind = (encode_question(question, processor, b) for b in (False, True))
    assert len(seeing.grids) == 2 and processor.image_token_id in seeing.input_ids
    assert blind.grids == [] and blind.pixel_values == []
    assert processor.image_token_id not in blind.input_ids
    text = processor.tokenizer.decode(blind.input_ids)
    turns = ["user\nsame?", "assistant\nno", "user\nsure?"]
    wanted = "".join(f"<|im_start|>{turn}<|im_end|>\n" for turn in turns)
    assert text == wanted + "<|im_start|>assistant\n"
    evaluate(model, processor, task(*MADE), tmp_path, blind=True, max_new_tokens=2)
    assert all(row["image"] is None for row in rows(tmp_path))
    assert json.loads((tmp_path / "result.json").read_text())["blind"] is True


def test_a_blind_model_does_not_open_pictures(loaded: tuple[Any, Any], tmp_path: Path) -> None:
    class Secret(Drawn):
        def load(self) -> Any:
            pytest.fail("a picture was opened")

    made = sample("x", ("#", "what?"), "red", images=(Secret(8, 8),))
    evaluate(*loaded, task(made), tmp_path, blind=True, max_new_tokens=2)


def test_pictures_are_held_for_one_batch_at_a_time(
    loaded: tuple[Any, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A task of a hundred thousand pictures must not be in memory at once."""
    alive: list[int] = []
    encoded: list[int] = []
    encode = module.encode_question

    def counted(*arguments: Any) -> Any:
        encoded.append(1)
        return encode(*arguments)

    def asked(model: Any, processor: Any, prompts: Any, length: int) -> list[str]:
        alive.append(len(encoded))
        return ["x"] * len(prompts)

    monkeypatch.setattr(module, "encode_question", counted)
    monkeypatch.setattr(module, "answer", asked)
    evaluate(*loaded, task(*MADE), tmp_path, batch=2)
    assert alive == [2, 4, 5]


def test_a_model_that_is_right_is_counted(
    loaded: tuple[Any, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    replies = {"What colour?": " red\n", "same?": "No", "sure?": "yes"}
    asked = task(*MADE).load(None)
    order: list[str] = []

    def encode(question: Question, processor: Any, blind: bool) -> Any:
        order.append(question.text)
        return replace(encode_question(question, processor, blind))

    def reply(model: Any, processor: Any, prompts: Any, length: int) -> list[str]:
        return [replies.get(text, "?") for text in order[-len(prompts) :]]

    monkeypatch.setattr(module, "encode_question", encode)
    monkeypatch.setattr(module, "answer", reply)
    result = evaluate(*loaded, task(*MADE), tmp_path, batch=2)
    assert [row["correct"] for row in rows(tmp_path)] == [True, False, False, True, False]
    assert (result["exact"]["correct"], result["exact"]["score"]) == (2, 0.4)
    assert result["groups"]["turn 2"]["score"] == 1.0
    assert len(asked) == 5


def test_a_constant_per_group_is_the_floor(
    loaded: tuple[Any, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = [sample(str(i), "?", text) for i, text in enumerate(["a", "a", "b", "c"])]
    other = [sample(str(i), "?", text) for i, text in enumerate(["x", "y"])]
    found = [*task(*made, group="one").load(None), *task(*other, group="two").load(None)]
    monkeypatch.setattr(module, "answer", lambda m, p, prompts, n: ["a"] * len(prompts))
    result = evaluate(*loaded, Task("t", lambda limit: found), tmp_path)
    assert result["groups"]["one"]["majority"] == 0.5
    assert result["groups"]["one"]["majority_answer"] == "a"
    assert result["groups"]["two"]["majority"] == 0.5
    assert result["majority"]["score"] == pytest.approx((2 + 1) / 6)


def test_a_question_that_the_template_refuses_is_named(
    loaded: tuple[Any, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before any is asked; a run then warns and goes on."""
    _, processor = loaded
    refusal = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('none') }}{% endif %}"
    template = refusal + processor.tokenizer.chat_template
    monkeypatch.setattr(processor.tokenizer, "chat_template", template)
    plain = sample("q7", "How many?", "two")
    refused = replace(plain, messages=(Message("system", ("Be brief.",)), *plain.messages))
    for blind in (False, True):
        with pytest.raises(DataError, match=r"question q7: .*template refuses.* system, user"):
            evaluate(*loaded, task(refused), tmp_path / "out", blind=blind)


def test_nothing_to_ask(loaded: tuple[Any, Any], tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no questions"):
        evaluate(*loaded, task(*MADE), tmp_path, limit=0)
    with pytest.raises(DataError, match="no questions"):
        evaluate(*loaded, open_task("playroom:1"), tmp_path, limit=0)


def test_the_mode_comes_back_whatever_happens(loaded: tuple[Any, Any], tmp_path: Path) -> None:
    model, processor = loaded
    model.train()
    evaluate(model, processor, task(MADE[1]), tmp_path, max_new_tokens=1)
    assert model.training
    with pytest.raises(DataError):
        evaluate(model, processor, task(), tmp_path)
    assert model.training
    model.eval()
    evaluate(model, processor, task(MADE[1]), tmp_path, max_new_tokens=1)
    assert not model.training


def test_progress_ends_at_the_total(loaded: tuple[Any, Any], tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    evaluate(
        *loaded, task(*MADE), tmp_path, batch=2, max_new_tokens=1,
        on_progress=lambda done, total: seen.append((done, total)),
    )  # fmt: skip
    assert seen == [(2, 5), (4, 5), (5, 5)]


def test_answers_are_greedy_and_end_at_the_turn(loaded: tuple[Any, Any]) -> None:
    """By hand: the most likely token again and again, until the turn ends."""
    model, processor = loaded
    prompt = encode_question(questions(MADE[0])[0], processor, blind=False)
    inputs = processor.collate([prompt])
    ids, said = inputs["input_ids"], []
    with torch.no_grad():
        for _ in range(8):
            whole = {**inputs, "input_ids": ids, "attention_mask": torch.ones_like(ids)}
            whole.pop("prompt_mask")
            token = model(**whole).logits[0, -1].argmax()
            if int(token) == processor.tokenizer.eos_token_id:
                break
            said.append(int(token))
            ids = torch.cat([ids, token.view(1, 1)], 1)
    wanted = processor.tokenizer.decode(said, skip_special_tokens=True)
    assert answer(model, processor, [prompt], 8) == [wanted]


def test_a_conversation_keeps_its_history(loaded: tuple[Any, Any], tmp_path: Path) -> None:
    model, processor = loaded
    files = [tmp_path / "a.png", tmp_path / "b.png"]
    for i, file in enumerate(files):
        Drawn(8, 8 + 4 * i, i).load().save(file)
    talk = Conversation(model, processor, files, 6)
    first, second = talk.ask(f"What? {HOSTILE}"), talk.ask("And?")
    pictures = [Drawn(8, 8 + 4 * i, i).load() for i in range(2)]
    history: list[Any] = [("user", [*pictures, f"\nWhat? {HOSTILE}"])]
    prompt = processor.encode(history, add_generation_prompt=True)
    assert first == answer(model, processor, [prompt], 6)[0]
    history += [("assistant", [first]), ("user", ["And?"])]
    prompt = processor.encode(history, add_generation_prompt=True)
    assert second == answer(model, processor, [prompt], 6)[0]
    with pytest.raises(DataError, match=r"none\.png"):
        Conversation(model, processor, [tmp_path / "none.png"], 6)


def test_a_real_task_end_to_end(loaded: tuple[Any, Any], tiny: Tiny, tmp_path: Path) -> None:
    result = evaluate(*loaded, open_task(str(tiny.data)), tmp_path, max_new_tokens=4)
    assert result["exact"]["n"] == 8 and len(rows(tmp_path)) == 8
    assert rows(tmp_path)[3]["question"] == f"{HOSTILE} 3"
