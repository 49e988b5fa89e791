"""What is written anew for graphs, beside the modules that it stands for."""

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from helpers import PATCH, make_tower
from oculi.export.onnx import fused
from oculi.export.onnx.graphs import COMPRESS, DecoderGraph, _resize_matrix, run_tower
from oculi.export.onnx.write import _trace
from oculi.model.compress_oculi import COMPRESSORS
from oculi.model.tower_oculi import VisionTower
from oculi.model.wide_rows_oculi import wide_rows

pytestmark = pytest.mark.usefixtures("no_grad")
PLACES, TOKENS, WIDTH = 36, 9, 8
KINDS = ("mlp", "conv", "maxpool")


class Parts(nn.Module):
    """A tower of any grid and the learned compressors behind it, as one graph."""

    def __init__(self) -> None:
        super().__init__()
        tower = make_tower("siglip2").config.to_dict()
        self.tower = VisionTower(WIDTH, tower, PATCH, -1, final_norm=True)
        self.parts = nn.ModuleList(COMPRESSORS[kind](WIDTH, PLACES, TOKENS) for kind in KINDS)
        for parameter in self.parameters():
            parameter.normal_(std=0.3)

    def forward(self, patches: Tensor) -> tuple[Tensor, ...]:
        rows, columns = patches.shape[:2]
        tokens = run_tower(self.tower, patches.flatten(0, 1), rows, columns)
        return tokens, *(COMPRESS[type(part)](part, tokens, rows, columns) for part in self.parts)


def patches(rows: int, columns: int) -> Tensor:
    torch.manual_seed(rows)
    return torch.randint(0, 256, (rows, columns, 3 * PATCH**2), dtype=torch.uint8)


def test_learned_compressors_and_a_tower_of_any_grid(tmp_path: Any) -> None:
    import onnx_ir
    import onnxruntime

    torch.manual_seed(0)
    parts = Parts().eval()
    free = torch.export.Dim.DYNAMIC
    traced = _trace(parts, (patches(5, 7),), ({0: free, 1: free},), ["patches"], ["tokens", *KINDS])
    onnx_ir.save(traced, tmp_path / "parts.onnx")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 4
    session = onnxruntime.InferenceSession(tmp_path / "parts.onnx", options)
    # One patch, whole windows without any, all places, a row alone, larger than the tower's table.
    for grid in ((1, 1), (2, 3), (6, 6), (1, 9), (7, 5), (12, 3)):
        made = patches(*grid)
        found = session.run(None, {"patches": made.numpy()})
        grids = torch.tensor([grid])
        tokens = parts.tower(made.flatten(0, 1), grids)
        wanted = [tokens, *(part(tokens, grids)[0] for part in parts.parts)]
        for ours, theirs in zip(found, wanted, strict=True):
            assert ours.shape == tuple(theirs.shape)
            assert np.abs(ours - theirs.numpy()).max() < 1e-4
    with pytest.raises(Exception, match="out of"):  # not cut without a word
        session.run(None, {"patches": patches(5, 8).numpy()})


@pytest.mark.parametrize("side", [4, 16])
def test_a_table_is_resized_as_torch_does(side: int) -> None:
    table = torch.randn(1, 5, side, side)
    for rows, columns in ((1, 1), (3, 7), (side, side), (40, 2), (9, 33)):
        wanted = F.interpolate(table, (rows, columns), mode="bilinear", antialias=True)
        down, across = _resize_matrix(side, rows), _resize_matrix(side, columns)
        assert torch.allclose(down @ table @ across.T, wanted, atol=1e-6)


ROWS = [
    [5, (2, 3), 7],
    [(2, 2), (1, 2), 6, 7, 8],  # adjacent pictures, one at the front
    [4, 9, (2, 2), 8, (3, 2)],  # one at the end
    [5, 6],
]


