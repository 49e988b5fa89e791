"""Trains the testbed's VQ model, whose codebook indices cognition alignment asks for.

It sees pictures of all levels and nothing that is asked about them. First without the codebook; then
the codebook starts from the latents of a sample of pictures (k-means), because one that starts at
random is used in a corner alone; codes that none of the last pictures used start anew.

Shapes: B pictures, h = w = 8 cells a side, N = B * h * w latents, E codes of width D.
"""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from oculi.testbed import playroom, vq
from oculi.testbed.build_common import Plan, Progress, batches, cast, factor, save, setup

PLAN = Plan(steps=600, batch=16, muon_lr=0.0, adam_lr=8e-4, warmup=20, save_every=200)
QUICK = Plan(steps=3, batch=4, muon_lr=0.0, adam_lr=8e-4, warmup=1, report_every=1)

WITHOUT = 0.25  # share of the steps that go before the codebook
FIRST = 256  # pictures that the codebook starts from
ROUNDS = 10  # of k-means
RESTART = 40  # steps after which unused codes start anew, up to the last quarter
SCORED = 100  # pictures of each level that the manifest's scores are from


def pixels(level: int, split: str, numbers: range | list[int]) -> Tensor:
    """Pictures of a level as the model takes them: [B, 3, 64, 64] float32 in -1 to 1."""
    made = []
    for number in numbers:
        picture = playroom.draw(playroom.scene(level, split, number))
        made.append(np.asarray(picture.resize((vq.SIDE, vq.SIDE), Image.Resampling.BICUBIC)))
    return torch.from_numpy(np.stack(made)).permute(0, 3, 1, 2).float() / 127.5 - 1


def mixed(plan: Plan, step: int) -> Tensor:
    """The pictures of a step, of all levels alike: [B, 3, 64, 64] float32."""
    slots = range(step * plan.batch, (step + 1) * plan.batch)
    levels = playroom.LEVELS
    return torch.cat([pixels(levels[n % len(levels)], "train", [n]) for n in slots])


def cells(latents: Tensor) -> Tensor:
    """Latents [B, D, h, w] -> [N, D]."""
    return latents.permute(0, 2, 3, 1).flatten(0, 2)


def centres(latents_ND: Tensor, count: int, rounds: int) -> Tensor:
    """k-means: [count, D]; a centre that no latent is nearest to moves to one at random."""
    found = latents_ND[torch.randperm(len(latents_ND))[:count]].clone()
    for _ in range(rounds):
        nearest_N = torch.cdist(latents_ND, found).argmin(1)
        sums = torch.zeros_like(found).index_add_(0, nearest_N, latents_ND)
        sizes = torch.bincount(nearest_N, minlength=count)
        lost = sizes == 0
        found = sums / sizes.clamp(min=1)[:, None]
        found[lost] = latents_ND[torch.randint(len(latents_ND), (int(lost.sum()),))]
    return found


def loss_of(model: Any, images: Tensor, coded: bool) -> tuple[dict[str, Tensor], Tensor, Tensor]:
    """Named losses, the latents [N, D] and their codes [N]; ``coded``: through the codebook."""
    latents = model.encode(images).latents
    if coded:
        passed, commitment, (*_, used) = model.quantize(latents)
    else:
        # Small latents: k-means then starts from one cloud, not from a few far points.
        passed, commitment = latents, 0.001 * latents.square().mean()
        used = torch.zeros(0, dtype=torch.int64)
    decoded = model.decoder(model.post_quant_conv(passed)).float()
    # Absolute differences alone are least with the background everywhere: objects are small.
    squares = 4 * F.mse_loss(decoded, images)
    losses = {
        "pixels": F.l1_loss(decoded, images),
        "squares": squares,
        "codebook": commitment.float(),
    }
    return losses, cells(latents.detach().float()), used


def train(model: Any, plan: Plan, folder: Path, progress: Progress) -> None:
    """Train ``model`` in place; it is written to ``folder`` now and then."""
    optimiser = torch.optim.AdamW(model.parameters(), betas=(0.9, 0.99), weight_decay=0.0)
    table, seen = model.quantize.embedding.weight, torch.zeros(vq.ENTRIES, dtype=torch.int64)
    begin = max(1, round(WITHOUT * plan.steps))
    for step in range(plan.steps):
        if step == begin:
            first = FIRST if plan.steps > QUICK.steps else 8
            levels = playroom.LEVELS
            shown = [pixels(levels[n % len(levels)], "train", [n]) for n in range(first)]
            with torch.no_grad():
                own = [cells(model.encode(torch.cat(shown[i : i + 16])).latents.float())
                       for i in range(0, first, 16)]  # fmt: skip
                table.copy_(centres(torch.cat(own), vq.ENTRIES, ROUNDS))
        with torch.autocast("cpu", torch.bfloat16):
            losses, latents_ND, used = loss_of(model, mixed(plan, step), coded=step >= begin)
        torch.stack(list(losses.values())).sum().backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for group in optimiser.param_groups:
            group["lr"] = plan.adam_lr * factor(step, plan)
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)
        seen += torch.bincount(used, minlength=vq.ENTRIES)
        if step > begin and step % RESTART == 0 and step < 0.75 * plan.steps:
            unused = seen == 0
            with torch.no_grad():
                table[unused] = latents_ND[torch.randint(len(latents_ND), (int(unused.sum()),))]
            seen.zero_()
        progress.add(step, {name: value.item() for name, value in losses.items()})
        if plan.save_every and (step + 1) % plan.save_every == 0 and step + 1 < plan.steps:
            progress.say(str(evaluate(model, 20)))
            save(model, folder)


@torch.no_grad()
def evaluate(model: Any, n: int) -> dict[str, dict[str, float]]:
    """Of each level: PSNR of ``n`` held-out pictures in dB, and the codes in use (2 ** entropy)."""
    model.eval()
    scores = {}
    for level in playroom.LEVELS:
        error, counts = 0.0, torch.zeros(vq.ENTRIES)
        for numbers in batches(n, 20):
            images = pixels(level, "test", numbers)
            passed, _, (*_, used) = model.quantize(model.encode(images).latents)
            decoded = model.decoder(model.post_quant_conv(passed)).clamp(-1, 1)
            error += (decoded - images).square().mean().item() * len(images) / n
            counts += torch.bincount(used, minlength=vq.ENTRIES)
        share = counts[counts > 0] / counts.sum()
        entropy = -float((share * share.log2()).sum())
        scores[f"level {level}"] = {
            "PSNR": round(10 * math.log10(4 / error), 2),
            "codes in use": round(2**entropy, 1),
        }
    model.train()
    return scores


def build(folder: Path, quick: bool, log: Path | None = None, plan: Plan = PLAN) -> dict[str, Any]:
    """Train the VQ model, write it to `folder`, return what the manifest says about it."""
    plan = replace(QUICK, seed=plan.seed) if quick else plan
    setup(plan.seed)
    model, progress = vq.new(), Progress("vq", plan, log)
    parameters = sum(weight.numel() for weight in model.parameters())
    progress.say(f"{parameters / 1e6:.2f}M parameters, {plan.steps} steps of {plan.batch} pictures")
    train(model, plan, folder, progress)
    save(model, folder)
    cast(model, torch.bfloat16)  # score what is shipped
    cast(model, torch.float32)
    scores = evaluate(model, 20 if quick else SCORED)
    progress.say(str(scores))
    return {
        "parameters": parameters,
        "steps": plan.steps,
        "samples": plan.steps * plan.batch,
        "seed": plan.seed,
        "metrics": scores,
    }
