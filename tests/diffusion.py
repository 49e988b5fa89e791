"""A random autoencoder and a random SD3 transformer, of diffusers' classes and formats."""

from pathlib import Path
from typing import Any

import torch

SIZE = 16  # pixels along the side of what is reconstructed
CHANNELS = 4


def make_vae(seed: int = 1, **settings: Any) -> Any:
    """Latents of 4 channels, an eighth of a picture's pixels: a side of 16 becomes 8."""
    from diffusers import AutoencoderKL

    torch.manual_seed(seed)
    kinds = {
        "down_block_types": ("DownEncoderBlock2D",) * 2,
        "up_block_types": ("UpDecoderBlock2D",) * 2,
    }
    return AutoencoderKL(
        **{
            **kinds, "block_out_channels": (4, 8), "layers_per_block": 1, "norm_num_groups": 2,
            "latent_channels": CHANNELS, "scaling_factor": 1.5, "shift_factor": 0.1,
            "use_quant_conv": False, "use_post_quant_conv": False, **settings,
        }
    ).eval()  # fmt: skip


def make_sd3(seed: int = 2, **settings: Any) -> Any:
    """Width 16, two blocks; prompts of width 12, pooled of width 10. All weights are drawn."""
    from diffusers import SD3Transformer2DModel

    torch.manual_seed(seed)
    model = SD3Transformer2DModel(
        **{
            "sample_size": 8, "patch_size": 2, "in_channels": CHANNELS, "out_channels": CHANNELS,
            "num_layers": 2, "attention_head_dim": 8, "num_attention_heads": 2,
            "joint_attention_dim": 12, "caption_projection_dim": 16, "pooled_projection_dim": 10,
            "pos_embed_max_size": 8, **settings,
        }
    ).eval()  # fmt: skip
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" not in name or name.endswith("linear.weight"):
                parameter.normal_(std=0.2)
    return model


def save_pipeline(folder: Path) -> Path:
    """Both in the folders that a pipeline has them in."""
    make_vae().save_pretrained(folder / "vae")
    make_sd3().save_pretrained(folder / "transformer")
    return folder
