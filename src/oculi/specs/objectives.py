"""What a stage minimises."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from oculi.specs.base import Rate, Strict


class LmSpec(Strict):
    """Cross-entropy on answer tokens (VoRA, equation 3)."""

    kind: Literal["lm"] = "lm"
    weight: Rate = 1.0


class DistillSpec(Strict):
    """Cosine alignment of vision tokens with a frozen ViT (VoRA, equations 1 and 2)."""

    kind: Literal["distill"] = "distill"
    weight: Rate = 1.0
    teacher: str
    mode: Literal["none", "last", "block"] = "block"
    align: Literal["output", "input", "released"] = "output"


ObjectiveSpec = Annotated[LmSpec | DistillSpec, Field(discriminator="kind")]
