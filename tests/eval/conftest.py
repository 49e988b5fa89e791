"""The shared tiny checkpoints, the finished run and the tiny VQ model."""

from helpers import finished, tiny
from vqmodel import vq_folder

__all__ = ["finished", "tiny", "vq_folder"]
