"""Operations and parameters as AuroraEdge-V's paper counts them: by hooks on modules, as thop does.

Published tables of "GFLOPs" often come from such counters (thop's ``profile``). They see only what calls
a module of a known class, and count a multiply-accumulate as one. ``RULES`` says what that means; a
plan in the exact style counts what the hardware does instead (``products.py``).

The rules are a reading: the paper does not give them, they reproduce its tables 4 and 7.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any, Final

import torch
from torch import Tensor, nn
from transformers import DynamicCache

from oculi.batch import Batch
from oculi.model import OculiForConditionalGeneration
from oculi.plan.attention import Autocast
from oculi.plan.sample import sample_batch

RULES: Final = (
    "GFLOPS are 1e9 multiply-accumulates (MACs) of one forward pass over one sample",
    "a linear layer or convolution has inputs x outputs at every position, without its bias",
    "a LayerNorm has 4 an element; RMSNorm, activations and sums have none",
    "products inside attention, of queries and keys and of scores and values, are not counted",
    "logits are computed at every position",
    "parameters are those of the modules counted, biases too, divided by 2^30: no embedding table "
    "(a tied one counts as the head), no RMSNorm, no weight that is used without its module",
)


def _linear(module: Any, output: Tensor) -> int:
    return int(module.in_features) * output.numel()


def _convolution(module: Any, output: Tensor) -> int:
    return int(module.weight[0].numel()) * output.numel()  # one filter: a group's inputs x its size


def _layer_norm(module: Any, output: Tensor) -> int:
    return (4 if module.elementwise_affine else 2) * output.numel()


# MACs of one call, from the module and its output.
COUNTED: Final[Mapping[type[nn.Module], Callable[[Any, Tensor], int]]] = {
    nn.Linear: _linear,
    nn.Conv1d: _convolution,
    nn.Conv2d: _convolution,
    nn.Conv3d: _convolution,
    nn.LayerNorm: _layer_norm,
}


@dataclass
class PaperCount:
    """What hooks have seen so far.

    Attributes:
        macs: multiply-accumulates of all calls.
    """

    macs: int = 0
    _seen: dict[nn.Parameter, None] = field(default_factory=dict)

    @property
    def parameters(self) -> int:
        """Of the modules that were called, each once."""
        return sum(parameter.numel() for parameter in self._seen)

    @property
    def gflops(self) -> float:
        """1e9 MACs, which papers call GFLOPS."""
        return self.macs / 1e9

    @property
    def params_b(self) -> float:
        """2^30 parameters, as the paper's column has them."""
        return self.parameters / 2**30

    def add(self, module: nn.Module, macs: int) -> None:
        """A call of a module."""
        self.macs += macs
        self._seen |= dict.fromkeys(module.parameters(recurse=False))


@contextmanager
def counting(model: nn.Module) -> Iterator[PaperCount]:
    """Count by ``RULES`` every call of a model's modules within; the device may be ``meta``."""
    count = PaperCount()
    with ExitStack() as stack, torch.no_grad():
        for module in model.modules():
            rule = next((rule for kind, rule in COUNTED.items() if isinstance(module, kind)), None)
            if rule is not None:
                hook = module.register_forward_hook(_hook(count, rule))
                stack.callback(hook.remove)
        yield count


def _hook(count: PaperCount, rule: Callable[[Any, Tensor], int]) -> Callable[..., None]:
    def called(module: nn.Module, inputs: Any, output: Tensor) -> None:
        count.add(module, rule(module, output))

    return called


@contextmanager
def every_token(model: nn.Module) -> Iterator[None]:
    """Within it, modules that compute only what is read afterwards compute all, as the papers' do.

    Those are modules with ``text_alone``: true where only text is computed of what has text and image.
    """
    saving = [module for module in model.modules() if getattr(module, "text_alone", False)]
    for module in saving:
        module.text_alone = False  # type: ignore[assignment]
    try:
        yield
    finally:
        for module in saving:
            module.text_alone = True  # type: ignore[assignment]


def count_forward(
    model: OculiForConditionalGeneration, grid: tuple[int, int], text: int
) -> PaperCount:
    """One forward pass of a model on the meta device: every token everywhere, logits at all positions.

    Args:
        model: as it answers: mergeable LoRA is folded.
        grid: rows and columns of patches of the picture. text: tokens beside it.
    """
    inputs = _sample(model, grid, text).model_inputs() | {"label_rows": None}
    with Autocast(None), every_token(model), counting(model) as count:
        model.eval()(**inputs)
    return count


def count_prefill(
    model: OculiForConditionalGeneration, grid: tuple[int, int], text: int
) -> PaperCount:
    """What our ``generate`` computes before the first token of an answer: as ``count_forward``, but the
    cache is filled, and only the last position has logits."""
    sample = _sample(model, grid, text)
    with Autocast(None), counting(model) as count:
        model.eval()(
            sample.tokens_BT,
            image_ids=sample.images_BT,
            prompt_mask=sample.prompt_BT,
            pixel_values=sample.patches_PC,
            image_grids=sample.grids_N2,
            past_key_values=DynamicCache(config=model.config.text_config),
            use_cache=True,
            logits_to_keep=1,
        )
    return count


def _sample(model: OculiForConditionalGeneration, grid: tuple[int, int], text: int) -> Batch:
    vision = int(model.tokens_per_image(torch.tensor([grid])))
    patch = int(model.config.vision_config["patch_size"])
    return sample_batch(grid, text, patch, "meta", vision)
