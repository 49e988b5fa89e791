"""Next-token cross-entropy on answer tokens (VoRA, section 3.2, equation 3)."""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from torch import Tensor

from oculi.batch import Batch
from oculi.model import OculiOutput
from oculi.objectives.base import Objective
from oculi.recipe import LmSpec


class LanguageModelling(Objective):
    """Cross-entropy in float32 over the label rows; only they have logits."""

    name = "lm"

    def __init__(self, spec: LmSpec) -> None:
        super().__init__()
        self.weight = spec.weight

    def count(self, batch: Batch) -> int:
        return len(batch.targets_R)

    def total(self, output: OculiOutput, batch: Batch, prepared: Any) -> Tensor:
        assert output.logits is not None
        return F.cross_entropy(output.logits[0].float(), batch.targets_R, reduction="sum")
