"""Vision as LoRA: nothing changes at the start, nothing is lost at the merge."""

from typing import Any

import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM, Qwen2Config

from oculi.model.lora import canonical_name, has_lora, inject_lora, lora_layers, merge_lora

ALL = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
ATTENTION, MLP = ALL[:4], ALL[4:]


def fill_b(module: nn.Module) -> None:
    """Values as large as training leaves, so that a lost factor shows."""
    torch.manual_seed(1)
    with torch.no_grad():
        for _, layer in lora_layers(module):
            layer.lora_B["default"].weight.normal_(std=0.1)


def assert_same(found: torch.Tensor, expected: torch.Tensor) -> None:
    """To 1e-5 of the largest logit: float32 sums in another order."""
    assert (found - expected).abs().max() <= 1e-5 * expected.abs().max()


def adapters(module: nn.Module) -> dict[str, torch.Tensor]:
    return {name: p for name, p in module.named_parameters() if "lora_" in name}


@pytest.mark.parametrize("family", ["qwen2", "llama", "olmo2"])
def test_init_changes_no_bit(make_model: Any, make_inputs: Any, family: str) -> None:
    model = make_model(family)
    inputs = make_inputs([[5, (2, 3), 7, 8]])
    before = model(**inputs).logits
    inject_lora(model.llm, rank=4, blocks=2, targets=ALL)
    assert torch.equal(model(**inputs).logits, before)


def test_lora_without_alpha_is_b_times_a(make_model: Any) -> None:
    model = make_model()
    linear = model.llm.model.layers[0].mlp.up_proj
    x = torch.randn(3, 32)
    before = linear(x)
    inject_lora(model.llm, rank=4, blocks=1, targets=("up_proj",))
    fill_b(model.llm)
    wrapped = model.llm.model.layers[0].mlp.up_proj
    a, b = wrapped.lora_A["default"].weight, wrapped.lora_B["default"].weight
    assert a.shape == (4, 32) and b.shape == (48, 4)
    torch.testing.assert_close(wrapped(x), before + x @ a.T @ b.T)


@pytest.mark.parametrize("family", ["qwen2", "llama", "olmo2"])
def test_merged_equals_unmerged(make_model: Any, make_inputs: Any, family: str) -> None:
    model = make_model(family)
    inputs = make_inputs([[5, (2, 3), 7, 8]])
    names = set(model.state_dict())
    before = model(**inputs).logits
    inject_lora(model.llm, rank=4, blocks=2, targets=ALL)
    fill_b(model.llm)
    unmerged = model(**inputs).logits
    assert (unmerged - before).abs().max() > 0.1
    assert merge_lora(model.llm) == 14
    assert_same(model(**inputs).logits, unmerged)
    assert set(model.state_dict()) == names and not has_lora(model.llm)


def test_merge_adds_in_float32(make_model: Any) -> None:
    """One rounding to bfloat16, not one per factor."""
    model = make_model().to(torch.bfloat16)
    inject_lora(model.llm, rank=4, blocks=1, targets=("up_proj",))
    fill_b(model.llm)
    layer = model.llm.model.layers[0].mlp.up_proj
    a, b = (m["default"].weight.float() for m in (layer.lora_A, layer.lora_B))
    expected = (layer.base_layer.weight.float() + b @ a).bfloat16()
    merge_lora(model.llm)
    assert torch.equal(model.llm.model.layers[0].mlp.up_proj.weight, expected)


def test_a_second_merge_is_refused(make_model: Any) -> None:
    model = make_model()
    inject_lora(model.llm, rank=4, blocks=2, targets=ATTENTION)
    merge_lora(model.llm)
    with pytest.raises(ValueError, match="no LoRA to merge"):
        merge_lora(model.llm)


def test_lora_can_be_added_again_after_a_merge(make_model: Any, make_inputs: Any) -> None:
    model = make_model()
    inputs = make_inputs([[5, (2, 3), 7]])
    for blocks, targets in ((2, ATTENTION), (3, MLP)):
        inject_lora(model.llm, rank=4, blocks=blocks, targets=targets)
        assert len(list(lora_layers(model.llm))) == blocks * len(targets)
        fill_b(model.llm)
        unmerged = model(**inputs).logits
        merge_lora(model.llm)
        assert_same(model(**inputs).logits, unmerged)


def test_a_second_injection_is_refused(make_model: Any) -> None:
    model = make_model()
    inject_lora(model.llm, rank=4, blocks=2, targets=ATTENTION)
    with pytest.raises(ValueError, match="LoRA already"):
        inject_lora(model.llm, rank=4, blocks=2, targets=MLP)


