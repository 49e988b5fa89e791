"""Peer (a): how the released VoRA code trains, rewritten plainly as a baseline to compare with.

What is slow in it is slow here, and nothing else (``models/modeling_vora.py``, ``attention_mask.py``,
``aux_vision.py`` and ``configs/pretrain_I30M_T6M.yaml`` of Hon-Wong/VoRA, read, not copied):

- the mask is a dense [B, 1, T, T] float tensor, found by a loop that looks at one token after the other;
- every position has logits;
- all hidden states are kept, and a boolean index picks the vision tokens of each;
- ``gradient_checkpointing: true``: whole blocks are computed twice;
- every loss is read by the host for the log.

Its accidental biases on layers without one are not repeated, so that the losses equal ours.

Shapes: B rows, T tokens, D the LLM's width, M the teacher's, P patches of one picture.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from oculi.batch import Batch
from oculi.bench.shapes import Shapes
from oculi.model.patch_embed_oculi import CLIP_MEAN, CLIP_STD, unpatchify
from oculi.recipe import LoraSpec


class LoraLinear(nn.Module):
    """A linear layer with LoRA beside it."""

    def __init__(self, base: nn.Linear, rank: int) -> None:
        super().__init__()
        self.weight, self.bias = base.weight, base.bias
        place = {"device": base.weight.device, "dtype": torch.float32}
        self.lora_A = nn.Linear(base.in_features, rank, bias=False, **place)
        self.lora_B = nn.Linear(rank, base.out_features, bias=False, **place)

    def forward(self, x: Tensor) -> Tensor:
        """[..., in] to [..., out]."""
        return F.linear(x, self.weight, self.bias) + self.lora_B(self.lora_A(x))


class SlowRMSNorm(nn.Module):
    """RMSNorm of single operations, as its heads and its patch embedding have it."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """Of the input's shape and dtype."""
        wide = x.float()
        normed = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + self.eps)
        return normed.type_as(x) * self.weight


class ConvEmbedding(nn.Module):
    """A convolution, a norm, positions and a projection: pictures [N, 3, H, W] to [N, P, D]."""

    def __init__(self, shapes: Shapes) -> None:
        super().__init__()
        patch, width = shapes.patch, shapes.vision_width
        self.patch = nn.Conv2d(3, width, kernel_size=patch, stride=patch)
        self.norm = SlowRMSNorm(width, 1e-6)
        self.position = nn.Parameter(torch.zeros(shapes.vision_tokens, width))
        self.projection = nn.Linear(width, shapes.width, bias=False)

    def forward(self, images: Tensor) -> Tensor:
        """Tokens of all pictures."""
        tokens = self.norm(self.patch(images).flatten(2).transpose(1, 2))
        return self.projection(tokens + self.position)


def make_mask(attention_BT: Tensor, vision_BT: Tensor, dtype: torch.dtype) -> Tensor:
    """The dense additive mask [B, 1, T, T]: causal text, and each run of vision tokens sees itself."""
    rows, length = attention_BT.shape
    device = attention_BT.device
    least = torch.finfo(dtype).min
    # A tensor as fill value: the host reads it back.
    fill = torch.tensor(least, device=device).item()
    causal = torch.full((length, length), fill, device=device)
    index = torch.arange(length, device=device)
    causal.masked_fill_(index < (index + 1).view(length, 1), 0)
    padding = 1.0 - attention_BT[:, None, None, :].expand(rows, 1, length, length).to(dtype)
    padding = padding.masked_fill(padding.to(torch.bool), least)
    mask = padding + causal.to(dtype)[None, None].expand(rows, 1, length, length)
    return mask.clone().masked_fill_(_runs(vision_BT, dtype).to(torch.bool), 0)


def _runs(vision_BT: Tensor, dtype: torch.dtype) -> Tensor:
    """1 where query and key are in one run of vision tokens: [B, 1, T, T], one look at each token."""
    rows, length = vision_BT.shape
    inside = torch.zeros((rows, 1, length, length), dtype=dtype, device=vision_BT.device)
    for row in range(rows):
        start = None
        for token in range(length):
            if vision_BT[row, token] == 1:
                start = token if start is None else start
            elif start is not None:
                inside[row, 0, start:token, start:token] = 1
                start = None
        if start is not None:
            inside[row, 0, start:, start:] = 1
    return inside


