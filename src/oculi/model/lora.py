"""Vision as LoRA: adapters inside the LLM that are trained on images and then folded away.

        x ──┬── W (frozen) ────────┬── W x + B A x        merged: W' = W + B A
            └── A (r x in) ── B ───┘

PEFT's layers (with a faster ``forward``, see ``lora_linear.py``) are injected into the LLM without
``PeftModel`` around it, so parameter names stay those of the LLM. VoRA has no alpha (section 3.1 and its
released code): ``lora_alpha = r``, a factor of one. LoRA that stays, on image tokens alone, is in
``routed_oculi.py``.
"""

from collections.abc import Iterator

import torch
from peft import LoraConfig, inject_adapter_in_model
from peft.tuners.lora import LoraLayer
from torch import nn
from transformers import PreTrainedModel

from .lora_linear import LoraLinear
from .routed_oculi import RoutedLinear, check_targets

ADAPTER = "default"
NOT_MERGED = (
    "it acts on image tokens alone, and a merged weight would act on text as well. Every stage exports "
    "it as it is"
)


def lora_config(rank: int, blocks: int, targets: tuple[str, ...]) -> LoraConfig:
    """PEFT's description of LoRA of ``rank`` on ``targets`` of the first ``blocks`` blocks."""
    config = LoraConfig(
        r=rank,
        lora_alpha=rank,
        lora_dropout=0.0,
        bias="none",
        target_modules=list(targets),
        layers_to_transform=list(range(blocks)),
        layers_pattern=None,
    )
    config._register_custom_module({nn.Linear: LoraLinear})
    return config


def inject_lora(
    llm: PreTrainedModel, rank: int, blocks: int | None, targets: tuple[str, ...]
) -> None:
    """Add LoRA to the linears named in ``targets`` of the first ``blocks`` blocks of ``llm``, in place.

    At initialisation B is zero, so no logit changes. None: of all blocks.

    Raises:
        ValueError: LoRA is there already, there are fewer blocks, or a target matches nothing in them.
    """
    if has_lora(llm):
        raise ValueError("the LLM has LoRA already: merge it before adding another")
    if any(isinstance(module, RoutedLinear) for module in llm.modules()):
        raise ValueError(
            'the LLM has routed LoRA: train that, by the glob "llm.*.lora_?" and model.lora=null'
        )
    if blocks is None:
        blocks = llm.config.num_hidden_layers
    check_targets(llm, blocks, targets)
    inject_adapter_in_model(lora_config(rank, blocks, targets), llm, adapter_name=ADAPTER)


def lora_layers(module: nn.Module) -> Iterator[tuple[str, LoraLayer]]:
    """Name and layer of every linear that has LoRA."""
    for name, child in module.named_modules():
        if isinstance(child, LoraLayer):
            yield name, child


def has_lora(module: nn.Module) -> bool:
    """Whether any linear of ``module`` has LoRA that waits for its merge; routed LoRA does not."""
    return any(True for _ in lora_layers(module))


@torch.no_grad()
def merge_lora(llm: nn.Module) -> int:
    """Fold LoRA into the base weights, in place, and remove it; the product is added in float32.

    Returns:
        the number of merged linears.

    Raises:
        ValueError: there is nothing to merge, as after a first merge, or the LoRA is routed.
    """
    layers = list(lora_layers(llm))
    if not layers and any(isinstance(module, RoutedLinear) for module in llm.modules()):
        raise ValueError(f"the LoRA is routed: {NOT_MERGED}")
    if not layers:
        raise ValueError("there is no LoRA to merge: was it merged before?")
    for name, layer in layers:
        base = layer.get_base_layer()
        a, b = layer.lora_A[ADAPTER].weight, layer.lora_B[ADAPTER].weight
        delta = layer.scaling[ADAPTER] * (b.float() @ a.float())
        base.weight.copy_((base.weight.float() + delta).to(base.weight.dtype))
        parent, _, child = name.rpartition(".")
        setattr(llm.get_submodule(parent), child, base)
    if hasattr(llm, "peft_config"):
        del llm.peft_config
    if hasattr(llm, "_hf_peft_config_loaded"):
        llm._hf_peft_config_loaded = False  # type: ignore[assignment]
    return len(layers)


def canonical_name(name: str) -> str:
    """A parameter's name as globs are written, the same before and after LoRA is wrapped around it.

    ``llm.model.layers.0.mlp.up_proj.base_layer.weight`` -> ``llm.model.layers.0.mlp.up_proj.weight``,
    ``...up_proj.lora_A.default.weight`` -> ``...up_proj.lora_A``; routed LoRA's is
    ``...up_proj.routed.image.lora_A``.
    """
    name = name.replace(".base_layer.", ".")
    for part in ("lora_A", "lora_B"):
        name = name.replace(f".{part}.{ADAPTER}.weight", f".{part}")
        name = name.removesuffix(".weight") if name.endswith(f".{part}.weight") else name
    return name
