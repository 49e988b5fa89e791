"""The testbed's VQ model: pictures of 64 x 64 pixels to 8 x 8 indices of 256 codes.

diffusers' VQModel, the class of taming-transformers' VQGAN and of aMUSEd's tokenizer: an encoder that
halves the picture three times, a codebook, and a decoder that only its training needs.
"""

from __future__ import annotations

from typing import Any

SIDE, FACTOR = 64, 8
GRID = SIDE // FACTOR
ENTRIES, WIDTH = 256, 8  # of the codebook


def new() -> Any:
    """An untrained VQModel; torch's dice decide its weights."""
    from diffusers import VQModel

    channels = (16, 24, 40, 56)
    return VQModel(
        block_out_channels=channels,
        down_block_types=("DownEncoderBlock2D",) * len(channels),
        up_block_types=("UpDecoderBlock2D",) * len(channels),
        layers_per_block=1,
        latent_channels=16,
        sample_size=SIDE,
        num_vq_embeddings=ENTRIES,
        vq_embed_dim=WIDTH,
        norm_num_groups=8,
        mid_block_add_attention=False,
    )
