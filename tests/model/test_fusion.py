"""The fusion module: its equations by hand, who reads what, packed rows, gradients, refusals."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from oculi.model.fusion_oculi import Fusion, new_fusion

KINDS = pytest.mark.parametrize("kind", ["cross", "decoder", "combined"])
TOKENS = 2
COMPRESS = {"kind": "mlp", "patches": 6, "tokens": TOKENS}


@pytest.fixture
def fused(make_model: Any) -> Any:
    def make(kind: str, layers: int = 1, **settings: Any) -> Any:
        return make_model(compress=COMPRESS, fusion={"kind": kind, "layers": layers}, **settings)

    return make


def embeddings(model: Any, inputs: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    """What the LLM is given with fusion and without, [B, T, D] each."""
    found: list[Tensor] = []
    handle = model.get_decoder().register_forward_pre_hook(
        lambda _, args, kwargs: found.append(kwargs["inputs_embeds"]), with_kwargs=True
    )
    model(**inputs, use_cache=False)
    fusion, model.fusion = model.fusion, None
    model(**inputs, use_cache=False)
    model.fusion = fusion
    handle.remove()
    return found[0], found[1]


def rms(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    return x / (x.pow(2).mean(-1, keepdim=True) + eps).sqrt() * weight


def cross_by_hand(block: Any, text: Tensor, vision: Tensor, eps: float) -> Tensor:
    """Equations 8 to 10 for text [T, D] that reads all of vision [V, D]."""
    q = rms(text, block.text_norm.weight, eps) @ block.q_proj.weight.T
    seen = rms(vision, block.vision_norm.weight, eps)
    k, v = seen @ block.k_proj.weight.T, seen @ block.v_proj.weight.T
    d = q.shape[1] // block.heads
    heads = [
        ((q[:, s] @ k[:, s].T) / d**0.5).softmax(-1) @ v[:, s]
        for s in (slice(h * d, (h + 1) * d) for h in range(block.heads))
    ]
    text = text + torch.cat(heads, 1) @ block.o_proj.weight.T
    inner = rms(text, block.mlp_norm.weight, eps) @ block.up_proj.weight.T
    return text + F.gelu(inner) @ block.down_proj.weight.T


def decoder_by_hand(model: Any, layers: Any, text: Tensor, vision: Tensor, policy: str) -> Tensor:
    """Equations 11 to 15: the LLM's layers over [V; T], all rows of all layers computed."""
    states = torch.cat([vision, text])[None]
    length, seen = states.shape[1], len(vision)
    mask = torch.ones(length, length).tril().bool()
    if policy != "causal":
        mask[:seen, :seen] = True
    position = torch.arange(length)[None]
    around = model.get_decoder().rotary_emb(states, position)
    for layer in layers:
        states = layer(
            states, attention_mask=mask[None, None], position_embeddings=around,
            position_ids=position,
        )  # fmt: skip
    return states[0, seen:]


@KINDS
@pytest.mark.parametrize("layers", [1, 2])
@pytest.mark.parametrize("policy", ["causal", "bidirectional"])
@torch.no_grad()
def test_a_picture_and_its_text_are_the_papers_equations(
    fused: Any, make_inputs: Any, kind: str, layers: int, policy: str
) -> None:
    model = fused(kind, layers, policy=policy)
    inputs = make_inputs([[(2, 3), 5, 6, 7, 8]], tokens=TOKENS)
    found, plain = embeddings(model, inputs)
    vision = model.vision(inputs["pixel_values"], inputs["image_grids"])
    text, eps = plain[0, TOKENS:], model.llm.config.rms_norm_eps
    for block in model.fusion.cross:
        text = cross_by_hand(block, text, vision, eps)
    if len(model.fusion.decoder):
        text = decoder_by_hand(model, model.fusion.decoder, text, vision, policy)
    assert torch.equal(found[:, :TOKENS], plain[:, :TOKENS])
    torch.testing.assert_close(found[0, TOKENS:], text, rtol=1e-4, atol=1e-4)
    assert (found - plain)[0, TOKENS:].abs().max() > 0.1


