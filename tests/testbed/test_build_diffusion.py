"""The tiny autoencoder and transformer: their build, in a few steps, and what it leaves behind."""

import json
from pathlib import Path

import torch

from oculi.objectives.latents import DENOISER, VAE, Autoencoder, load_part
from oculi.testbed import build_diffusion, manifest
from oculi.testbed.build import build
from oculi.testbed.build_diffusion import (
    CHANNELS,
    FACTOR,
    POOLED,
    PROMPT,
    SIDE,
    drawn,
    new_vae,
    restoration,
)


def test_quick_build(tmp_path: Path) -> None:
    build(tmp_path, ["vae", "sd3"], quick=True)
    assert manifest.problems(tmp_path) == []
    parts = manifest.read(tmp_path)["parts"]
    for name, most in (("vae", 2), ("sd3", 3)):
        assert "diffusers" in parts[name]["versions"] and parts[name]["steps"] == 3
        assert sum(entry["bytes"] for entry in parts[name]["files"].values()) < most * 2**20
    vae = Autoencoder(load_part(str(tmp_path / "vae"), VAE))
    assert (vae.channels, vae.factor) == (CHANNELS, FACTOR)
    pixels, captions = drawn("test", range(6))
    assert pixels.shape == (6, 3, SIDE, SIDE) and all(captions)
    latents = vae.encode((pixels + 1) * 127.5)
    assert latents.shape == (6, CHANNELS, SIDE // FACTOR, SIDE // FACTOR)
    train, _ = drawn("train", range(20))  # what the scale was measured on
    own = vae.encode((train + 1) * 127.5)
    assert abs(float(own.mean())) < 0.1 and abs(float(own.std()) - 1) < 0.1
    sd3 = load_part(str(tmp_path / "sd3"), DENOISER)
    assert {p.dtype for part in (sd3, vae.model) for p in part.parameters()} == {torch.float32}
    with torch.no_grad():
        made = sd3(
            hidden_states=latents, encoder_hidden_states=torch.randn(6, 7, PROMPT),
            pooled_projections=torch.randn(6, POOLED), timestep=torch.full((6,), 500.0),
            return_dict=False,
        )[0]  # fmt: skip
    assert made.shape == latents.shape and made.isfinite().all()
    config = json.loads((tmp_path / "sd3" / "config.json").read_text())
    assert config["_class_name"] == "SD3Transformer2DModel"


def test_the_shipped_autoencoder_keeps_more_than_the_ground() -> None:
    """A blank picture of the mean colour has 13 to 20 dB: objects and words are few pixels."""
    scores = restoration(load_part("testbed:vae", VAE), 60)
    assert len(scores) == 5
    for level, found in scores.items():
        assert found["PSNR"] > found["PSNR of a blank picture"] + 6, (level, found)


def test_kernels_are_updated_in_place_and_cleared() -> None:
    model = new_vae()
    optimiser = build_diffusion._optimisers(model, build_diffusion.VAE)
    assert len(optimiser.matrices) + len(optimiser.others) == len(list(model.parameters()))
    before = [weight.detach().clone() for weight in model.parameters()]
    pixels, _ = drawn("train", range(2))
    model.decode(model.encode(pixels).latent_dist.mode()).sample.square().mean().backward()
    moved = [weight.grad is not None and bool(weight.grad.any()) for weight in model.parameters()]
    optimiser.step(0)
    assert all(weight.grad is None for weight in model.parameters())
    for old, weight, had in zip(before, model.parameters(), moved, strict=True):
        assert (not torch.equal(old, weight)) == had
