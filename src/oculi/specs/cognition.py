"""What is asked beside a stage's own questions: pixel values and codebook indices."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from oculi.specs.base import Count, Int, Share, Strict

Cells = tuple[Annotated[Count, Field(le=64)], Annotated[Count, Field(le=64)]]


class PixelsSpec(Strict):
    """Mean colours of cells of a quarter of a picture (VLSA, section 3.2)."""

    share: Share = Field(0.1, description="of draws with a picture, how many are asked")
    grid: Cells = Field((2, 2), description="rows and columns of cells in the quarter")
    levels: Int = Field(256, ge=2, le=256, description="values of a channel, from 0")
    text: Literal["spaced", "joined", "hex"] = Field(
        "spaced", description="of a colour: 163 178 193, 163178193 or #a3b2c1"
    )


class CodesSpec(Strict):
    """Codebook indices of a frozen VQ encoder (VLSA, equation 5)."""

    share: Share = Field(0.1, description="of draws with a picture, how many are asked")
    vq: str = Field(description="folder, hub id or testbed:NAME of a diffusers VQModel")
    size: Count | None = Field(
        None, description="side in pixels at which it reads a picture; None: its sample_size"
    )
    signed: bool = Field(
        True, description="it takes pixels from -1 to 1; false: from 0 to 1, as aMUSEd's"
    )
    window: Cells = Field((2, 2), description="rows and columns of indices asked for at once")
    cache: str | None = Field(
        None, description="folder that `oculi data codes` has written; None: encoded when drawn"
    )


class CognitionSpec(Strict):
    """Turns about a picture's appearance and its codes, put into conversations at random places."""

    pixels: PixelsSpec | None = Field(None, description="questions about colours; None: none")
    codes: CodesSpec | None = Field(None, description="questions about codes; None: none")

    @model_validator(mode="after")
    def _asks_something(self) -> CognitionSpec:
        if self.pixels is None and self.codes is None:
            raise ValueError("asks nothing: set pixels, codes or both")
        return self