@KINDS
@torch.no_grad()
def test_nothing_reads_what_comes_later(fused: Any, make_inputs: Any, kind: str) -> None:
    """Change a word or a picture: what stands before it stays, what stands behind it moves."""
    model = fused(kind, 2)
    row: list[Any] = [5, 6, (2, 3), 7, 8, (2, 2), 9, 4]
    inputs = make_inputs([row], tokens=TOKENS)
    base, plain = embeddings(model, inputs)
    assert torch.equal(base[0, :2], plain[0, :2])  # no picture before it: as it is, to the bit
    words = {**inputs, "input_ids": inputs["input_ids"].clone()}
    words["input_ids"][0, 5] = 3  # the word before the second picture
    moved = (embeddings(model, words)[0] - base)[0].abs().amax(-1) > 1e-6
    assert moved.tolist() == [False] * 5 + [True] + [False] * 2 + [kind != "cross"] * 2
    picture = {**inputs, "pixel_values": inputs["pixel_values"].clone()}
    picture["pixel_values"][6:] = 255 - picture["pixel_values"][6:]
    moved = (embeddings(model, picture)[0] - base)[0].abs().amax(-1) > 1e-6
    assert moved.tolist() == [False] * 6 + [True] * 4


@KINDS
@torch.no_grad()
def test_text_alone_is_the_llms(fused: Any, make_inputs: Any, kind: str) -> None:
    model = fused(kind)
    text = make_inputs([[5, 6, 7], [4, 9]])
    both = make_inputs([[5, 6, 7, 8, 9], [(2, 3), 4, 9]], tokens=TOKENS)
    for inputs, row in ((text, 0), (text, 1), (both, 0)):
        found, plain = embeddings(model, inputs)
        assert torch.equal(found[row], plain[row])


def packed(rows: list[dict[str, Tensor]], pad: int = 2) -> dict[str, Tensor]:
    """Samples of one row each as one packed row with padding behind."""
    ids = [row["input_ids"][0] for row in rows]
    segments = torch.cat([torch.full((len(x),), i) for i, x in enumerate(ids)])
    positions = torch.cat([torch.arange(len(x)) for x in ids])
    filled = {
        "input_ids": F.pad(torch.cat(ids), (0, pad))[None],
        "segment_ids": F.pad(segments, (0, pad), value=-1)[None],
        "position_ids": F.pad(positions, (0, pad))[None],
    }
    images = [row for row in rows if "pixel_values" in row]
    for key in ("pixel_values", "image_grids"):
        filled[key] = torch.cat([row[key] for row in images])
    return filled


SAMPLES: list[list[Any]] = [[5, (2, 3), 7], [6, 7, 8], [(1, 2), 4, (2, 2)], [3, (2, 2), 9, 4]]


@KINDS
@pytest.mark.parametrize("layers", [1, 2])
@pytest.mark.parametrize("rows", [1, 2])
def test_a_packed_row_is_its_samples(
    fused: Any, make_inputs: Any, kind: str, layers: int, rows: int
) -> None:
    """Logits and gradients, two samples a row or four."""
    model = fused(kind, layers)
    alone = [make_inputs([row], seed=i, tokens=TOKENS) for i, row in enumerate(SAMPLES)]
    outputs = [model(**inputs, use_cache=False).logits[0] for inputs in alone]
    expected = torch.cat(outputs)
    expected.square().mean().backward()
    wanted = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    model.zero_grad(set_to_none=True)

    if rows == 1:
        batch = packed(alone)
    else:
        halves = [packed(alone[:2], pad=0), packed(alone[2:], pad=0)]
        longest = max(half["input_ids"].shape[1] for half in halves)
        batch = {
            key: torch.cat([
                F.pad(half[key], (0, longest - half[key].shape[1]), value=value)
                for half in halves
            ])
            for key, value in (("input_ids", 0), ("segment_ids", -1), ("position_ids", 0))
        }  # fmt: skip
        for key in ("pixel_values", "image_grids"):
            batch[key] = torch.cat([half[key] for half in halves])
    found = model(**batch, use_cache=False).logits[batch["segment_ids"] >= 0]
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    found.square().mean().backward()
    grads = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
    assert grads.keys() == wanted.keys()
    for name, value in wanted.items():
        torch.testing.assert_close(grads[name], value, rtol=1e-3, atol=1e-5, msg=name)
    reached = {n for n in wanted if n.startswith("fusion.")}
    assert reached == {n for n, _ in model.named_parameters() if n.startswith("fusion.")}
    assert all(wanted[n].abs().max() > 0 for n in reached)


