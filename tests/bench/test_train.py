"""``oculi bench train``: one run of it, at the shapes of the goals, and what it promises."""

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from oculi.bench.train import COUNTERS, NAMES
from oculi.cli import app

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("bench") / "train.md"


@pytest.fixture(scope="module")
def report(page: Path) -> dict[str, Any]:
    """What the command prints as JSON."""
    result = CliRunner().invoke(app, ["bench", "train", "--quick", "--json", "--out", str(page)])
    assert result.exit_code == 0, result.output
    found: dict[str, Any] = json.loads(result.stdout)
    return found


def test_every_promise_is_kept(report: dict[str, Any]) -> None:
    missed = [goal["name"] for goal in report["goals"] if not goal["met"]]
    assert missed == [] and report["ok"]
    assert len(report["goals"]) >= 12
    limits = [goal["limit"] for goal in report["goals"]][:9]
    assert limits == [0.61, 0.80, 0.5, 0.61, 2, 0.8, 1.0, 0.7, 1.0]


def test_the_peer_is_no_straw_man(report: dict[str, Any]) -> None:
    """It costs what the prototype cost that the goals come from (GFLOP, synchronisations, rows), and
    within a few per cent its operations and bytes, which move with versions of libraries."""
    for side, gflop, ops, megabytes in (
        ("official_style", 58.21, 7442, 59.0),
        ("official_style_no_checkpointing", 43.98, 5904, 188.8),
    ):
        found = report[side]
        assert round(found["flops"] / 1e9, 2) == gflop
        assert (found["host_syncs"], found["logits_rows"]) == (586, 576)
        assert found["ops"] == pytest.approx(ops, rel=0.03)
        assert found["saved_bytes"] == pytest.approx(megabytes * 1e6, rel=0.03)


def test_all_sides_train_the_same_model_on_the_same_samples(report: dict[str, Any]) -> None:
    for side in NAMES:
        assert report[side]["loss"] == pytest.approx(report["ours"]["loss"], rel=1e-5)


def test_what_each_side_says(report: dict[str, Any]) -> None:
    for side in NAMES:
        assert set(COUNTERS) | {"seconds"} <= report[side].keys()
        assert all(report[side][key] > 0 for key in (*COUNTERS, "seconds"))
    for key in (*COUNTERS, "seconds"):
        ratio = report["ours"][key] / report["official_style"][key]
        assert report["ratio_to_official_style"][key] == pytest.approx(ratio)
    assert report["ours"]["boolean_indices"] == 0 < report["official_style"]["boolean_indices"]
    assert report["ours"]["logits_rows"] == 48
    full, selective, plain = (
        report[side]["saved_bytes"] for side in ("ours_full", "ours_selective", "ours")
    )
    assert full < selective < plain


def test_the_page_says_how_it_was_made(report: dict[str, Any], page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    assert "Written by `oculi bench train --quick`" in text and "58.21" in text
    assert all(name in text for name in NAMES.values())
    assert json.loads(page.with_suffix(".json").read_text()) == report


@pytest.fixture
def committed() -> dict[str, Any]:
    found: dict[str, Any] = json.loads((ROOT / "benchmarks" / "train.json").read_text())
    return found


def test_the_report_in_the_repository_still_holds(
    report: dict[str, Any], committed: dict[str, Any]
) -> None:
    """What moves with versions of libraries may move a little; write it anew when they are changed:
    oculi bench train --out benchmarks/train.md"""
    for side in NAMES:
        for key in ("flops", "host_syncs", "logits_rows"):
            assert report[side][key] == committed[side][key], (side, key)
        for key in ("ops", "saved_bytes"):
            assert report[side][key] == pytest.approx(committed[side][key], rel=0.03), (side, key)


def test_the_docs_say_what_the_report_says(committed: dict[str, Any]) -> None:
    text = (ROOT / "docs" / "performance.md").read_text(encoding="utf-8")
    rows = {
        "FLOPs of ours": "flops", "operations": "ops", "saved bytes": "saved_bytes",
    }  # fmt: skip
    lines = [line for line in text.splitlines() if line.startswith("|")]
    for name, key in rows.items():
        (line,) = (line for line in lines if line.startswith(f"| {name} |"))
        cells = [cell.strip().split(" ")[0].rstrip(";") for cell in line.split("|")[2:5]]
        others = ("official_style", "official_style_no_checkpointing", "peft_trainer")
        ratios = [committed["ours"][key] / committed[other][key] for other in others]
        assert [float(cell) for cell in cells] == pytest.approx(ratios, abs=0.006), name
    for mode, side in (("none", "ours"), ("selective", "ours_selective"), ("full", "ours_full")):
        (line,) = (line for line in lines if line.startswith(f"| `{mode}` |"))
        gflop, megabytes = (float(cell) for cell in line.split("|")[3:5])
        assert gflop == pytest.approx(committed[side]["flops"] / 1e9, abs=0.06)
        assert megabytes == pytest.approx(committed[side]["saved_bytes"] / 1e6, abs=0.6)
