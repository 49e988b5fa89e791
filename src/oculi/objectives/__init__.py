"""What a stage minimises. Objectives own teachers and heads; export never sees them."""

from __future__ import annotations

from collections.abc import Sequence

from oculi.model import OculiForConditionalGeneration
from oculi.objectives.base import Objective
from oculi.objectives.distill import Distill
from oculi.objectives.lm import LanguageModelling
from oculi.objectives.reconstruct import Reconstruct
from oculi.recipe import DistillSpec, LmSpec, ObjectiveSpec, ReconstructSpec

__all__ = ["Distill", "LanguageModelling", "Objective", "Reconstruct", "build_objectives"]


def build_objectives(
    specs: Sequence[ObjectiveSpec], model: OculiForConditionalGeneration
) -> list[Objective]:
    """The objectives of a stage, in order; those that are switched off are left out."""
    built: list[Objective] = []
    for spec in specs:
        match spec:
            case LmSpec():
                built.append(LanguageModelling(spec))
            case DistillSpec(mode="none"):
                pass
            case DistillSpec():
                built.append(Distill.from_spec(spec, model))
            case ReconstructSpec():
                built.append(Reconstruct.from_spec(spec, model))
    return built