@pytest.mark.parametrize("layers", [1, 2])
def test_a_whole_last_layer_gives_the_same(fused: Any, make_inputs: Any, layers: int) -> None:
    """Plans count it whole; text alone is what is read of it."""
    model = fused("decoder", layers)
    batch = packed([make_inputs([row], seed=i, tokens=TOKENS) for i, row in enumerate(SAMPLES)])
    alone = model(**batch, use_cache=False).logits
    model.fusion.text_alone = False
    whole = model(**batch, use_cache=False).logits
    torch.testing.assert_close(whole, alone, rtol=1e-4, atol=1e-4)


@KINDS
def test_label_rows_are_rows_of_all_logits(fused: Any, make_inputs: Any, kind: str) -> None:
    model = fused(kind)
    batch = packed([make_inputs([row], seed=i, tokens=TOKENS) for i, row in enumerate(SAMPLES)])
    rows = torch.tensor([3, 6, 14])
    whole = model(**batch, use_cache=False).logits
    few = model(**batch, use_cache=False, label_rows=rows).logits
    torch.testing.assert_close(few[0], whole[0, rows], rtol=1e-4, atol=1e-4)


@KINDS
def test_the_uncompressed_tokens_get_gradients_through_fusion(
    fused: Any, make_inputs: Any, kind: str
) -> None:
    """Of a compressor that is all zeros, the vision part hears nothing but what fusion says."""
    model = fused(kind)
    for parameter in model.compress.parameters():
        parameter.data.zero_()
    inputs = make_inputs([[(2, 3), 5, 6]], tokens=TOKENS)
    model(**inputs, use_cache=False).logits.square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in model.vision.parameters())


def test_new_cross_blocks_change_nothing(make_model: Any, make_inputs: Any) -> None:
    """And learn from the first step on."""
    model = make_model(compress=COMPRESS, fusion={"kind": "cross", "layers": 2})
    for block in model.fusion.cross:
        block.init_weights()
    inputs = make_inputs([[(2, 3), 5, 6]], tokens=TOKENS)
    found, plain = embeddings(model, inputs)
    assert torch.equal(found, plain)
    model(**inputs, use_cache=False).logits.square().sum().backward()
    assert model.fusion.cross[0].o_proj.weight.grad.abs().max() > 0


@pytest.mark.parametrize("family", ["qwen2", "llama", "olmo2"])
def test_the_decoder_starts_as_the_first_block(make_model: Any, family: str) -> None:
    from oculi.model import OculiConfig, OculiForConditionalGeneration

    model = make_model(family)
    settings = model.config.to_dict() | {"fuse_config": {"kind": "decoder", "layers": 2}}
    fused = OculiForConditionalGeneration.assemble(OculiConfig.from_dict(settings), model.llm)
    first = dict(model.blocks[0].named_parameters())
    for layer in fused.fusion.decoder:
        own = dict(layer.named_parameters())
        assert own.keys() == first.keys()
        assert all(torch.equal(own[n], first[n]) and own[n] is not first[n] for n in first)


def test_parameters_are_the_papers(make_model: Any) -> None:
    """12 d^2 of the cross block's matrices, one block of the LLM; docs/aurora.md."""
    model = make_model(compress=COMPRESS, fusion={"kind": "combined"})
    d = model.width
    matrices = [p for p in model.fusion.cross.parameters() if p.ndim == 2]
    assert sum(p.numel() for p in matrices) == 12 * d * d
    block = sum(p.numel() for p in model.blocks[0].parameters())
    assert sum(p.numel() for p in model.fusion.decoder.parameters()) == block


def test_what_cannot_be_built_is_said(make_model: Any) -> None:
    with pytest.raises(ValueError, match='kind "both" is none of cross, decoder, combined'):
        make_model(fusion={"kind": "both"})
    with pytest.raises(ValueError, match="leave fusion out"):
        make_model(fusion={"kind": "cross", "layers": 0})
    with pytest.raises(ValueError, match="cannot be parted into 5 heads"):
        make_model(fusion={"kind": "cross"}, num_attention_heads=5, head_dim=8)
    model = make_model()
    with pytest.raises(ValueError, match="Linear takes no past_key_values or position_embeddings"):
        Fusion(torch.nn.Linear(2, 2), model.llm.config, "decoder")
    assert new_fusion(None, model.llm, model.blocks[0]) is None
