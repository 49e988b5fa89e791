"""Answers from an exported folder with onnxruntime, tokenizers, numpy and Pillow alone.

Nothing here imports torch or transformers; `oculi export --to onnx` writes what is read.
"""

from __future__ import annotations

from oculi.edge.runtime import Runner, load
from oculi.edge.sampling import Decoding

__all__ = ["Decoding", "Runner", "load"]
