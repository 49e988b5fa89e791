"""A frozen VQ encoder: from a picture to its codebook indices (VLSA, equation 5).

diffusers' VQModel. Its configuration alone says how many indices a picture has, so that questions can
be planned without weights; those are loaded for the first picture that has to be encoded.

Shapes: h, w: rows and columns of indices; S: side of the picture in pixels as the encoder reads it.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from oculi.cognition.form import Ints
from oculi.errors import CheckpointError
from oculi.hub import load_weights, readable, resolve

_MOST = 2**31  # entries of a codebook and pixels of a picture; what is more is no configuration


class Codebook:
    """A VQ model by its configuration; the encoder itself is loaded when it is needed.

    Args:
        name: folder, hub id or ``testbed:NAME``.
        size: side in pixels of the square that pictures are scaled to; None: ``sample_size``.
        signed: pixels from -1 to 1, else from 0 to 1.

    Attributes:
        entries: of the codebook. side: S, in pixels. rows, columns: h and w, alike.

    Raises:
        CheckpointError: it is no VQModel, or the size is none that it takes.
    """

    def __init__(self, name: str, size: int | None = None, signed: bool = True) -> None:
        self.name, self.signed = name, signed
        self.folder = Path(resolve(name))
        config = _config(self.folder, name)
        self.entries, blocks = config["num_vq_embeddings"], len(config["block_out_channels"])
        self.side, factor = size or config["sample_size"], 2 ** (blocks - 1)
        if self.side % factor:
            raise CheckpointError(
                f"{name} halves a picture {blocks - 1} times: its size must be a multiple of {factor} "
                f"pixels, not {self.side}; set codes.size"
            )
        self.rows = self.columns = self.side // factor
        self._model: Any = None

    def __getstate__(self) -> dict[str, Any]:
        """Without the weights: each loader process loads its own."""
        return {**self.__dict__, "_model": None}

    @property
    def fingerprint(self) -> str:
        """SHA-256 of all that indices depend on: the files, the size and the range of pixels."""
        seen = hashlib.sha256(json.dumps([self.side, self.signed]).encode())
        for file in [self.folder / "config.json", *sorted(self.folder.glob("*.safetensors"))]:
            with file.open("rb") as stream:
                seen.update(hashlib.file_digest(stream, "sha256").digest())
        return seen.hexdigest()

    def pixels(self, picture: Image.Image) -> NDArray[np.uint8]:
        """What the encoder reads of a picture: all of it, scaled to a square, [S, S, 3] uint8."""
        square = picture.convert("RGB").resize((self.side, self.side), Image.Resampling.BICUBIC)
        return np.array(square)  # a copy: torch warns of memory that it may not write

    def indices(self, picture: Image.Image) -> Ints:
        """Codebook indices of a picture, [h, w] int64; raises CheckpointError."""
        return self.encode(self.pixels(picture)[None])[0]

    def encode(self, pixels_NSS3: NDArray[np.uint8], device: str = "cpu") -> Ints:
        """Codebook indices of N pictures, [N, h, w] int64; raises CheckpointError."""
        import torch

        model = self.load().to(device)
        # Outside of whatever precision the caller computes in: rounded latents have other neighbours.
        with torch.inference_mode(), torch.autocast(device, enabled=False):
            pixels = torch.from_numpy(pixels_NSS3).to(device).permute(0, 3, 1, 2).float() / 255
            latents = model.encode(2 * pixels - 1 if self.signed else pixels).latents
            indices = model.quantize(latents)[2][2]
        found: Ints = indices.reshape(-1, self.rows, self.columns).cpu().numpy()
        return found

    def load(self) -> Any:
        """The encoder; raises CheckpointError."""
        if self._model is None:
            vq_class = _vq_class()
            model = load_weights(vq_class, str(self.folder), self.name, exact=True)
            self._model = model.float().eval().requires_grad_(False)
        return self._model


def _vq_class() -> Any:
    try:
        from diffusers import VQModel
        from diffusers.utils import logging
    except ImportError:
        raise CheckpointError(
            "codebook indices need diffusers: pip install 'oculi[diffusion]'"
        ) from None
    logging.set_verbosity_error()
    return VQModel


def _config(folder: Path, name: str) -> dict[str, Any]:
    """The configuration of a VQModel, as far as it is needed; raises CheckpointError."""
    with readable(name):
        found = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    kind = found.get("_class_name") if isinstance(found, dict) else None
    if kind != "VQModel":
        raise CheckpointError(f"{name} is a {kind or 'checkpoint of another kind'}, not a VQModel")
    counts = [found.get(key) for key in ("num_vq_embeddings", "sample_size")]
    blocks = found.get("block_out_channels")
    good = isinstance(blocks, list) and 0 < len(blocks) < 12
    if not good or not all(isinstance(n, int) and 0 < n < _MOST for n in counts):
        raise CheckpointError(f"{name}: its config.json says no size of codebook or picture")
    return found
