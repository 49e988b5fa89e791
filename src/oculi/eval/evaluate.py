"""Ask a model a task's questions, score the answers, keep every one of them."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from transformers import GenerationConfig

from oculi.data.source import pieces, sizes
from oculi.errors import DataError
from oculi.eval.asked import Question, Task
from oculi.eval.score import Scoring, majority, mean_interval, wilson
from oculi.eval.tasks import without_images
from oculi.model import OculiForConditionalGeneration, OculiProcessor
from oculi.model.processing_oculi import Encoded

Progress = Callable[[int, int], None]
KEPT_IMAGES = 24
NEW_TOKENS = 64  # of an answer, unless the true one is longer


def encode_question(question: Question, processor: OculiProcessor, blind: bool) -> Encoded:
    """A prompt that ends with the opening of the assistant's turn; raises DataError for a picture."""
    messages = without_images(question.messages) if blind else question.messages
    pictures = [] if blind else [image.load() for image in question.images]
    conversation = pieces(messages, pictures)
    try:
        return processor.encode(
            conversation,  # type: ignore[arg-type]
            add_generation_prompt=True,
            modality=question.modality,
        )
    except processor.EncodingError as error:
        raise DataError(f"question {question.id}: {error}") from None


def _length(question: Question, processor: OculiProcessor, blind: bool) -> int:
    """Tokens of a prompt; raises DataError as ``encode_question`` does."""
    messages = without_images(question.messages) if blind else question.messages
    shown = [] if blind else sizes(question.images)
    try:
        return processor.length(pieces(messages, shown))
    except processor.EncodingError as error:
        raise DataError(f"question {question.id}: {error}") from None


def _needed(asked: Sequence[Question], processor: OculiProcessor) -> int:
    """New tokens that let every true answer be given whole, with the end of its turn."""
    longest = 0
    for question in asked:
        try:
            longest = max(longest, len(processor.chat.encode_text(question.answer)))
        except processor.EncodingError as error:
            raise DataError(f"question {question.id}: {error}") from None
    return max(NEW_TOKENS, longest + 1)


@torch.inference_mode()
def answer(
    model: OculiForConditionalGeneration,
    processor: OculiProcessor,
    prompts: Sequence[Encoded],
    max_new_tokens: int,
    generation: GenerationConfig | None = None,
) -> list[str]:
    """Greedy answers to a batch of prompts (or as ``generation`` says)."""
    batch = processor.collate(prompts).to(model.device)
    config = generation or GenerationConfig(
        do_sample=False,
        max_new_tokens=max_new_tokens,
        eos_token_id=model.generation_config.eos_token_id or processor.tokenizer.eos_token_id,
        pad_token_id=processor.tokenizer.pad_token_id,
        suppress_tokens=model.generation_config.suppress_tokens,
    )
    output = model.generate(**batch, generation_config=config)
    new = output[:, batch["input_ids"].shape[1] :]
    return list(processor.tokenizer.batch_decode(new, skip_special_tokens=True))


def evaluate(
    model: OculiForConditionalGeneration,
    processor: OculiProcessor,
    task: Task,
    out: Path,
    *,
    blind: bool = False,
    limit: int | None = None,
    batch: int = 64,
    max_new_tokens: int | None = None,
    on_progress: Progress | None = None,
    labels: dict[str, str] | None = None,
) -> dict[str, Any]:
    """Score a model by free generation, and exact match or what the task has in its place.

    Args:
        task: what to ask.
        out: folder for ``result.json`` and ``answers.jsonl``; made if need be.
        blind: ask without the images.
        limit: number of questions.
        max_new_tokens: longest answer; None: 64, or what the longest true answer needs.
        labels: further entries of the result, such as the checkpoint's name.

    Returns:
        what ``result.json`` holds.

    Raises:
        DataError: the task has no questions, or a picture cannot be read.
    """
    began = time.monotonic()
    asked = task.load(limit)
    if not asked:
        raise DataError(f"the task {task.name} has no questions")
    most = max_new_tokens or _needed(asked, processor)
    predictions: dict[int, str] = {}
    # Prompts of like length together: less padding, the same answers. Pictures are opened batch by
    # batch, for those of a large task do not fit into memory.
    lengths = [_length(question, processor, blind) for question in asked]
    order = sorted(range(len(asked)), key=lambda i: lengths[i])
    was_training = model.training
    model.eval()
    try:
        for start in range(0, len(order), batch):
            chosen = order[start : start + batch]
            prompts = [encode_question(asked[i], processor, blind) for i in chosen]
            texts = answer(model, processor, prompts, most)
            predictions.update(zip(chosen, texts, strict=True))
            if on_progress:
                on_progress(len(predictions), len(asked))
    finally:
        model.train(was_training)
    rows = _rows(asked, predictions, out, blind, task.scoring)
    result = {
        "task": task.name,
        **(labels or {}),
        "blind": blind,
        "scoring": task.scoring.name,
        **_scores(rows),
        **task.scoring.summary(rows),
        "decoding": {"greedy": True, "max_new_tokens": most},
        "seconds": round(time.monotonic() - began, 1),
    }
    (out / "result.json").write_text(json.dumps(result, indent=1), encoding="utf-8")
    return result


def _rows(
    asked: Sequence[Question], predictions: dict[int, str], out: Path, blind: bool, scoring: Scoring
) -> list[dict[str, Any]]:
    """Every answer, also written to ``answers.jsonl``; the first pictures are kept for the report."""
    (out / "images").mkdir(parents=True, exist_ok=True)
    rows = []
    for i, question in enumerate(asked):
        image = None
        if question.images and not blind and i < KEPT_IMAGES:
            image = f"images/{i:03d}.png"
            question.images[-1].load().save(out / image)
        rows.append(
            {
                "id": question.id, "turn": question.turn, "group": question.group,
                "question": question.text, "answer": question.answer, "prediction": predictions[i],
                "correct": scoring.correct(predictions[i], question.answer), "image": image,
            }
        )  # fmt: skip
        if scoring.measure is not None:
            rows[-1]["measures"] = scoring.measure(predictions[i], question.answer)
    lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    (out / "answers.jsonl").write_text(lines, encoding="utf-8")
    return rows


def _scores(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    groups: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        groups.setdefault(row["group"], []).append(row)
    # A constant answers each kind of question with that kind's commonest answer.
    constants = {name: majority([row["answer"] for row in part]) for name, part in groups.items()}
    constant = sum(constants[name][1] * len(part) for name, part in groups.items()) / len(rows)
    return {
        "exact": _score(rows),
        "groups": {
            name: {
                **_score(part),
                "majority": constants[name][1],
                "majority_answer": constants[name][0],
            }
            for name, part in sorted(groups.items())
        },
        "majority": {"score": constant, "answer": "commonest of each group"},
        **({"measures": _measures(rows)} if "measures" in rows[0] else {}),
    }


def _measures(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Means of what is measured beside exact match, with 95 % intervals."""
    return {
        name: asdict(mean_interval([row["measures"][name] for row in rows]))
        for name in rows[0]["measures"]
    }


def _score(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    return asdict(wilson(sum(row["correct"] for row in rows), len(rows)))
