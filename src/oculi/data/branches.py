"""Turns side by side behind the pictures they share, as one sample of a row.

    system, user, picture | question 1, answer 1 | question 2, answer 2 | ...
    branch 0                branch 1               branch 2

Every branch has the tokens, positions and answers of its turn alone, so the loss of the whole is that of
the turns one by one, and the picture goes through the model once.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from oculi.model import OculiProcessor
    from oculi.model.chat_oculi import ChatEncoder, ImageTokens
    from oculi.model.processing_oculi import Encoded

Conversation = Sequence[tuple[str, Sequence[Any]]]


def encode_branches(
    processor: OculiProcessor, turns: Sequence[Conversation], modality: str = "image"
) -> Encoded:
    """Turns that begin with the same pictures, encoded side by side.

    Args:
        turns: as ``OculiProcessor.encode`` takes a conversation, each with all of the pictures.
        modality: as there.

    Raises:
        ValueError: they do not begin alike.
    """
    measured = [_measured(turn, lambda picture: processor.tokens(picture.size)) for turn in turns]
    ids, labels, branches = _join(processor.chat, measured)
    first = processor.encode(turns[0], modality=modality)
    return replace(first, input_ids=ids, labels=labels, branches=branches)


def length_of_branches(processor: OculiProcessor, turns: Sequence[Conversation]) -> int:
    """Tokens of what ``encode_branches`` returns, of pictures given as (width, height)."""
    return len(_join(processor.chat, [_measured(turn, processor.tokens) for turn in turns])[0])


def branch_positions(branches: Sequence[int]) -> np.ndarray:
    """Positions [T] int64 of a sample's tokens: every branch goes on where what is shared ends."""
    numbers = np.asarray(branches)
    index = np.arange(len(numbers))
    begins = np.searchsorted(numbers, np.arange(numbers[-1] + 1))
    shared = np.searchsorted(numbers, 1)
    return np.where(numbers > 0, index - begins[numbers] + shared, index)


def _measured(turn: Conversation, tokens: Callable[[Any], ImageTokens]) -> Conversation:
    return [(role, [p if isinstance(p, str) else tokens(p) for p in parts]) for role, parts in turn]


def _join(
    chat: ChatEncoder, turns: Sequence[Conversation]
) -> tuple[list[int], list[int], list[int]]:
    """Ids, labels and branches; what is shared reaches to the end of the last picture."""
    ids, labels, spans = chat.encode(turns[0])
    shared = sum(spans[-1])
    branches = [0] * shared + [1] * (len(ids) - shared)
    for branch, turn in enumerate(turns[1:], 2):
        own_ids, own_labels, _ = chat.encode(turn)
        if own_ids[:shared] != ids[:shared]:
            raise ValueError("turns that stand side by side must begin alike")
        ids += own_ids[shared:]
        labels += own_labels[shared:]
        branches += [branch] * (len(own_ids) - shared)
    return ids, labels, branches
