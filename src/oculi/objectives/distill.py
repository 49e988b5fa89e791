"""Block-wise distillation from a frozen ViT (VoRA, section 3.2, equations 1 and 2).

    vision tokens ── LLM block 0 ── LLM block 1 ── ...     head i: RMSNorm + Linear, d -> M
                          │ head 0       │ head 1
                          ▼ cosine       ▼ cosine          h_vit^i: raw output of ViT block i
    image ───────── ViT block 0 ── ViT block 1 ── ...

Where tokens are merged before the LLM, each patch is compared through the token that it went into: S
stays the ViT's output length, as in equation 1, and a token answers for all of its patches.

The loss is consumed where a block's output is: a tap returns one number, and next to nothing is kept
(``model/recompute_oculi.py``).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from oculi.batch import Batch
from oculi.errors import RecipeError
from oculi.model import OculiForConditionalGeneration, OculiOutput
from oculi.model.modeling_oculi import Reducer
from oculi.model.patch_embed_oculi import RMSNorm
from oculi.objectives.base import Objective
from oculi.objectives.teacher import Teacher
from oculi.recipe import DistillSpec


class Distill(Objective):
    """Cosine distance between projected LLM states and ViT states, averaged over blocks.

    Args:
        spec: mode ``block`` aligns every ViT block, ``last`` the last one. ``align`` says which states:
            ``output``: output of LLM block i with output of ViT block i, as the paper writes;
            ``released``: *input* of LLM block i with output of ViT block i, as the released code does
            with the AIMv2 it downloads; ``input``: input with input, as the released code does with
            transformers' own ViT classes.
        teacher: the frozen ViT.
        width: D, the LLM's width.
        blocks: the LLM's number of blocks.

    Raises:
        RecipeError: the ViT has more blocks than the LLM.
    """

    name = "distill"

    def __init__(self, spec: DistillSpec, teacher: Teacher, width: int, blocks: int) -> None:
        super().__init__()
        if teacher.blocks > blocks:
            raise RecipeError(
                f"the teacher has {teacher.blocks} blocks, the LLM {blocks}: block i is aligned with "
                "block i, so choose a teacher that is not deeper"
            )
        self.weight = spec.weight
        self.align = spec.align
        self._teacher = (teacher,)  # in a tuple: not a submodule, so never trained, saved or moved
        chosen = range(teacher.blocks) if spec.mode == "block" else [teacher.blocks - 1]
        self.heads = nn.ModuleDict(
            {
                str(i): nn.Sequential(
                    RMSNorm(width, eps=1e-5), nn.Linear(width, teacher.width, bias=False)
                )
                for i in chosen
            }
        )

    @classmethod
    def from_spec(cls, spec: DistillSpec, model: OculiForConditionalGeneration) -> Distill:
        """With the teacher that the spec names."""
        return cls(spec, Teacher.load(spec.teacher), model.width, len(model.blocks))

    @property
    def teacher(self) -> Teacher:
        return self._teacher[0]

    @property
    def frozen(self) -> nn.Module:
        return self.teacher.model

    def place(self, device: torch.device, dtype: torch.dtype) -> None:
        self.teacher.to(device, dtype)

    def prepare(self, batch: Batch) -> list[Tensor] | None:
        """Teacher states [S, M]: entry 0 its embedding, entry i + 1 the output of its block i."""
        if not len(batch.grids_N2):
            return None
        return self.teacher.features(batch.patches_PC, batch.grids_N2)

    def taps(self, prepared: list[Tensor] | None) -> Mapping[Any, Reducer]:
        if prepared is None:
            return {}
        student_shift = 0 if self.align == "output" else -1
        teacher_shift = 0 if self.align == "input" else 1
        return {
            int(i) + student_shift: _reducer(head, prepared[int(i) + teacher_shift])
            for i, head in self.heads.items()
        }

    def count(self, batch: Batch) -> int:
        """Patches: S of equation 1 is the ViT's output length, also where tokens are merged."""
        return len(batch.patches_PC)

    def total(self, output: OculiOutput, batch: Batch, prepared: Any) -> Tensor:
        if prepared is None:
            # Touch the heads, so that a text-only batch has gradients (zeros) for every parameter.
            zero: Tensor = sum(p.sum() for p in self.parameters()) * 0.0  # type: ignore[assignment]
            return zero.float()
        assert output.taps is not None
        return torch.stack([output.taps[block] for block in self.taps(prepared)]).mean()


def _reducer(head: nn.Module, target_SM: Tensor) -> Reducer:
    def cosine_distance(hidden_SD: Tensor) -> Tensor:
        if len(hidden_SD) != len(target_SM):
            raise ValueError(
                f"{len(hidden_SD)} states of the student for {len(target_SM)} patches of the teacher: "
                "distillation needs a compressor that says which token each patch went into"
            )
        similarity_S = F.cosine_similarity(head(hidden_SD).float(), target_SM.float(), dim=-1)
        return (1 - similarity_S).sum()

    return cosine_distance
