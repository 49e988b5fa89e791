"""The shared tiny checkpoints, the finished run and its recipe."""

import pytest

from helpers import Tiny, finished, tiny, tiny_recipe
from oculi.recipe import Recipe
from vqmodel import vq_folder

__all__ = ["finished", "tiny", "vq_folder"]


@pytest.fixture
def recipe(tiny: Tiny) -> Recipe:
    """The recipe of ``finished``."""
    return tiny_recipe(tiny)
