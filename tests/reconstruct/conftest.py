"""The shared tiny checkpoints and the finished run."""

from helpers import finished, tiny

__all__ = ["finished", "tiny"]
