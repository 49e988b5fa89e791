"""How the next token is chosen from its logits.

Shapes: V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from oculi.errors import RecipeError


@dataclass(frozen=True)
class Decoding:
    """Settings of one answer.

    Attributes:
        max_new_tokens: longest answer.
        temperature: 0 for the likeliest token; else logits are divided by it and drawn from.
        top_p: draw from the fewest tokens whose probabilities reach it (arXiv 1904.09751).
        seed: of the draws.
        min_new_tokens: before these the answer does not end.

    Raises:
        RecipeError: a setting is out of range.
    """

    max_new_tokens: int = 128
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0
    min_new_tokens: int = 0

    def __post_init__(self) -> None:
        wrong = {
            "max_new_tokens": self.max_new_tokens < 1,
            "temperature": not 0 <= self.temperature < float("inf"),
            "top_p": not 0 < self.top_p <= 1,
            "seed": self.seed < 0,
            "min_new_tokens": not 0 <= self.min_new_tokens <= self.max_new_tokens,
        }
        for name, bad in wrong.items():
            if bad:
                raise RecipeError(f"{name} = {getattr(self, name)} is out of range")


GREEDY = Decoding()


def choose(logits_V: NDArray[np.float32], decoding: Decoding, dice: np.random.Generator) -> int:
    """The next token: the first of the likeliest, or one drawn by ``dice``."""
    if decoding.temperature == 0:
        return int(logits_V.argmax())
    scaled = logits_V.astype(np.float64) / decoding.temperature
    probabilities = np.exp(scaled - scaled.max())
    probabilities /= probabilities.sum()
    if decoding.top_p < 1:
        order = np.argsort(-probabilities, kind="stable")
        before = probabilities[order].cumsum() - probabilities[order]
        probabilities[order[before >= decoding.top_p]] = 0  # the first one is always kept
        probabilities /= probabilities.sum()
    return int(dice.choice(len(probabilities), p=probabilities))
