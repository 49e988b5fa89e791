"""Merging tokens: whose, into how many, and that nothing else in the model notices."""

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from oculi.model.compress_oculi import TokenMerging, assign, new_compressor, token_count

MERGE = {"kind": "merge", "factor": 2}
GRIDS = [(6, 6), (2, 5), (1, 1), (6, 6), (1, 3), (4, 9)]


def drawn(patches: int, width: int = 8, seed: int = 0) -> Tensor:
    return torch.randn(patches, width, generator=torch.Generator().manual_seed(seed))


def by_hand(tokens: list[Tensor], kept: int) -> list[list[int]]:
    """The patches of each token: AIM's rounds, written with lists."""
    groups = [[i] for i in range(len(tokens))]
    while len(groups) > kept:
        means = [torch.stack([tokens[i] for i in group]).mean(0) for group in groups]
        unit = [mean / mean.norm() for mean in means]
        pairs = []
        for source in range(0, len(groups), 2):
            scores = [float(unit[source] @ unit[target]) for target in range(1, len(groups), 2)]
            best = max(range(len(scores)), key=scores.__getitem__)
            pairs.append((scores[best], source, 2 * best + 1))
        pairs.sort(key=lambda pair: -pair[0])
        for _, source, target in pairs[: min(len(groups) - kept, len(groups) // 2)]:
            groups[target] = groups[target] + groups[source]
            groups[source] = []
        groups = [group for group in groups if group]
    return [sorted(group) for group in groups]


@given(
    grid=st.tuples(st.integers(1, 7), st.integers(1, 7)),
    factor=st.integers(1, 9),
    seed=st.integers(0, 5),
)
@settings(max_examples=60, deadline=None)
def test_every_round_is_aims(grid: tuple[int, int], factor: int, seed: int) -> None:
    tokens = drawn(grid[0] * grid[1], seed=seed)
    merged, owners = TokenMerging(8, factor)(tokens, torch.tensor([grid]))
    wanted = by_hand(list(tokens), token_count({"kind": "merge", "factor": factor}, *grid))
    found = [torch.where(owners == i)[0].tolist() for i in range(len(merged))]
    assert found == wanted
    means = torch.stack([tokens[group].mean(0) for group in wanted])
    torch.testing.assert_close(merged, means, rtol=1e-5, atol=1e-6)


def test_the_picture_in_the_docstring() -> None:
    """0 alone is far from all, 2 and 6 are like 5, 4 is somewhat like 3."""
    angles = torch.tensor([0.0, 0.9, 2.0, 3.2, 3.6, 2.01, 2.02, 5.5])
    tokens = torch.stack([angles.cos(), angles.sin()], -1)
    assert assign(tokens[None], 6).tolist() == [[0, 1, 4, 2, 3, 4, 4, 5]]


@pytest.mark.parametrize("factor", [2, 3, 4, 100])
def test_as_many_tokens_as_the_grid_says(factor: int) -> None:
    module, grids = TokenMerging(8, factor), torch.tensor(GRIDS)
    tokens, owners = module(drawn(int(grids.prod(-1).sum())), grids)
    counts = module.tokens_per_image(grids)
    config = {"kind": "merge", "factor": factor}
    assert counts.tolist() == [token_count(config, *grid) for grid in GRIDS]
    assert counts.tolist() == [max(1, -(-a * b // factor)) for a, b in GRIDS]
    assert len(tokens) == counts.sum() and len(owners) == grids.prod(-1).sum()
    assert set(owners.tolist()) == set(range(len(tokens)))


def test_images_of_a_batch_do_not_matter_to_each_other() -> None:
    module, grids = TokenMerging(8, 3), torch.tensor(GRIDS)
    patches = drawn(int(grids.prod(-1).sum()))
    together, owners = module(patches, grids)
    alone = [
        module(part, grid[None])
        for part, grid in zip(patches.split(grids.prod(-1).tolist()), grids, strict=True)
    ]
    torch.testing.assert_close(together, torch.cat([tokens for tokens, _ in alone]))
    starts = [0, *module.tokens_per_image(grids).cumsum(0).tolist()]
    wanted = [own + start for (_, own), start in zip(alone, starts, strict=False)]
    assert torch.equal(owners, torch.cat(wanted))


def test_equal_tokens_become_one_first_and_keep_their_value() -> None:
    tokens = drawn(8)
    tokens[6] = tokens[3]
    merged, owners = TokenMerging(8, 1)(tokens, torch.tensor([[2, 4]]))
    assert torch.equal(merged, tokens) and owners.tolist() == list(range(8))
    assert assign(tokens[None], 7).tolist() == [[0, 1, 2, 3, 4, 5, 3, 6]]


def test_gradients_flow_through_the_mean() -> None:
    tokens = drawn(12).requires_grad_()
    merged, owners = TokenMerging(8, 4)(tokens, torch.tensor([[3, 4]]))
    merged.sum().backward()
    sizes = torch.bincount(owners)
    assert tokens.grad is not None and not owners.requires_grad
    torch.testing.assert_close(tokens.grad[:, 0], 1 / sizes[owners].float())


def test_bfloat16_and_autocast_choose_alike() -> None:
    """Which tokens are alike is told in float32, whatever the products around it are in."""
    tokens, grids = drawn(36, 64), torch.tensor([[6, 6]])
    merged, owners = TokenMerging(64, 2)(tokens, grids)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        again, same = TokenMerging(64, 2)(tokens, grids)
        assert torch.equal(again, merged) and torch.equal(same, owners)
        low, _ = TokenMerging(64, 2)(tokens.bfloat16(), grids)
    assert low.dtype == torch.bfloat16


def test_no_image_is_no_token() -> None:
    tokens, owners = TokenMerging(8, 2)(drawn(0), torch.empty(0, 2, dtype=torch.int64))
    assert tokens.shape == (0, 8) and owners.shape == (0,) and owners.dtype == torch.int64


def test_what_there_is_not() -> None:
    assert new_compressor(None, 8) is None and token_count(None, 3, 5) == 15
    with pytest.raises(ValueError, match='kind "prune" is none of merge'):
        token_count({"kind": "prune"}, 2, 2)
    with pytest.raises(ValueError, match="none of merge"):
        new_compressor({"factor": 2}, 8)
    with pytest.raises(ValueError, match="factor of 0"):
        TokenMerging(8, 0)


# ------------------------------------------------------------------------------ inside of the model


def ids_of(model: Any, rows: list[list[Any]]) -> Tensor:
    """Left-padded rows, (rows, columns) being an image with as many positions as it has tokens."""
    image, made = model.config.image_token_id, []
    for row in rows:
        made.append([])
        for piece in row:
            count = piece if isinstance(piece, int) else token_count(MERGE, *piece)
            made[-1] += [piece] if isinstance(piece, int) else [image] * count
    length = max(map(len, made))
    return torch.tensor([[0] * (length - len(row)) + row for row in made])


def inputs_of(model: Any, rows: list[list[Any]], seed: int = 0) -> dict[str, Tensor]:
    grids = [piece for row in rows for piece in row if not isinstance(piece, int)]
    generator = torch.Generator().manual_seed(seed)
    shape = (sum(a * b for a, b in grids), 48)
    ids = ids_of(model, rows)
    return {
        "input_ids": ids,
        "attention_mask": (ids != 0).long(),
        "pixel_values": torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator),
        "image_grids": torch.tensor(grids),
    }


ROWS: list[list[Any]] = [[5, (2, 3), 6, (4, 4), 7, 8], [9, 10, (1, 5), 11]]


@pytest.mark.usefixtures("no_grad")
def test_vision_tokens_are_the_merged_ones(make_model: Any) -> None:
    model = make_model(compress=MERGE)
    inputs = inputs_of(model, ROWS)
    pixels, grids = inputs["pixel_values"], inputs["image_grids"]
    wanted, owners = TokenMerging(32, 2)(model.vision(pixels, grids), grids)
    assert torch.equal(model.get_image_features(pixels, grids), wanted) and len(wanted) == 3 + 8 + 3
    embeds = model.get_input_embeddings()(inputs["input_ids"].clamp(max=model.llm.vocab_size - 1))
    embeds[inputs["input_ids"] == model.config.image_token_id] = wanted
    taps = model(**inputs, taps=dict.fromkeys((-1, 0, 2), Tensor.clone)).taps
    states: list[Tensor] = []
    for block in model.blocks:
        block.register_forward_hook(lambda module, args, output: states.append(output))
    model(**inputs)
    is_image = inputs["input_ids"] == model.config.image_token_id
    assert torch.equal(taps[-1], wanted[owners])
    # Each patch through the token that it went into.
    assert torch.equal(taps[2], states[2][is_image][owners]) and len(taps[2]) == 6 + 16 + 5


@pytest.mark.usefixtures("no_grad")
def test_placeholders_and_tokens_have_to_agree(make_model: Any) -> None:
    model = make_model(compress=MERGE)
    inputs = inputs_of(model, ROWS)
    inputs["input_ids"][0, -1] = model.config.image_token_id
    with pytest.raises(ValueError, match=r"15 image positions .* the images give 14 vision tokens"):
        model(**inputs)


@pytest.mark.usefixtures("no_grad")
@pytest.mark.parametrize("policy", ["causal", "bidirectional", "mutual"])
def test_rows_of_a_batch_are_what_they_are_alone(make_model: Any, policy: str) -> None:
    model = make_model(policy=policy, compress=MERGE)
    inputs = inputs_of(model, ROWS)
    if policy == "mutual":
        inputs["prompt_mask"] = inputs["attention_mask"].bool()
    logits = model(**inputs).logits
    starts = (inputs["attention_mask"] == 0).sum(1).tolist()
    cut = inputs["pixel_values"].split([22, 5])
    for row, start in enumerate(starts):
        grids = inputs["image_grids"][:2] if row == 0 else inputs["image_grids"][2:]
        alone = {
            key: value[row : row + 1, start:]
            for key, value in inputs.items()
            if key not in ("pixel_values", "image_grids")
        }
        found = model(**alone, pixel_values=cut[row], image_grids=grids).logits[0]
        torch.testing.assert_close(found, logits[row, start:], rtol=1e-4, atol=1e-4)


@pytest.mark.usefixtures("no_grad")
@pytest.mark.parametrize("cache", [{}, {"cache_implementation": "static"}, {"use_cache": False}])
def test_generate_is_greedy_full_forwards(make_model: Any, cache: dict[str, Any]) -> None:
    model = make_model(compress=MERGE)
    inputs = inputs_of(model, ROWS)
    found = model.generate(**inputs, max_new_tokens=5, do_sample=False, eos_token_id=None, **cache)
    ids, mask = inputs["input_ids"], inputs["attention_mask"]
    for _ in range(5):
        more = {**inputs, "input_ids": ids, "attention_mask": mask}
        nexts = model(**more).logits[:, -1].argmax(-1, keepdim=True)
        ids, mask = torch.cat([ids, nexts], 1), torch.cat([mask, torch.ones_like(nexts)], 1)
    assert torch.equal(found, ids)


@pytest.mark.usefixtures("no_grad")
def test_beams_repeat_the_images_of_their_row(make_model: Any) -> None:
    model = make_model(compress=MERGE)
    inputs = inputs_of(model, ROWS)
    settings = {"max_new_tokens": 4, "do_sample": False, "num_beams": 3, "eos_token_id": None}
    both = model.generate(**inputs, **settings)
    second = inputs_of(model, ROWS[1:])
    second["pixel_values"], second["image_grids"] = (
        inputs["pixel_values"][22:], inputs["image_grids"][2:],
    )  # fmt: skip
    assert torch.equal(both[1, -4:], model.generate(**second, **settings)[0, -4:])


@pytest.mark.usefixtures("no_grad")
def test_routed_lora_goes_where_merged_tokens_are(make_model: Any) -> None:
    model = make_model(compress=MERGE)
    inputs = inputs_of(model, ROWS)
    before = model(**inputs).logits
    model.add_routed_lora("image", 2, 3, ("q_proj", "up_proj"))
    for name, parameter in model.named_parameters():
        if ".lora_" in name:
            parameter.normal_(std=0.5)
    after = model(**inputs).logits
    first = int((inputs["input_ids"][0] == model.config.image_token_id).nonzero()[0])
    torch.testing.assert_close(after[0, :first], before[0, :first])
    assert not torch.allclose(after[0, first], before[0, first], atol=1e-2)
