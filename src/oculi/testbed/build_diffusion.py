"""Trains the testbed's autoencoder and the text-to-image transformer on its latents.

Both are of diffusers' classes, as Stable Diffusion 3 has them: an eighth of a picture's side, 16
channels, patches of two, flow matching. The transformer learns to draw Playroom from captions; what
turns captions into prompts is thrown away: in reconstructive training an Epigone takes its place.

Legend: B pictures, L tokens of a caption, C x h x w of a latent.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from oculi.objectives.likeness import psnr
from oculi.testbed import checkpoint, playroom
from oculi.testbed.build_common import Optimisers, Plan, Progress, batches, cast, save, setup
from oculi.testbed.manifest import versions

SIDE = 96  # pixels of a picture, 12 of its latent
FACTOR, CHANNELS = 8, 16
CHANNELS_OF_PICTURES = 3
LEVELS = (1, 2, 3, 3, 4, 5)  # of one picture after the other; words are the hardest to draw
PROMPT, POOLED, TOKENS = 128, 64, 48
SCORED = 200
LOG_VARIANCE = -6.0  # of a posterior at the start
KL = 1e-6  # weight of the divergence, as in latent diffusion (arXiv 2112.10752)

VAE = Plan(steps=6000, batch=3, muon_lr=4e-3, adam_lr=4e-3, warmup=30, report_every=200)
SD3 = Plan(steps=3000, batch=32, muon_lr=6e-3, adam_lr=2e-3, warmup=60, report_every=100)
DRAWN = 6000  # pictures whose latents SD3 is trained on


def quick(plan: Plan) -> Plan:
    """Three small steps, for tests."""
    return replace(plan, steps=3, batch=4, warmup=1, report_every=1)


def new_vae() -> Any:
    """An untrained autoencoder: 0.88M parameters."""
    from diffusers import AutoencoderKL

    model = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(16, 32, 48, 64), layers_per_block=1, norm_num_groups=8,
        latent_channels=CHANNELS, sample_size=SIDE, scaling_factor=1.0, shift_factor=0.0,
        use_quant_conv=False, use_post_quant_conv=False, force_upcast=False,
    )  # fmt: skip
    # A posterior starts with a deviation of one, many times its mean: the decoder is then fed noise,
    # and learns to give back even pictures before the encoder learns anything.
    with torch.no_grad():
        model.encoder.conv_out.weight[CHANNELS:] *= 0.1
        model.encoder.conv_out.bias[CHANNELS:] = LOG_VARIANCE
    return model


def new_sd3() -> Any:
    """An untrained SD3 transformer: 1.31M parameters, prompt and pooled embeddings of two widths."""
    from diffusers import SD3Transformer2DModel

    return SD3Transformer2DModel(
        sample_size=SIDE // FACTOR, patch_size=2, in_channels=CHANNELS, out_channels=CHANNELS,
        num_layers=4, attention_head_dim=32, num_attention_heads=3, joint_attention_dim=PROMPT,
        caption_projection_dim=96, pooled_projection_dim=POOLED, pos_embed_max_size=SIDE // FACTOR,
    )  # fmt: skip


def drawn(split: str, numbers: range) -> tuple[Tensor, list[str]]:
    """Pictures [B, 3, 96, 96] in [-1, 1] and what they show in words."""
    images, captions = [], []
    for number in numbers:
        scene = playroom.scene(LEVELS[number % len(LEVELS)], split, number)
        picture = playroom.draw(scene).resize((SIDE, SIDE))
        images.append(np.asarray(picture.convert("RGB")))
        captions.append(playroom.describe_scene(scene, number))
    pixels = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).float()
    return pixels / 127.5 - 1, captions


def build_vae(folder: Path, short: bool, log: Path | None = None) -> dict[str, Any]:
    """Train the autoencoder, write it to ``folder``, return what the manifest says about it."""
    plan = quick(VAE) if short else VAE
    setup(plan.seed)
    model, progress = new_vae(), Progress("vae", plan, log)
    optimizer = _optimisers(model, plan)
    for step in range(plan.steps):
        pixels, _ = drawn("train", range(step * plan.batch, (step + 1) * plan.batch))
        with torch.autocast("cpu", torch.bfloat16):
            posterior = model.encode(pixels).latent_dist
            restored = model.decode(posterior.sample()).sample
        restored = restored.float()
        # Absolute differences alone are least with the background everywhere: objects are small.
        found = {
            "l1": F.l1_loss(restored, pixels),
            "squares": 4 * F.mse_loss(restored, pixels),
            "edges": _edges(restored, pixels),
            "divergence": KL * posterior.kl().float().mean(),
        }
        torch.stack(list(found.values())).sum().backward()
        optimizer.step(step)
        progress.add(step, {name: value.item() for name, value in found.items()})
    model.eval()
    pixels, _ = drawn("train", range(20 if short else SCORED))
    latents = torch.cat([_encode(model, pixels[list(part)]) for part in batches(len(pixels), 20)])
    # As in SD3: latents of mean zero and deviation one.
    model.register_to_config(
        shift_factor=float(latents.mean()), scaling_factor=float(1 / latents.std())
    )
    save(model, folder)
    cast(model, torch.bfloat16)
    cast(model, torch.float32)  # score what is shipped
    scores = restoration(model, 20 if short else SCORED)
    progress.say(str(scores))
    return _facts(model, plan, plan.steps * plan.batch, scores)


def _optimisers(model: nn.Module, plan: Plan, heads: nn.Module | None = None) -> Optimisers:
    """Muon for kernels and matrices inside, AdamW for the rest: where pictures or latents come in or go
    out, and the heads. AdamW alone was well behind after as many steps (docs/log.md)."""
    matrices: list[nn.Parameter] = []
    others = list(heads.parameters()) if heads is not None else []
    for _, weight in sorted(model.named_parameters()):
        inside = weight.ndim > 1 and min(weight.shape[:2]) > CHANNELS_OF_PICTURES
        (matrices if inside else others).append(weight)
    return Optimisers(matrices, others, plan, decay=0.0)


def _edges(found: Tensor, wanted: Tensor) -> Tensor:
    """Distance of differences of neighbours: an L1 distance alone leaves strokes of letters pale."""
    return F.l1_loss(found.diff(dim=-1), wanted.diff(dim=-1)) + F.l1_loss(
        found.diff(dim=-2), wanted.diff(dim=-2)
    )


@torch.no_grad()
def _encode(model: Any, pixels: Tensor) -> Tensor:
    latents: Tensor = model.encode(pixels).latent_dist.mode()
    return latents


def _shown(pixels: Tensor) -> np.ndarray:
    """[B, 3, H, W] in [-1, 1] to [B, H, W, 3] in 0 to 255."""
    return ((pixels + 1) * 127.5).permute(0, 2, 3, 1).numpy()


@torch.no_grad()
def restoration(model: Any, count: int) -> dict[str, dict[str, float]]:
    """PSNR in dB over held-out pictures, by level, and that of pictures of their mean colour alone."""
    found: dict[int, list[tuple[float, float]]] = {level: [] for level in sorted(set(LEVELS))}
    for numbers in batches(count, 20):
        pixels, _ = drawn("test", numbers)
        again = model.decode(_encode(model, pixels)).sample.clamp(-1, 1)
        blank = pixels.mean((2, 3), keepdim=True).expand_as(pixels)
        wanted = _shown(pixels)
        pairs = zip(psnr(_shown(again), wanted), psnr(_shown(blank), wanted), strict=True)
        for number, pair in zip(numbers, pairs, strict=True):
            found[LEVELS[number % len(LEVELS)]].append(pair)
    return {
        f"level {level}": {
            "PSNR": round(float(np.mean([pair[0] for pair in pairs])), 2),
            "PSNR of a blank picture": round(float(np.mean([pair[1] for pair in pairs])), 2),
        }
        for level, pairs in found.items()
    }


class Prompts(nn.Module):
    """Captions to prompt and pooled embeddings: a table and one layer, thrown away after training."""

    def __init__(self, words: int) -> None:
        super().__init__()
        self.table = nn.Embedding(words, PROMPT)
        self.places = nn.Embedding(TOKENS, PROMPT)
        self.mix = nn.TransformerEncoderLayer(
            PROMPT, 4, 2 * PROMPT, dropout=0.0, batch_first=True, norm_first=True
        )
        self.pooled = nn.Linear(PROMPT, POOLED)

    def forward(self, ids_BL: Tensor) -> tuple[Tensor, Tensor]:
        """Token ids [B, L] to [B, L, 128] and [B, 64]."""
        states = self.table(ids_BL) + self.places.weight[: ids_BL.shape[1]]
        states = self.mix(states)
        return states, self.pooled(states.mean(1))


def build_sd3(folder: Path, short: bool, log: Path | None = None) -> dict[str, Any]:
    """Train the transformer on latents of the autoencoder beside it, or else of the shipped one."""
    from transformers import AutoTokenizer

    plan = quick(SD3) if short else SD3
    setup(plan.seed)
    count = 20 if short else DRAWN
    built = folder.parent.parent / "vae"  # a part is made in a folder of its own beside the others
    autoencoder = _autoencoder(str(built) if (built / "config.json").exists() else "testbed:vae")
    latents, captions = _latents(autoencoder, "train", count)
    tokenizer = AutoTokenizer.from_pretrained(checkpoint("llm"))
    model, progress = new_sd3(), Progress("sd3", plan, log)
    prompts = Prompts(len(tokenizer))
    optimizer = _optimisers(model, plan, prompts)
    for step in range(plan.steps):
        chosen = torch.randint(count, (plan.batch,))
        ids = _ids(tokenizer, [captions[i] for i in chosen.tolist()])
        with torch.autocast("cpu", torch.bfloat16):
            loss = _flow(model, prompts, latents[chosen], ids)
        loss.backward()
        optimizer.step(step)
        progress.add(step, {"flow": loss.item()})
    save(model, folder)
    cast(model, torch.bfloat16)
    cast(model, torch.float32)
    count = 20 if short else SCORED
    latents, captions = _latents(autoencoder, "test", count)
    scores = _condition(model.eval(), prompts, tokenizer, latents, captions)
    progress.say(str(scores))
    return _facts(model, plan, plan.steps * plan.batch, {"flow matching loss": scores})


def _autoencoder(name: str) -> Any:
    from oculi.objectives.latents import VAE as PART
    from oculi.objectives.latents import Autoencoder, load_part

    return Autoencoder(load_part(name, PART))


def _latents(autoencoder: Any, split: str, count: int) -> tuple[Tensor, list[str]]:
    """Latents of so many pictures [B, 16, 12, 12], and their captions."""
    found, said = [], []
    for numbers in batches(count, 50):
        pixels, captions = drawn(split, numbers)
        found.append(autoencoder.encode((pixels + 1) * 127.5))
        said += captions
    return torch.cat(found), said


def _ids(tokenizer: Any, captions: list[str]) -> Tensor:
    ids = tokenizer(captions, padding="max_length", truncation=True, max_length=TOKENS)["input_ids"]
    return torch.tensor(ids)


def _flow(model: Any, prompts: Prompts, latents: Tensor, ids: Tensor) -> Tensor:
    """SD3's loss: noise minus latent from a mixture of both, at logit-normal levels."""
    times, noise = torch.randn(len(latents)).sigmoid(), torch.randn_like(latents)
    level = times[:, None, None, None]
    states, pooled = prompts(ids)
    found = model(
        hidden_states=(1 - level) * latents + level * noise, encoder_hidden_states=states,
        pooled_projections=pooled, timestep=1000 * times, return_dict=False,
    )[0]  # fmt: skip
    return F.mse_loss(found.float(), noise - latents)


@torch.no_grad()
def _condition(
    model: Any, prompts: Prompts, tokenizer: Any, latents: Tensor, captions: list[str]
) -> dict[str, float]:
    """The loss over held-out pictures with their own captions and with each other's, same noise."""
    scores = {}
    for name, said in (
        ("own captions", captions),
        ("others' captions", captions[1:] + captions[:1]),
    ):
        torch.manual_seed(0)
        losses = [
            float(
                _flow(model, prompts, latents[list(part)], _ids(tokenizer, [said[i] for i in part]))
            )
            for part in batches(len(latents), 20)
        ]
        scores[name] = round(float(np.mean(losses)), 4)
    return scores


def _facts(model: Any, plan: Plan, samples: int, metrics: dict[str, Any]) -> dict[str, Any]:
    from importlib.metadata import version

    return {
        "parameters": sum(weight.numel() for weight in model.parameters()),
        "steps": plan.steps,
        "samples": samples,
        "seed": plan.seed,
        "versions": versions() | {"diffusers": version("diffusers")},
        "metrics": metrics,
    }
