"""A tiny random VQ model in diffusers' own format."""

from pathlib import Path

import pytest
import torch


def save_vq(folder: Path, seed: int = 0, entries: int = 32) -> Path:
    """Four pixels a side for a code: pictures of 16 x 16 pixels have 4 x 4 indices."""
    from diffusers import VQModel

    torch.manual_seed(seed)
    model = VQModel(
        block_out_channels=(8, 8, 8),
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        latent_channels=4,
        sample_size=16,
        num_vq_embeddings=entries,
        norm_num_groups=4,
        mid_block_add_attention=False,
    )
    with torch.no_grad():  # codes among latents: at their initial range one code takes all
        latents = model.encode(torch.rand(entries, 3, 16, 16) * 2 - 1).latents
        model.quantize.embedding.weight.copy_(latents[:, :, 1, 1])
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def vq_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of such a model."""
    return save_vq(tmp_path_factory.mktemp("vq") / "vq")
