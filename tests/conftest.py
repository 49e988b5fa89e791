"""Tiny models, a tiny tokenizer and batches for them, all made in-process: no test downloads.

Weights are drawn wider than transformers does, because at its 0.02 a model of width 32 hardly
attends, and a wrong mask would stay below any tolerance.
"""

import os
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import numpy as np
import pytest
import torch
from PIL import Image
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def one_thread() -> None:
    """The testbed's build takes two, and a process forked after that waits for them without end."""
    torch.set_num_threads(1)


FAMILIES = ("qwen2", "llama", "olmo2")
PATCH = 4

CHATML = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
CORPUS = [
    "What colour is the circle? The circle is red.",
    "How many squares are there? There are three squares.",
    "user system assistant image picture describe",
]

Piece = int | tuple[int, int]


@lru_cache(maxsize=1)
def _tokenizer_state() -> str:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=320,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
        show_progress=False,
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    return str(tokenizer.to_str())


@pytest.fixture(scope="session")
def make_tokenizer() -> Callable[..., Any]:
    """A fresh byte-level tokenizer with ChatML, whose specials are Qwen's (not yet the image's)."""
    from transformers import PreTrainedTokenizerFast

    def make(chat_template: str | None = CHATML, **arguments: Any) -> Any:
        settings: dict[str, Any] = {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"}
        tokenizer = PreTrainedTokenizerFast(
            tokenizer_object=Tokenizer.from_str(_tokenizer_state()), **{**settings, **arguments}
        )
        tokenizer.chat_template = chat_template
        return tokenizer

    return make


@pytest.fixture(scope="session")
def make_processor(make_tokenizer: Callable[..., Any]) -> Callable[..., Any]:
    """A fresh ``OculiProcessor`` with patches of 4 pixels; keywords go to its image processor."""
    from oculi.model import OculiImageProcessor, OculiProcessor

    def make(tokenizer: Any = None, **image_settings: Any) -> Any:
        settings: dict[str, Any] = {"patch_size": PATCH, "min_patches": 1, "max_patches": 16}
        image_processor = OculiImageProcessor(**{**settings, **image_settings})
        return OculiProcessor(image_processor, tokenizer or make_tokenizer())

    return make


@pytest.fixture(scope="session")
def vocab_size() -> int:
    """Rows of the tiny models' embedding table: the tokenizer without an image token."""
    return int(Tokenizer.from_str(_tokenizer_state()).get_vocab_size())


@pytest.fixture(scope="session")
def make_llm_config(vocab_size: int) -> Callable[..., Any]:
    """The configuration of a tiny LLM of one of ``FAMILIES``."""
    from transformers import AutoConfig

    def make(family: str = "qwen2", **settings: Any) -> Any:
        defaults: dict[str, Any] = {
            "vocab_size": vocab_size,
            "hidden_size": 32,
            "intermediate_size": 48,
            "num_hidden_layers": 3,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "max_position_embeddings": 256,
            "initializer_range": 0.3,
            "tie_word_embeddings": False,
            "bos_token_id": None,
            "eos_token_id": 2,
            "pad_token_id": 0,
        }
        return AutoConfig.for_model(family, **{**defaults, **settings})

    return make


@pytest.fixture(scope="session")
def make_model(make_llm_config: Callable[..., Any], vocab_size: int) -> Callable[..., Any]:
    """A tiny random model in eval mode; its image token lies just outside of the embedding table.

    ``vision`` is its vision part's configuration, a patch embedding if none is given; ``compress`` that
    of its compressor, ``fusion`` that of its fusion module. Keywords beyond these go to the LLM's
    configuration.
    """
    from oculi.model import OculiConfig, OculiForConditionalGeneration

    patch_embed = {"kind": "patch_embed", "patch_size": PATCH, "width": 24, "grid": [4, 4]}

    def make(
        family: str = "qwen2",
        policy: str = "bidirectional",
        seed: int = 0,
        vision: dict[str, Any] | None = None,
        compress: dict[str, Any] | None = None,
        fusion: dict[str, Any] | None = None,
        **settings: Any,
    ) -> Any:
        torch.manual_seed(seed)
        config = OculiConfig(
            text_config=make_llm_config(family, **settings),
            vision_config=vision or patch_embed,
            compress_config=compress,
            fuse_config=fusion,
            image_token_id=vocab_size,
            image_attention=policy,
        )
        model = OculiForConditionalGeneration(config).eval()
        with torch.no_grad():
            for part in filter(None, (model.vision, model.compress, model.fusion)):
                for parameter in part.parameters():
                    parameter.normal_(std=0.3)
            for name, parameter in model.llm.named_parameters():
                if name.endswith("bias"):
                    parameter.normal_(std=0.3)
        return model

    return make


@pytest.fixture(scope="session")
def make_inputs(vocab_size: int) -> Callable[..., dict[str, torch.Tensor]]:
    """Rows of token ids and (rows, columns) of images to left-padded keyword arguments of forward.

    An image has a token a patch, or as many as ``tokens`` says.
    """

    def make(
        rows: Sequence[Sequence[Piece]], seed: int = 0, tokens: int | None = None
    ) -> dict[str, torch.Tensor]:
        ids: list[list[int]] = []
        grids: list[tuple[int, int]] = []
        for row in rows:
            ids.append([])
            for piece in row:
                if isinstance(piece, int):
                    ids[-1].append(piece)
                    continue
                grids.append(piece)
                ids[-1] += [vocab_size] * (tokens or piece[0] * piece[1])
        length = max(len(row) for row in ids)
        inputs = {
            "input_ids": torch.tensor([[0] * (length - len(row)) + row for row in ids]),
            "attention_mask": torch.tensor([[0] * (length - len(r)) + [1] * len(r) for r in ids]),
        }
        if grids:
            generator = torch.Generator().manual_seed(seed)
            total = sum(a * b for a, b in grids)
            shape = (total, 3 * PATCH**2)
            inputs["pixel_values"] = torch.randint(
                0, 256, shape, dtype=torch.uint8, generator=generator
            )
            inputs["image_grids"] = torch.tensor(grids)
        return inputs

    return make


@pytest.fixture(scope="session")
def make_picture() -> Callable[..., Image.Image]:
    """A noise picture of width x height pixels."""

    def make(width: int, height: int, seed: int = 0) -> Image.Image:
        pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
        return Image.fromarray(pixels)

    return make


@pytest.fixture
def no_grad() -> Iterator[None]:
    """Run the test without autograd."""
    with torch.no_grad():
        yield
