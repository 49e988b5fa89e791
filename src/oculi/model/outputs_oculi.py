"""What a forward pass gives, and what is made of its images on the way.

Shapes: B rows, T tokens, D the LLM's width, P patches, N images, R label rows, V vocabulary, S vision
tokens of the whole batch.
"""

from dataclasses import dataclass
from typing import Any, NamedTuple

from torch import Tensor
from transformers import Cache
from transformers.utils import ModelOutput


@dataclass
class OculiOutput(ModelOutput):
    """Result of a forward pass.

    Attributes:
        logits: [B, T, V]; [1, R, V] when ``label_rows`` was given.
        past_key_values: the cache, when it is used.
        taps: what the reducers returned, by block or name.
        hidden_states, attentions: the LLM's, of every block, where ``output_hidden_states`` or
            ``output_attentions`` asks for them. With ``label_rows`` the last block may have computed
            their rows alone.
    """

    logits: Tensor | None = None
    past_key_values: Cache | None = None
    taps: dict[int | str, Any] | None = None
    hidden_states: tuple[Tensor, ...] | None = None
    attentions: tuple[Tensor, ...] | None = None


class Sight(NamedTuple):
    """What is made of a call's images.

    Attributes:
        tokens: [S, D], of all images in order: what the LLM is given.
        pooled: [N, D], of each whole image, if the vision part has it.
        owners: [P], the token that each patch went into, if a compressor says.
        whole: [P, D], the vision part's tokens, before a compressor made fewer.
    """

    tokens: Tensor
    pooled: Tensor | None
    owners: Tensor | None
    whole: Tensor
