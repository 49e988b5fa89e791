"""The testbed's VQ model: its format, its start, and that it can be read as any other."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from oculi.cognition.codebook import Codebook
from oculi.testbed import build_vq, playroom, vq


def test_k_means_finds_clouds_and_leaves_no_centre_alone() -> None:
    torch.manual_seed(0)
    middles = torch.tensor([[0.0, 0.0], [10.0, 0.0], [0.0, 10.0], [10.0, 10.0]])
    points = (middles[:, None] + 0.1 * torch.randn(4, 50, 2)).flatten(0, 1)
    found = build_vq.centres(points, 8, rounds=20)
    assert torch.cdist(middles, found).min(1).values.max() < 0.5
    assert len(torch.cdist(points, found).argmin(1).unique()) >= 6


def test_a_quick_build_is_a_codebook(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build_vq, "setup", torch.manual_seed)  # one thread, as other tests
    facts = build_vq.build(tmp_path / "vq", quick=True)
    assert facts["parameters"] == sum(p.numel() for p in vq.new().parameters())
    assert set(facts["metrics"]) == {f"level {level}" for level in playroom.LEVELS}
    files = sum(file.stat().st_size for file in (tmp_path / "vq").iterdir())
    assert files < 1.5e6
    book = Codebook(str(tmp_path / "vq"))
    assert (book.rows, book.columns, book.entries) == (vq.GRID, vq.GRID, vq.ENTRIES) == (8, 8, 256)
    picture = playroom.item(1, "test", 0).picture.load()
    ours = build_vq.pixels(1, "test", [0])
    seen = torch.from_numpy(book.pixels(picture)).permute(2, 0, 1)[None].float() / 127.5 - 1
    assert torch.allclose(seen, ours, atol=1e-6)
    indices = book.indices(picture)
    assert indices.shape == (8, 8) and indices.max() < 256
    assert np.array_equal(indices, Codebook(str(tmp_path / "vq")).indices(picture))
