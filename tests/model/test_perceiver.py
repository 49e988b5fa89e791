"""Tiles and snapshot through one tower, and what the SA-Perceiver makes of them."""

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from helpers import PATCH, make_tower
from oculi.model.patch_embed_oculi import CLIP_MEAN, unpatchify
from oculi.model.perceiver_oculi import KEYS, Perceiver, SAPerceiver
from oculi.model.tower_oculi import VisionTower
from towers import cut

FAMILIES = pytest.mark.parametrize("family", ["clip", "aimv2", "siglip2"])
SIDE = 4  # patches along the side of a tile, as make_tower's pictures of 16 pixels
LARGE = ((40, 24), (16, 16), (5, 60), (40, 24))  # 3 x 2 tiles and padding, one tile, 1 x 4, again


def config(family: str = "clip", **settings: Any) -> dict[str, Any]:
    tower = make_tower(family, num_hidden_layers=3).config.to_dict()
    return {"tower": tower, "patch_size": PATCH, "heads": 2, **settings}


def part(family: str = "clip", drawn: bool = True, **settings: Any) -> Perceiver:
    """The part with the weights of ``make_tower``; all of its own are drawn, or as they start."""
    module = Perceiver(32, **config(family, **settings)).eval()
    torch.manual_seed(0)
    module.init_weights()
    assert module.tower.load_state_dict(make_tower(family, num_hidden_layers=3).state_dict())
    if drawn and module.tokens == "compressed":
        with torch.no_grad():
            for parameter in module.perceiver.parameters():
                parameter.normal_(std=0.3)
    return module.requires_grad_(False)


def picture(patches: Tensor, grid: Any) -> Tensor:
    return unpatchify(patches, *map(int, grid), PATCH).float()


def each(patches: Tensor, grids: Tensor) -> list[tuple[Tensor, Tensor]]:
    parts = patches.split(grids.prod(-1).tolist())
    return [(x, grids[i : i + 1]) for i, x in enumerate(parts)]


def close(found: Tensor, wanted: Tensor) -> None:
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)


# ------------------------------------------------------------------------------------ SA-Perceiver


def scaled(module: SAPerceiver, states: Tensor) -> Tensor:
    """N of the equations."""
    return (
        states / (states.square().mean(-1, keepdim=True) + 1e-6) ** 0.5 if module.norms else states
    )