class OfficialStyle(nn.Module):
    """The model and its distillation.

    Args:
        shapes: sizes; pictures all have ``shapes.grid``.
        llm: any Qwen2 of transformers; its linears are replaced by ones with LoRA.
        checkpointing: recompute whole blocks, as the released configurations do.
    """

    def __init__(self, shapes: Shapes, llm: Any, checkpointing: bool = True) -> None:
        super().__init__()
        self.shapes, self.llm = shapes, llm
        for parameter in llm.parameters():
            parameter.requires_grad_(False)
        targets = LoraSpec(rank=1, blocks=1).targets
        for block in llm.model.layers[: shapes.lora_blocks]:
            for name, child in list(block.named_modules()):
                if name.rpartition(".")[2] in targets:
                    parent, _, last = name.rpartition(".")
                    setattr(block.get_submodule(parent), last, LoraLinear(child, shapes.rank))
        self.vision = ConvEmbedding(shapes).to(llm.device)
        self.heads = nn.ModuleList(
            nn.Sequential(
                SlowRMSNorm(shapes.width, 1e-5),
                nn.Linear(shapes.width, shapes.teacher_width, bias=False),
            )
            for _ in range(shapes.teacher_blocks)
        ).to(llm.device)
        if checkpointing:
            for block in llm.model.layers:  # what transformers' gradient_checkpointing_enable does
                block.gradient_checkpointing = True
                block._gradient_checkpointing_func = partial(checkpoint, use_reentrant=False)

    def load(self, ours: Mapping[str, Tensor]) -> None:
        """Take over what we train, by our canonical names, so that losses can be compared."""
        own = dict(self.named_parameters())
        with torch.no_grad():
            for name, value in ours.items():
                if name.startswith("objectives.distill.heads."):
                    target = own[name.removeprefix("objectives.distill.")]
                elif name.startswith("vision."):
                    target = own[name]
                else:
                    target = own[f"{name}.weight" if ".lora_" in name else name]
                target.copy_(value.view_as(target))

    def forward(self, inputs: Mapping[str, Tensor], states: Sequence[Tensor]) -> Tensor:
        """The loss of a batch.

        Args:
            inputs: what ``official_inputs`` made.
            states: of the teacher, the embedding first, [B * P, M] each.
        """
        vision = self.vision(inputs["images"])
        text = self.llm.get_input_embeddings()(inputs["text"])
        before = self.shapes.text_before
        embeds = torch.cat([text[:, :before], vision.to(text.dtype), text[:, before:]], 1)
        mask = make_mask(inputs["attention"], inputs["vision"], embeds.dtype)
        output = self.llm(
            inputs_embeds=embeds,
            attention_mask=mask,
            labels=inputs["labels"],
            output_hidden_states=True,
            use_cache=False,
        )
        losses = {"lm": output.loss}
        for block, head in enumerate(self.heads):
            hidden = output.hidden_states[block + 1][inputs["vision"] == 1]
            similarity = F.cosine_similarity(states[block + 1], head(hidden), dim=1)
            losses[f"distill_{block}"] = (1 - similarity).mean()
        distill = sum(loss for name, loss in losses.items() if name != "lm")
        total: Tensor = distill / len(self.heads) + output.loss
        # The host reads every one.
        self.log = {name: loss.item() for name, loss in {**losses, "total": total}.items()}
        return total


def official_inputs(shapes: Shapes, batch: Batch) -> dict[str, Tensor]:
    """A batch in the released code's layout, from ours of one sample a row and nothing padded."""
    rows, length = batch.tokens_BT.shape
    vision_BT = batch.images_BT >= 0
    labels = torch.full((rows * length,), -100)
    labels[batch.label_rows_R + 1] = batch.targets_R
    side = shapes.patch
    pictures = [
        unpatchify(patches, *shapes.grid, side)
        for patches in batch.patches_PC.split(shapes.vision_tokens)
    ]
    mean, deviation = (torch.tensor(v)[:, None, None] for v in (CLIP_MEAN, CLIP_STD))
    text = batch.tokens_BT[~vision_BT].view(rows, shapes.text)
    return {
        "images": (torch.stack(pictures) / 255 - mean) / deviation,
        "text": text,
        "attention": torch.ones_like(batch.tokens_BT),
        "vision": vision_BT.long(),
        "labels": labels.view(rows, length),
    }
