"""The two ways to count a recipe: what it truly costs, and what papers print."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final, Protocol

from oculi.errors import RecipeError, nearest, shown
from oculi.plan.paper_report import PaperPlan, paper_plan
from oculi.plan.report import TEXT_TOKENS, Plan, plan
from oculi.recipe import Recipe


class Printable(Protocol):
    """What ``oculi plan`` prints."""

    def to_json(self) -> dict[str, Any]:
        """For programs."""
        ...

    def lines(self) -> Iterable[str]:
        """For people."""
        ...


@dataclass(frozen=True)
class Asked:
    """What is planned for; None where nothing was said. GPUs matter to the exact style alone."""

    gpu: str
    gpus: int
    text_tokens: int | None
    image: tuple[int, int] | None


def _exact(recipe: Recipe, asked: Asked) -> Plan:
    text = TEXT_TOKENS if asked.text_tokens is None else asked.text_tokens
    return plan(recipe, asked.gpu, asked.gpus, text, asked.image)


def _paper(recipe: Recipe, asked: Asked) -> PaperPlan:
    return paper_plan(recipe, asked.text_tokens, asked.image)


STYLES: Final[Mapping[str, Callable[[Recipe, Asked], Printable]]] = {
    "exact": _exact,
    "paper": _paper,
}


def plan_in_style(style: str, recipe: Recipe, asked: Asked) -> Printable:
    """The plan of a recipe in a style of ``STYLES``; raises as ``plan`` and ``paper_plan`` do.

    Raises:
        RecipeError: there is no such style.
    """
    if style not in STYLES:
        known = " and ".join(STYLES)
        raise RecipeError(
            f"--style: no style {shown(style)}{nearest(style, STYLES)}; there are {known}"
        )
    return STYLES[style](recipe, asked)
