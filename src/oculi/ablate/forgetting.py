"""What the LLM still can without a picture: the testbed's text-only skills, before and after training.

VoRA freezes the LLM to keep its abilities, and mixes text into pre-training against what is lost
nevertheless (sections 3.1 and 4.2). LoRA is merged, so it acts on text as well.

The questions are drawn by other dice than the LLM's training texts, which does not make all of them new:
there are few sums and words. Of 1,400 prompts 44 % are also among 137,000 training prompts (of 200 each:
add 176, subtract 187, copy 54, spell 200, sort numbers 1, sort words and reverse 0).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import torch
import torch.nn.functional as F

from oculi.data.loader import collate, encode_sample
from oculi.data.packing import pack
from oculi.data.sample import Message, Sample
from oculi.export.exported import load_exported
from oculi.model import OculiForConditionalGeneration, OculiProcessor
from oculi.recipe import Recipe
from oculi.testbed import language
from oculi.training.build import build_model, build_processor

ROW, ROWS = 512, 16  # tokens of a packed row, and rows at once


@dataclass(frozen=True)
class TextAbility:
    """Of one model.

    Attributes:
        loss: nats per token of the right answer and its end.
        kinds: skill of each question. correct: whether its greedy answer is the right one.
    """

    loss: float
    kinds: tuple[str, ...]
    correct: tuple[bool, ...]

    @property
    def exact(self) -> float:
        """Share of right answers."""
        return sum(self.correct) / len(self.correct)


def text_ability(folder: Path, questions: int) -> TextAbility:
    """Ask the model of an exported stage the first questions of the skills' test split.

    Raises:
        CheckpointError: the folder is no exported model.
    """
    return ask(*load_exported(folder), questions)


def before_training(recipe: Recipe, questions: int) -> TextAbility:
    """The same of the LLM that a recipe starts from."""
    spec = recipe.model
    return _before(spec.model_copy(update={"lora": None}).model_dump_json(), questions)


@lru_cache(maxsize=4)
def _before(model_json: str, questions: int) -> TextAbility:
    from oculi.recipe import ModelSpec

    spec = ModelSpec.model_validate_json(model_json)
    processor = build_processor(spec)
    return ask(build_model(spec, processor, seed=0).eval(), processor, questions)


@torch.inference_mode()
def ask(
    model: OculiForConditionalGeneration, processor: OculiProcessor, questions: int
) -> TextAbility:
    """Loss and exact match in one pass over packed rows.

    Greedy decoding gives the right answer if, and only if, each of its tokens, the end included, is
    the likeliest one after the right tokens before it; so nothing has to be generated.
    """
    asked = [language.skills("test", number) for number in range(questions)]
    encoded = [encode_sample(_sample(i, *turn), processor) for i, turn in enumerate(asked)]
    rows = pack([len(item.input_ids) for item in encoded], ROW)
    correct, losses = [False] * questions, []
    for start in range(0, len(rows), ROWS):
        part = rows[start : start + ROWS]
        batch = collate([[("", encoded[i]) for i in row] for row in part], 1).to(model.device)
        logits_RV = model(**batch.model_inputs()).logits[0].float()
        logits_RV[:, model.generation_config.suppress_tokens or []] = -torch.inf
        losses.append(F.cross_entropy(logits_RV, batch.targets_R, reduction="none"))
        hits = (logits_RV.argmax(-1) == batch.targets_R).tolist()
        order = [i for row in part for i in row]  # as collate has put the label rows
        parts = _split(hits, [_answers(encoded[i].labels) for i in order])
        for i, right in zip(order, parts, strict=True):
            correct[i] = all(right)
    loss = float(torch.cat(losses).mean())
    return TextAbility(loss, tuple(kind for kind, _, _ in asked), tuple(correct))


def _sample(number: int, kind: str, prompt: str, answer: str) -> Sample:
    messages = (Message("user", (prompt,)), Message("assistant", (answer,)))
    return Sample(f"{kind}-{number}", messages)


def _answers(labels: Sequence[int]) -> int:
    return sum(label != -100 for label in labels)


def _split(values: list[bool], counts: Sequence[int]) -> list[list[bool]]:
    parts, start = [], 0
    for count in counts:
        parts.append(values[start : start + count])
        start += count
    return parts
