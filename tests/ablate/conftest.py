"""The shared tiny checkpoints."""

from helpers import tiny

__all__ = ["tiny"]