@pytest.mark.parametrize("row", ROWS)
def test_one_row_is_a_wide_row(row: list[Any]) -> None:
    images, sizes, grids = [], [], []
    for piece in row:
        if isinstance(piece, int):
            images.append(-1)
            continue
        images += [len(grids)] * 3
        grids.append(piece)
        sizes.append((3, piece[0] * piece[1]))
    image_ids = torch.tensor([images])
    wanted = wide_rows(
        image_ids,
        torch.tensor(grids) if grids else None,
        [3] * len(grids),
        torch.ones_like(image_ids, dtype=torch.bool),
    )
    text = (image_ids[0] < 0).nonzero()[:, 0]
    total = sum(patches for _, patches in sizes)
    found = fused.one_row(
        text, torch.tensor(sizes, dtype=torch.int64).view(-1, 2), len(images), total
    )
    for name in ("text_BQ", "wide_BQ", "is_text_BT", "source_BW", "patches_P", "images_BW"):
        assert torch.equal(getattr(found, name), getattr(wanted, name)), name
    assert torch.equal(found.rank_BT[found.is_text_BT], wanted.rank_BT[wanted.is_text_BT])
    assert (found.token_BW >= 0).all() and found.segments_BW is None


@pytest.mark.parametrize(
    ("kind", "policy"), [("cross", "mutual"), ("decoder", "bidirectional"), ("combined", "causal")]
)
def test_a_decoder_with_fusion_is_the_model(
    kind: str, policy: str, make_model: Any, make_inputs: Any
) -> None:
    """Prompt, then a token with the past, in the code that is traced."""
    tokens = 2
    compress = {"kind": "mlp", "patches": 6, "tokens": tokens}
    model = make_model("llama", policy, compress=compress, fusion={"kind": kind, "layers": 2})
    graph = DecoderGraph(model).eval()
    for row in ROWS:
        inputs = make_inputs([row], tokens=tokens)
        ids, images = inputs["input_ids"], {k: v for k, v in inputs.items() if "_" in k}
        del images["input_ids"], images["attention_mask"]
        prompt = torch.ones_like(ids, dtype=torch.bool)
        is_text = ids[0] != model.config.image_token_id
        embeds = model.get_input_embeddings()(ids.masked_fill(~is_text, 0))
        sizes, whole = torch.zeros(0, 2, dtype=torch.int64), embeds.new_zeros(0, model.width)
        image_ids = torch.full_like(ids, -1)
        if images:
            sight = model._see(**images)
            embeds[:, ~is_text], whole = sight.tokens, sight.whole
            image_ids[:, ~is_text] = torch.arange(len(sight.tokens)) // tokens
            patches = images["image_grids"].prod(-1)
            sizes = torch.stack([torch.full_like(patches, tokens), patches], 1)
        given = {"text_places": is_text.nonzero()[:, 0], "whole": whole, "sizes": sizes}
        past = [torch.zeros(1, 2, 0, model.width // 4) for _ in range(2 * len(model.blocks))]
        empty = [one[:, :, :0] if one.ndim == 4 else one[:, :0] for one in
                 fused.example_past(model, past[0])]  # fmt: skip
        logits, *present = graph(embeds, image_ids, prompt, given, past, empty)
        wanted = model(ids, prompt_mask=prompt, use_cache=True, **images)
        assert torch.allclose(logits, wanted.logits[:, -1], atol=2e-4)
        new = torch.tensor([[9]])
        given = {"text_places": torch.zeros(1, dtype=torch.int64), "whole": whole[:0],
                 "sizes": sizes[:0]}  # fmt: skip
        logits, *_ = graph(
            model.get_input_embeddings()(new), torch.tensor([[-1]]), prompt[:, :1] & False, given,
            present[: len(past)], present[len(past) :],
        )  # fmt: skip
        wanted = model(
            new, prompt_mask=prompt[:, :1] & False, past_key_values=wanted.past_key_values
        )
        assert torch.allclose(logits, wanted.logits[:, -1], atol=2e-4)
