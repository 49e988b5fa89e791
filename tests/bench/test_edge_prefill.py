"""A compressed prefill beside an uncompressed one: models, products, and a measured pair."""

from dataclasses import replace
from typing import Any

import pytest

from helpers import Drawn
from oculi.bench import edge_prefill
from oculi.bench.edge import Report
from oculi.bench.edge_prefill import LARGE, TINY, Pair, Prefill, compare_prefill

GRIDS = {"tiny": (6, 6), "large": (16, 16)}


def configs(size: Any) -> dict[str, Any]:
    specs = edge_prefill.specs(size)
    return {name: edge_prefill.configuration(spec, size) for name, spec in specs.items()}


@pytest.mark.parametrize("size", [TINY, LARGE], ids=lambda size: size.name)
def test_both_models_share_all_but_compressor_and_fusion(size: Any) -> None:
    plain, compressed = configs(size).values()
    assert plain.text_config.to_dict() == compressed.text_config.to_dict()
    assert plain.vision_config == compressed.vision_config
    assert plain.compress_config is plain.fuse_config is None
    assert compressed.compress_config["patches"] == 4 * compressed.compress_config["tokens"]
    assert compressed.fuse_config["kind"] == "combined"


def test_macs_are_those_of_a_hand_count() -> None:
    """Of the uncompressed tiny model: tower, connector, blocks, the head once, attention."""
    config = configs(TINY)["llava"]
    text, vision, width, hidden, blocks = 25, 36, 192, 512, 6
    tower = 5 * (36 * (4 * width**2 + 3 * width * hidden) + 2 * 36**2 * width) + 36 * 588 * width
    connector = 36 * 2 * width**2
    tokens = vision + text
    linear = tokens * (2 * width**2 + 2 * width * width // 2 + 3 * width * hidden)
    llm = blocks * (linear + 2 * tokens**2 * width) + width * 1024
    found = edge_prefill.prefill_macs(config, (6, 6), text)
    assert found == tower + connector + llm


@pytest.mark.parametrize(("size", "least", "most"), [(TINY, 0.7, 0.9), (LARGE, 0.4, 0.6)])
def test_a_compressed_prefill_has_fewer_products(size: Any, least: float, most: float) -> None:
    plain, compressed = (
        edge_prefill.prefill_macs(config, GRIDS[size.name], 25) for config in configs(size).values()
    )
    assert least < compressed / plain < most


def test_goals_follow_from_the_numbers() -> None:
    plain = Prefill("llava", 5.0, 36, 56, 200, 0.010, 0.011, 0.012)
    compressed = Prefill("aurora", 5.9, 9, 29, 150, 0.012, 0.013, 0.014)
    report = Report(2, [], None, [Pair("tiny", 36, 20, plain, compressed)])
    assert report.ok and [goal.met for goal in report.goals()] == [True, False]  # time is advice
    text = "\n".join(report.lines())
    assert "0.75 times the MACs and takes 1.20 times as long (20 questions" in text
    assert report.to_json()["prefills"][0]["compressed"]["first_p95"] == 0.014
    more = Report(2, [], None, [Pair("tiny", 36, 20, plain, replace(compressed, macs=201))])
    assert not more.ok


def test_a_pair_is_measured_by_turns(tmp_path: Any) -> None:
    tower = {
        "model_type": "siglip2_vision_model", "hidden_size": 32, "intermediate_size": 32,
        "num_hidden_layers": 1, "num_attention_heads": 2, "num_patches": 16, "patch_size": 14,
        "vision_use_head": False,
    }  # fmt: skip
    size = replace(TINY, llm={"num_hidden_layers": 1}, tower=tower)
    picture = Drawn(84, 84).load()
    talks = [[("user", [picture, f"\n{word}?"])] for word in ("red", "blue")]
    answers: list[int] = []
    pair = compare_prefill(size, talks, tmp_path, 1, lambda: answers.append(1))
    assert len(answers) == 6 and pair.questions == 2  # two models, one question more to warm up
    for one in (pair.uncompressed, pair.compressed):
        assert 0 < one.seconds < one.first_p50 <= one.first_p95
    assert pair.uncompressed.prompt - pair.compressed.prompt == 36 - 9
    assert pair.compressed.parameters > pair.uncompressed.parameters