def by_hand(module: SAPerceiver, low_lM: Tensor, high_RCM: Tensor) -> tuple[Tensor, Tensor]:
    """Equations 1 and 2, one head and one score after the other."""
    rows, columns, _ = high_RCM.shape
    width = len(module.query)
    e, side = width // module.heads, math.isqrt(len(low_lM))
    behind = low_lM.new_zeros(len(low_lM), width - low_lM.shape[1])
    states = torch.cat([torch.cat([low_lM, behind], 1), module.query[None]])
    query, value = module.w_q(scaled(module, states)), module.w_kv(scaled(module, high_RCM))
    gathered = torch.zeros_like(states)
    for h in range(module.heads):
        own = slice(h * e, (h + 1) * e)
        for token in range(len(states)):
            for row in range(rows):
                for column in range(columns):
                    patch = value[row, column, own]
                    score = (query[token, own] @ patch) / e**0.5
                    if token < len(low_lM) and module.positions:
                        y, x, width_, height = module.bumps[h]
                        down = (row + 0.5) * side / rows - (token // side + 0.5) - y
                        across = (column + 0.5) * side / columns - (token % side + 0.5) - x
                        score = score + height * torch.exp(
                            -(down**2 + across**2) / (2 * width_.exp() ** 2)
                        )
                    gathered[token, own] += F.silu(score) * patch
    scale = low_lM.square().mean() ** 0.5 if module.norms else 1.0
    states = states + module.w_o1(gathered * len(low_lM) / (rows * columns)) * scale
    read = scaled(module, states)
    key, mixed = module.w_k(read), torch.zeros_like(states)
    for h in range(module.heads):
        own = slice(h * e, (h + 1) * e)
        weights = (read[:, own] @ key[:, own].T / e**0.5).softmax(-1)
        mixed[:, own] = weights @ read[:, own]
    states = states + module.w_o2(mixed)
    return states[:-1], states[-1]


def test_the_connector_is_as_wide_as_the_llm_unless_said() -> None:
    for asked, found in ((None, 32), (48, 48)):
        first, _, last = part(connector_hidden_size=asked).connector
        assert (first.out_features, last.in_features, last.out_features) == (found, found, 32)


@pytest.mark.parametrize("heads", [1, 4, 16])
def test_every_head_reaches_a_patch_of_a_picture_of_four_tiles(heads: int) -> None:
    module = SAPerceiver(16 * heads, heads)
    module.init_weights()
    bias = module._bias(SIDE, 0, 2 * SIDE, 2 * SIDE, 2 * SIDE)  # [H, l, n]
    assert bias.amax(-1).min() > 1  # SiLU lets through three quarters and more of it


@pytest.mark.parametrize("width", [None, 14])
@pytest.mark.parametrize("norms", [True, False])
@pytest.mark.parametrize("positions", [True, False])
@torch.no_grad()
def test_the_equations(
    positions: bool, norms: bool, width: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(1)
    module = SAPerceiver(8, 2, positions, norms, width)
    for parameter in module.parameters():
        parameter.normal_(std=0.5)
    low, high = torch.randn(2, 4, 8), torch.randn(2, 5, 3, 8)
    found, whole = module(low, high)
    for i in range(2):
        wanted, pooled = by_hand(module, low[i], high[i])
        close(found[i], wanted)
        close(whole[i], pooled)
    # A sum may be taken in parts.
    monkeypatch.setattr("oculi.model.perceiver_oculi.KEYS", 7)
    close(module(low, high)[0], found)


def test_parts_of_the_sum_have_the_same_gradients(monkeypatch: pytest.MonkeyPatch) -> None:
    gradients = []
    for keys in (KEYS, 6):
        monkeypatch.setattr("oculi.model.perceiver_oculi.KEYS", keys)
        torch.manual_seed(1)
        module = SAPerceiver(8, 2)
        for parameter in module.parameters():
            nn.init.normal_(parameter, std=0.5)
        low, high = torch.randn(1, 4, 8), torch.randn(1, 5, 3, 8)
        tokens, whole = module(low, high)
        (tokens.square().sum() + whole.square().sum()).backward()
        gradients.append({name: p.grad for name, p in module.named_parameters()})
    for name, value in gradients[0].items():
        assert value is not None and value.any(), name
        torch.testing.assert_close(gradients[1][name], value, rtol=1e-3, atol=1e-2)


@torch.no_grad()
def test_what_is_gathered_grows_as_the_states_do() -> None:
    """Raw states of a tower may be of any scale: the sum has theirs, and without norms its cube."""
    updates = {}
    for norms in (True, False):
        torch.manual_seed(1)
        module = SAPerceiver(8, 2, positions=False, norms=norms)
        for parameter in module.parameters():
            parameter.normal_(std=0.5)
        module.w_o2.weight.zero_()  # equation 1 alone
        low, high = torch.randn(1, 4, 8), torch.randn(1, 5, 3, 8)
        updates[norms] = [
            float((module(scale * low, scale * high)[0] - scale * low).abs().mean())
            for scale in (10.0, 100.0)
        ]
    assert updates[True][1] == pytest.approx(10 * updates[True][0], rel=1e-3)
    assert updates[False][1] > 500 * updates[False][0]


def test_it_learns_from_where_it_starts() -> None:
    """Both updates start at nothing, and yet every weight has a gradient within three steps."""
    for positions in (True, False):
        torch.manual_seed(0)
        module = SAPerceiver(8, 2, positions)
        module.init_weights()
        low, high, wanted = torch.randn(1, 4, 8), torch.randn(1, 4, 4, 8), torch.randn(1, 4, 8)
        optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
        reached: set[str] = set()
        for _ in range(3):
            optimizer.zero_grad()
            tokens, whole = module(low, high)
            ((tokens - wanted).square().sum() + whole.square().sum()).backward()
            reached |= {
                n for n, p in module.named_parameters() if p.grad is not None and p.grad.any()
            }
            optimizer.step()
        assert reached == {name for name, _ in module.named_parameters()}


@torch.no_grad()
def test_each_patch_goes_to_where_it_lies() -> None:
    """As it starts, a patch moves the scores of the token that covers it most."""
    module = SAPerceiver(8, 4)
    module.init_weights()
    bias = module._bias(4, 0, 8, 8, 8)  # 4 heads, 16 tokens, 8 x 8 patches
    owner = bias.sum(0).argmax(0).view(8, 8)
    row = torch.arange(8) // 2
    assert torch.equal(owner, row[:, None] * 4 + row)
    # Each head looks at another of the four patches of a token.
    looked = bias[:, 5].view(4, 8, 8).flatten(1).argmax(1)
    assert sorted(divmod(int(i), 8) for i in looked) == [(2, 2), (2, 3), (3, 2), (3, 3)]


def test_heads_must_divide_the_width() -> None:
    with pytest.raises(ValueError, match="heads 3 do not divide the width 8"):
        SAPerceiver(8, 3)
    with pytest.raises(ValueError, match="width 6 is less than the tower's, 8"):
        SAPerceiver(8, 2, width=6)


@torch.no_grad()
def test_a_wider_part_starts_as_the_snapshot_with_room_behind_it() -> None:
    module = SAPerceiver(8, 2, width=12)
    module.init_weights()
    low = torch.randn(2, 4, 8)
    tokens, whole = module(low, torch.randn(2, 5, 3, 8))
    assert torch.equal(tokens, F.pad(low, (0, 4))) and whole.shape == (2, 12)


def test_the_width_is_of_the_connector_too_and_of_nothing_else_without_a_perceiver() -> None:
    assert part(width=24).connector[0].in_features == 24
    narrow = part().connector[0].in_features
    assert part(width=24, tokens="snapshot").connector[0].in_features == narrow


# ----------------------------------------------------------------------------------- the whole part


@FAMILIES
@torch.no_grad()
def test_the_snapshot_is_the_towers_own_view_of_a_picture(family: str) -> None:
    """Of one as large as the tower's: ``VisionTower``, with the same weights."""
    module, inputs = part(family, tokens="snapshot"), cut((16, 16), (16, 16))
    arguments = config(family)
    del arguments["heads"]
    plain = VisionTower(32, **arguments).eval()
    assert plain.load_state_dict(module.state_dict())
    close(module(*inputs), plain(*inputs))
    assert module.token_grids(inputs[1]).tolist() == [[SIDE, SIDE]] * 2


@FAMILIES
@torch.no_grad()
def test_a_new_part_shows_the_snapshot(family: str) -> None:
    inputs = cut(*LARGE)
    compressed, snapshot = part(family, drawn=False), part(family, tokens="snapshot")
    own = compressed.connector.state_dict()
    assert snapshot.connector.load_state_dict(own)
    tokens, whole = compressed(*inputs)
    assert torch.equal(tokens, snapshot(*inputs))
    assert tokens.shape == (4 * SIDE**2, 32) and whole.shape == (4, 32)


@pytest.mark.parametrize("tokens", ["compressed", "all", "snapshot"])
@torch.no_grad()
def test_a_pictures_tokens_are_its_own(tokens: str) -> None:
    """Whatever else is in the batch, and however many tiles go through the tower at once."""
    module = part(tokens=tokens)
    inputs = cut(*LARGE)
    made = module(*inputs)
    together = made[0] if tokens == "compressed" else made
    counts = module.token_grids(inputs[1]).prod(-1).tolist()
    assert sum(counts) == len(together)
    for found, alone in zip(together.split(counts), each(*inputs), strict=True):
        one = module(*alone)
        close(one[0] if tokens == "compressed" else one, found)
    module.tiles_at_once = 1
    again = module(*inputs)
    close(again[0] if tokens == "compressed" else again, together)


@torch.no_grad()
def test_all_tokens_are_the_snapshots_and_the_pictures_own() -> None:
    """The picture's patches in its rows, whatever tile they were in; behind each row the newline."""
    module, inputs = part(tokens="all", layer=0), cut((40, 24))
    found = module(*inputs)
    image = picture(inputs[0], inputs[1][0])
    snapshot, rest = found[:16], found[16:].view(6, 11, 32)
    assert torch.equal(snapshot, part(tokens="snapshot", layer=0)(*inputs))
    assert torch.equal(rest[:, 10], module.newline.expand(6, 32))
    # State 0 is a patch's embedding and its place in the tile: no other patch is in it.
    for row, column in ((0, 0), (5, 3), (0, 4), (5, 9)):
        tile = torch.zeros(3, 16, 16)
        down, across = row % SIDE * PATCH, column % SIDE * PATCH
        top, left = row * PATCH, column * PATCH
        tile[:, down : down + PATCH, across : across + PATCH] = image[
            :, top : top + PATCH, left : left + PATCH
        ]
        states = module._states(tile[None])[0]
        wanted = module._connect(states[row % SIDE * SIDE + column % SIDE])
        close(rest[row, column], wanted)


@pytest.mark.parametrize("tokens", ["compressed", "all"])
@torch.no_grad()
def test_padding_leaks_nothing(tokens: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Read before any block mixes patches, tokens do not know what colour the padding has."""
    inputs = cut((40, 24), (5, 60))
    before = part(tokens=tokens, layer=0)(*inputs)
    module = part(tokens=tokens, layer=0)
    module.reader.mean = (0.0, 1.0, 0.5)
    # The mean is the padding's colour and what pixels are normalised by: only the first is to differ.
    monkeypatch.setattr(module.reader, "_normalise", part().reader._normalise)
    after = module(*inputs)
    assert tuple(part().reader.mean) == CLIP_MEAN
    for a, b in zip(before, after, strict=True):
        assert torch.equal(a, b)
    deeper = part(tokens=tokens, layer=-1)
    seen = deeper(*inputs)
    monkeypatch.setattr(deeper.reader, "_normalise", part().reader._normalise)
    deeper.reader.mean = (0.0, 1.0, 0.5)
    # The paper pads what the tower sees.
    assert any(not torch.equal(a, b) for a, b in zip(deeper(*inputs), seen, strict=True))


@torch.no_grad()
def test_a_huge_picture_is_scaled_down() -> None:
    """To max_tiles; the tower never sees more, whatever the grid."""
    module = part(max_tiles=4)
    module.tiles_at_once = 2
    seen: list[int] = []
    module.tower.register_forward_pre_hook(lambda _, args: seen.append(len(args[0])))
    patches = torch.randint(0, 256, (60 * 50 + 300, 3 * PATCH**2), dtype=torch.uint8)
    grids = torch.tensor([[60, 50], [1, 300]])
    tokens, _ = module(patches, grids)
    assert tokens.shape == (2 * 16, 32) and tokens.isfinite().all()
    assert sum(seen) <= 2 + 8 and max(seen) <= 2


def test_a_trained_tower_is_computed_again_in_the_backward_pass() -> None:
    inputs, gradients = cut((40, 24), (16, 16)), []
    for at_once in (16, 2):
        module = part().requires_grad_(True)
        module.tiles_at_once = at_once
        runs: list[int] = []
        module.tower.register_forward_pre_hook(lambda _, args, runs=runs: runs.append(len(args[0])))
        tokens, whole = module(*inputs)
        (tokens.square().mean() + whole.square().mean()).backward()
        # Two snapshots and 6 + 1 tiles.
        assert sum(runs) == (2 + 7 if at_once == 16 else 2 + 2 * 7)
        gradients.append({name: p.grad for name, p in module.named_parameters()})
    reached = {name for name, value in gradients[0].items() if value is not None and value.any()}
    assert {"connector.0.weight", "perceiver.query", "perceiver.bumps"} <= reached
    assert any(name.startswith("tower.") for name in reached)
    for name in reached:
        torch.testing.assert_close(gradients[1][name], gradients[0][name], rtol=1e-3, atol=1e-5)


def test_no_pictures() -> None:
    none = torch.zeros(0, 3 * PATCH**2, dtype=torch.uint8), torch.zeros(0, 2, dtype=torch.int64)
    assert part()(*none).shape == (0, 32)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"tokens": "some"}, 'tokens "some" is none of compressed, all, snapshot'),
        ({"patch_size": 8}, "patch_size 8 is not the tower's, 4"),
        ({"max_tiles": 0}, "max_tiles and tiles_at_once must be at least one"),
    ],
)
def test_settings_that_do_not_fit(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        Perceiver(32, **config(**settings))


# ---------------------------------------------------------------------------------- in the model


@pytest.mark.parametrize("tokens", ["compressed", "all", "snapshot"])
@torch.no_grad()
def test_processor_and_model_count_alike(
    make_model: Any, make_processor: Any, make_picture: Any, tokens: str
) -> None:
    """Pictures of a line of pixels, of many tiles, of less than a patch; then words."""
    module = part(tokens=tokens, max_tiles=4)
    model = make_model(vision={"kind": "perceiver", **config(tokens=tokens, max_tiles=4)})
    processor = make_processor(vision_tokens=module.vision_tokens, max_patches=400)
    sizes = ((1, 4000), (90, 90), (2, 3))
    pieces = [make_picture(*size) for size in sizes]
    encoded = processor.encode([("user", [*pieces, "What is it?"])])
    counts = [count for _, count in encoded.image_spans]
    assert counts == model.tokens_per_image(torch.tensor(encoded.grids)).tolist()
    if tokens != "all":
        assert counts == [16, 16, 16]
    assert processor.length([("user", [*sizes, "What is it?"])]) == len(encoded.input_ids)
    inputs = processor.collate([encoded])
    assert torch.isfinite(model(**inputs).logits).all()
    generated = model.generate(**inputs, max_new_tokens=2, do_sample=False)
    assert generated.shape[1] == inputs["input_ids"].shape[1] + 2


@torch.no_grad()
def test_a_compressor_behind_it_counts_its_tokens(make_model: Any, make_processor: Any) -> None:
    merge = {"kind": "merge", "factor": 3}
    model = make_model(vision={"kind": "perceiver", **config()}, compress=merge)
    processor = make_processor(vision_tokens={"kind": "fixed", "side": SIDE}, compress=merge)
    grids = torch.tensor([[10, 6], [1, 15]])
    assert (
        model.tokens_per_image(grids).tolist()
        == [6, 6]
        == [processor.image_processor.tokens((9, 9))] * 2
    )
    inputs = cut((40, 24), (5, 60))
    assert model.get_image_features(*inputs).shape == (12, 32)


@torch.no_grad()
def test_the_vision_tap_reads_what_the_llm_is_given(make_model: Any, make_inputs: Any) -> None:
    inputs = make_inputs([[5, (2, 3), 7, (4, 4)]])
    model = make_model()
    seen = model(**inputs, taps={"vision": lambda seen: seen, 0: lambda x: x}).taps
    assert seen["vision"].counts == (6, 16) and seen[0].shape == (22, 32)
    assert torch.equal(
        seen["vision"].tokens_SD, model.vision(inputs["pixel_values"], inputs["image_grids"])
    )
    (first, pooled), _ = seen["vision"].of_each()
    assert torch.equal(first, seen["vision"].tokens_SD[:6]) and torch.equal(pooled, first.mean(0))
    model = make_model(vision={"kind": "perceiver", **config()})
    ids = torch.full((1, 34), 5)
    ids[0, 1:33] = model.config.image_token_id
    made = model(
        input_ids=ids, pixel_values=inputs["pixel_values"], image_grids=inputs["image_grids"],
        taps={"vision": lambda seen: seen},
    ).taps["vision"]  # fmt: skip
    tokens, whole = model.vision(inputs["pixel_values"], inputs["image_grids"])
    assert torch.equal(made.tokens_SD, tokens) and torch.equal(made.pooled_ND, whole)
    assert torch.equal(made.of_each()[1][1], whole[1]) and made.counts == (16, 16)