@pytest.mark.parametrize(
    ("blocks", "targets", "message"),
    [
        (2, ("q_proj", "qkv_proj"), "LoRA targets qkv_proj are no linear.*down_proj"),
        (2, ("lm_head",), "LoRA targets lm_head are no linear"),
        (2, (), "no target"),
        (4, ATTENTION, "first 4 blocks, but the LLM has 3"),
        (0, ATTENTION, "first 0 blocks"),
    ],
)
def test_what_cannot_be_adapted_is_named(
    make_model: Any, blocks: int, targets: tuple[str, ...], message: str
) -> None:
    model = make_model()
    with pytest.raises(ValueError, match=message):
        inject_lora(model.llm, rank=4, blocks=blocks, targets=targets)
    assert not has_lora(model.llm)


def expected_count(rank: int, d: int, kv: int, f: int) -> int:
    return rank * (4 * d + 2 * (d + kv) + 3 * (d + f))


def test_parameter_count(make_model: Any) -> None:
    model = make_model()
    inject_lora(model.llm, rank=4, blocks=2, targets=ALL)
    found = sum(p.numel() for p in adapters(model.llm).values())
    assert found == 2 * expected_count(4, d=32, kv=16, f=48)


def test_parameter_count_of_the_paper() -> None:
    """Rank 1024 on the first 24 blocks of Qwen2.5-7B, without a byte of it."""
    config = Qwen2Config(
        vocab_size=152_064,
        hidden_size=3584,
        intermediate_size=18_944,
        num_hidden_layers=28,
        num_attention_heads=28,
        num_key_value_heads=4,
        tie_word_embeddings=False,
    )
    with torch.device("meta"):
        llm = AutoModelForCausalLM.from_config(config)
        inject_lora(llm, rank=1024, blocks=24, targets=ALL)
    found = sum(p.numel() for p in adapters(llm).values())
    assert found == 24 * expected_count(1024, d=3584, kv=512, f=18_944) == 2_214_592_512


def test_names_are_golden(make_model: Any) -> None:
    """Globs in recipes and names in checkpoints rely on these."""
    model = make_model(num_hidden_layers=2)
    plain = {name for name, _ in model.named_parameters()}
    inject_lora(model.llm, rank=4, blocks=1, targets=ALL)
    names = {canonical_name(name): p for name, p in model.named_parameters()}
    block = "llm.model.layers.0"
    added = {
        f"{block}.{part}.{side}"
        for part in (
            "self_attn.q_proj",
            "self_attn.k_proj",
            "self_attn.v_proj",
            "self_attn.o_proj",
            "mlp.gate_proj",
            "mlp.up_proj",
            "mlp.down_proj",
        )
        for side in ("lora_A", "lora_B")
    }
    assert set(names) == plain | added
    assert {name for name in plain if name.startswith("vision.")} == {
        "vision.patch.weight",
        "vision.patch.bias",
        "vision.norm.weight",
        "vision.position",
        "vision.projection.weight",
    }
    assert f"{block}.mlp.up_proj.weight" in names and f"{block}.self_attn.q_proj.bias" in names


def test_only_the_first_blocks_and_no_bias(make_model: Any) -> None:
    model = make_model("llama")
    biases = {name for name, _ in model.llm.named_parameters() if name.endswith("bias")}
    inject_lora(model.llm, rank=4, blocks=2, targets=ALL)
    places = {tuple(name.split(".")[2:5:2]) for name, _ in lora_layers(model.llm)}
    assert places == {(block, target) for block in ("0", "1") for target in ALL}
    names = {canonical_name(name) for name, _ in model.llm.named_parameters()}
    assert {name for name in names if name.endswith("bias")} == biases == set()


def test_only_lora_is_trainable_after_injection(make_model: Any) -> None:
    """PEFT freezes the rest of the LLM; the stage's globs decide afterwards."""
    model = make_model()
    inject_lora(model.llm, rank=4, blocks=2, targets=ATTENTION)
    trainable = {name for name, p in model.llm.named_parameters() if p.requires_grad}
    assert trainable == set(adapters(model.llm))


def test_adapters_have_the_dtype_and_device_of_their_base(make_model: Any) -> None:
    model = make_model().to(torch.bfloat16)
    inject_lora(model.llm, rank=4, blocks=1, targets=ATTENTION)
    assert {p.dtype for p in adapters(model.llm).values()} == {torch.bfloat16}
