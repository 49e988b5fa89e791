"""What every part of a recipe has in common: no unknown keys, no NaN, no change in place."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field


class Strict(BaseModel):
    """A part of a recipe: no unknown keys, no NaN, immutable."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


def _no_switch(value: Any) -> Any:
    """pydantic would read ``steps: true`` as one step."""
    if isinstance(value, bool):
        raise ValueError(f"{str(value).lower()} is no value for it")
    return value


Int = Annotated[int, BeforeValidator(_no_switch)]
Float = Annotated[float, BeforeValidator(_no_switch)]
Count = Annotated[Int, Field(ge=1)]
Rate = Annotated[Float, Field(ge=0)]
Share = Annotated[Float, Field(ge=0, le=1)]
Decay = Annotated[Float, Field(ge=0, lt=1)]
Weight = Annotated[Float, Field(gt=0)]
