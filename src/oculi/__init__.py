"""oculi gives a language model eyes: train, compare, merge, measure and serve."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from oculi.model import OculiForConditionalGeneration, OculiProcessor
    from oculi.recipe import Recipe

__version__ = "0.1.0"
__all__ = ["load", "train"]


def load(checkpoint: str | Path) -> tuple[OculiForConditionalGeneration, OculiProcessor]:
    """Model and processor of a run folder, a training checkpoint or an exported folder.

    Code that a folder may hold is never run.

    Raises:
        CheckpointError: there is no checkpoint of oculi's at that place.
    """
    from oculi.export.load import load_checkpoint

    return load_checkpoint(Path(checkpoint))


def train(recipe: Recipe, out: str | Path, resume: bool = False, **options: Any) -> Path:
    """Run a recipe; see ``oculi.training.run.train``. Returns the run's folder."""
    from oculi.training.run import train as run

    return run(recipe, Path(out), resume=resume, **options)
