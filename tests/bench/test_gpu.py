"""``oculi bench gpu`` on whatever there is, and ``oculi bench loader``."""

import json
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from oculi.bench import gpu
from oculi.bench.gpu import QWEN_1_5B, QWEN_7B, GpuReport, bench_gpu
from oculi.bench.loader import bench_loader
from oculi.bench.shapes import SMALL
from oculi.cli import app
from oculi.errors import OculiError


def test_it_runs_at_tiny_shapes(tmp_path: Path) -> None:
    page = tmp_path / "gpu.md"
    arguments = ["--size", "tiny", "--quick", "--json", "--checkpointing", "selective"]
    result = CliRunner().invoke(app, ["bench", "gpu", *arguments, "--out", str(page)])
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    ours, peer = found["training"]["ours"], found["training"]["official_style"]
    assert ours["flops"] > ours["needed_flops"] == peer["needed_flops"] > 0
    assert peer["flops"] > peer["needed_flops"]
    for side in (ours, peer):
        assert side["samples_per_second"] == pytest.approx(2 / side["seconds"])
        share = side["needed_flops"] / side["seconds"] / found["product_flops"]
        assert side["mfu"] == pytest.approx(share)
    serving = found["serving"]
    assert serving["first_token_seconds"] > 0 and serving["tokens_per_second"] > 0
    assert [goal["advice"] for goal in found["goals"]] == [True, True]
    assert "--checkpointing selective" in page.read_text()


def test_the_head_reads_the_last_row_of_a_prompt() -> None:
    """As ``generate`` does it: the bound of all rows would be 16.29 TFLOP."""
    weights = 7_615_616_512 - QWEN_7B.vocabulary * QWEN_7B.width  # without the table
    assert gpu.prefill_flops(weights, QWEN_7B) == pytest.approx(15.04e12, rel=1e-3)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_real_shapes_need_a_device() -> None:
    for arguments, said in (
        (["--size", "7b"], "needs a CUDA device"),
        (["--size", "70b"], "none of 7b, 1.5b, tiny"),
        (["--size", "tiny", "--checkpointing", "some"], "none of none, selective, full"),
    ):
        result = CliRunner().invoke(app, ["bench", "gpu", *arguments])
        assert result.exit_code == 2
        assert said in result.stderr and len(result.stderr.splitlines()) == 1


def test_too_little_memory_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*arguments: object) -> None:
        raise torch.cuda.OutOfMemoryError("CUDA out of memory.\nTried to allocate")

    monkeypatch.setattr(gpu, "_measure", full)
    with pytest.raises(OculiError, match="lower --samples") as caught:
        bench_gpu("tiny")
    assert "\n" not in str(caught.value)


def test_the_shapes_are_the_real_ones() -> None:
    """Parameters of the published models, and of the paper's LoRA, without a byte of them."""
    from oculi.bench.shapes import build_llm

    for shapes, parameters in ((QWEN_7B, 7_615_616_512), (QWEN_1_5B, 1_543_714_304)):
        llm = build_llm(shapes, device="meta")
        assert sum(p.numel() for p in llm.parameters()) == parameters
    d, kv, f = 3584, 512, 18_944
    assert (
        QWEN_7B.lora_blocks * QWEN_7B.rank * (4 * d + 2 * (d + kv) + 3 * (d + f)) == 2_214_592_512
    )


def test_the_bound_of_the_plan_is_named_where_it_is_known() -> None:
    assert gpu.plan_bound("7b", "NVIDIA H200") == pytest.approx(15.9, abs=0.3)
    assert gpu.plan_bound("1.5b", "NVIDIA H200") is None
    assert gpu.plan_bound("7b", "CPU") is None


def test_goals_are_against_bounds_and_the_peer() -> None:
    side = {"seconds": 1.0, "flops": 4.0, "needed_flops": 4.0, "mfu": 0.5, "peak_bytes": 0.0}
    training = {
        "ours": {**side, "samples_per_second": 8.0},
        "official_style": {**side, "samples_per_second": 3.0},
    }
    report = GpuReport("7b", SMALL, "x", 24.0, 1.0, training, {}, planned=15.9)
    assert report.bound == 12.0
    assert [round(goal.measured, 3) for goal in report.goals()] == [0.667, 0.503, 2.667]
    assert all(goal.met for goal in report.goals())


def test_the_loader_makes_the_same_pictures(tmp_path: Path) -> None:
    """Both ways on the same files: normalised, ours are the pixels of the other."""
    report = bench_loader(pictures=3, repeats=1, size=(64, 48))
    assert report.ours > 0 and report.naive > 0
    assert report.to_json()["ratio"] == report.ours / report.naive
    assert "pictures/s" in "\n".join(report.lines())


def test_the_loader_command(tmp_path: Path) -> None:
    page = tmp_path / "loader.md"
    result = CliRunner().invoke(app, ["bench", "loader", "--quick", "--out", str(page)])
    assert result.exit_code == 0, result.output
    assert (
        "pictures a second / naive" in result.stdout and "bench loader --quick" in page.read_text()
    )
