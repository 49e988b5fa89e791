"""Models and batches of given shapes with random weights: what the benchmarks run on, no download."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, Qwen2Config

from oculi.batch import Batch
from oculi.model import OculiConfig, OculiForConditionalGeneration
from oculi.model.lora import inject_lora
from oculi.recipe import LoraSpec


@dataclass(frozen=True)
class Shapes:
    """A Qwen2 with VoRA's parts and the samples that train it.

    Every sample is one picture between two stretches of text; its last tokens are the answer.

    Attributes:
        width, blocks, mlp, heads, kv_heads, vocabulary: of the LLM. tied: its head is its table.
        rank, lora_blocks: of the LoRA.
        patch, vision_width: pixels of a patch's side and width of the patch embedding.
        grid: rows and columns of patches of a picture.
        teacher_blocks, teacher_width: of the ViT whose states are aligned.
        samples: rows of a batch, one sample each. text, answer: tokens of a sample beside its picture,
            and how many of them are learnt.
    """

    width: int = 256
    blocks: int = 8
    mlp: int = 1344
    heads: int = 4
    kv_heads: int = 1
    vocabulary: int = 16_384
    tied: bool = False
    rank: int = 72
    lora_blocks: int = 7
    patch: int = 14
    vision_width: int = 152
    grid: tuple[int, int] = (16, 16)
    teacher_blocks: int = 7
    teacher_width: int = 128
    samples: int = 2
    text: int = 32
    answer: int = 24

    @property
    def vision_tokens(self) -> int:
        """Of one sample."""
        return self.grid[0] * self.grid[1]

    @property
    def length(self) -> int:
        """Tokens of one sample."""
        return self.vision_tokens + self.text

    @property
    def text_before(self) -> int:
        """Text tokens of a sample in front of its picture."""
        return max(0, self.text - self.answer - 1)

    def llm_config(self) -> Qwen2Config:
        """The LLM's configuration."""
        return Qwen2Config(
            vocab_size=self.vocabulary,
            hidden_size=self.width,
            intermediate_size=self.mlp,
            num_hidden_layers=self.blocks,
            num_attention_heads=self.heads,
            num_key_value_heads=self.kv_heads,
            max_position_embeddings=max(2048, self.length),
            tie_word_embeddings=self.tied,
            bos_token_id=None,
            eos_token_id=1,
            pad_token_id=0,
        )


# The prototype that the goals were derived from. A patch embedding of width 152 costs within 6 MFLOP
# what its single projection from 588 to 256 did.
ANCHOR = Shapes()
# For tests of what does not depend on the size.
SMALL = Shapes(
    width=32, blocks=3, mlp=48, vocabulary=320, rank=4, lora_blocks=2, patch=4, vision_width=24,
    grid=(3, 4), teacher_blocks=2, teacher_width=24, text=10, answer=4,
)  # fmt: skip


def build_llm(
    shapes: Shapes, dtype: torch.dtype = torch.float32, device: str = "cpu", seed: int = 0
) -> Any:
    """The LLM with random weights, made where it will stay."""
    torch.manual_seed(seed)
    with torch.device(device):
        return AutoModelForCausalLM.from_config(shapes.llm_config(), dtype=dtype)


def build_vlm(
    shapes: Shapes,
    dtype: torch.dtype = torch.float32,
    device: str = "cpu",
    seed: int = 0,
    attention: str = "sdpa",
) -> OculiForConditionalGeneration:
    """Our model around that LLM, LoRA not yet in it."""
    llm = build_llm(shapes, dtype, device, seed)
    vision = {
        "kind": "patch_embed",
        "patch_size": shapes.patch,
        "width": shapes.vision_width,
        "grid": list(shapes.grid),
    }
    config = OculiConfig(
        text_config=llm.config,
        vision_config=vision,
        image_token_id=shapes.vocabulary,
        image_attention="bidirectional",
        dtype=dtype,
    )
    model = OculiForConditionalGeneration.assemble(config, llm)
    llm.set_attn_implementation(attention)
    model.vision.to(device)
    return model


def add_lora(model: OculiForConditionalGeneration, shapes: Shapes, seed: int = 0) -> None:
    """VoRA's LoRA with B drawn too, as after some steps: at zero no gradient would reach A."""
    torch.manual_seed(seed)
    targets = LoraSpec(rank=1, blocks=1).targets
    inject_lora(model.llm, shapes.rank, shapes.lora_blocks, targets)
    with torch.no_grad():
        for name, parameter in model.llm.named_parameters():
            if ".lora_B." in name:
                parameter.normal_(std=0.02)


def make_batch(shapes: Shapes, seed: int = 0) -> Batch:
    """Samples of random text and pixels, one a row, none padded."""
    draw = torch.Generator().manual_seed(seed)
    rows, length, vision = shapes.samples, shapes.length, shapes.vision_tokens
    before = shapes.text_before
    images = torch.full((rows, length), -1)
    images[:, before : before + vision] = torch.arange(rows)[:, None]
    tokens = torch.randint(2, shapes.vocabulary, (rows, length), generator=draw)
    tokens[images >= 0] = shapes.vocabulary
    positions = torch.arange(length).expand(rows, length)
    labels = torch.arange(length - shapes.answer - 1, length - 1)
    label_rows = (torch.arange(rows)[:, None] * length + labels).flatten()
    patches = (rows * vision, 3 * shapes.patch**2)
    return Batch(
        tokens_BT=tokens,
        positions_BT=positions.contiguous(),
        segments_BT=torch.zeros_like(tokens),
        images_BT=images,
        prompt_BT=positions < length - shapes.answer,
        label_rows_R=label_rows,
        targets_R=tokens.flatten()[label_rows + 1],
        patches_PC=torch.randint(0, 256, patches, dtype=torch.uint8, generator=draw),
        grids_N2=torch.tensor([shapes.grid] * rows),
        sample_ids=tuple(f"drawn-{row}" for row in range(rows)),
    )


def teacher_states(shapes: Shapes, batch: Batch, seed: int = 0) -> list[Tensor]:
    """States that a ViT of these shapes might have on the batch: blocks + 1 tensors [P, M]."""
    draw = torch.Generator().manual_seed(seed)
    shape = (len(batch.patches_PC), shapes.teacher_width)
    return [torch.randn(shape, generator=draw) for _ in range(shapes.teacher_blocks + 1)]
