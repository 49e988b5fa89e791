"""The interface of an objective.

An objective may look at the batch before the model runs (``prepare``: a teacher's pass), asks for
intermediates (``taps``), and returns a *sum* and the number of units it sums over. The loop divides by
the units of the whole global batch, so packing, accumulation and several ranks give one result.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from oculi.batch import Batch
from oculi.model import OculiOutput
from oculi.model.modeling_oculi import Reducer
from oculi.objectives.exhibit import Exhibit


class Objective(nn.Module):
    """One term of the loss. Its parameters, if any, are trained and checkpointed, never exported.

    Attributes:
        shown: samples of which it has something to show at a checkpoint; 0: nothing.
    """

    name: str
    weight: float
    shown: int = 0

    def prepare(self, batch: Batch) -> Any:
        """What has to be known before the model runs; the result comes back to the other methods."""
        return None

    @property
    def frozen(self) -> nn.Module | None:
        """What it computes with and no stage trains, such as a teacher; held outside of the module."""
        return None

    def taps(self, prepared: Any) -> Mapping[Any, Reducer]:
        """Reducers of what the model computes; see ``OculiForConditionalGeneration.forward``."""
        return {}

    @abstractmethod
    def count(self, batch: Batch) -> int:
        """Units of this batch that the loss is a mean over."""

    @abstractmethod
    def total(self, output: OculiOutput, batch: Batch, prepared: Any) -> Tensor:
        """Sum of the loss over the units of this batch: a float32 scalar."""

    @contextmanager
    def showing(self, found: list[Exhibit]) -> Iterator[None]:
        """Forward passes within add what there is to show to ``found``; their losses mean nothing."""
        yield

    def place(self, device: torch.device, dtype: torch.dtype) -> None:
        """Move what is not a registered part (a frozen teacher) to a device, in this dtype."""
