"""The shared tiny VQ model and checkpoints."""

from helpers import tiny
from vqmodel import vq_folder

__all__ = ["tiny", "vq_folder"]
