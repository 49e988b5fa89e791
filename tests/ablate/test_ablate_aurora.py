"""The ablations of AuroraEdge-V: their rows, their cost, and fusion that reads the wrong pictures."""

from pathlib import Path
from typing import Any

import pytest
import torch

from helpers import Tiny, tiny_recipe
from oculi.ablate import engine
from oculi.ablate.catalogue import ABLATIONS
from oculi.ablate.fusing import prefill_milliseconds, score_shuffled, shuffled
from oculi.ablate.runs import _EXTRAS, Finished, finish, measure
from oculi.errors import AblationError
from oculi.recipe import Recipe
from oculi.training.build import build_model, build_processor
from oculi.training.module import TrainModule, canonical_parameters, learning_rates


def test_rows_are_table_5_and_differ_in_fusion_alone() -> None:
    recipes = engine.recipes_of(ABLATIONS["aurora-table6"], quick=False)
    kinds = [r.model.fusion and r.model.fusion.kind for r in recipes.values()]
    assert kinds == [None, "cross", "decoder", "combined"]
    models = [r.model.model_copy(update={"fusion": None}) for r in recipes.values()]
    assert all(model == models[0] for model in models)
    kinds = [r.model.compress and r.model.compress.kind for r in
             engine.recipes_of(ABLATIONS["aurora-compressor"], quick=False).values()]  # fmt: skip
    assert kinds == ["mlp", "conv", "maxpool"]


@pytest.mark.parametrize("name", ["aurora-table6", "aurora-compressor"])
def test_every_glob_of_every_row_matches(name: str) -> None:
    for recipe in engine.recipes_of(ABLATIONS[name], quick=False).values():
        model = build_model(recipe.model, build_processor(recipe.model), 0)
        names = list(canonical_parameters(TrainModule(model, [])))
        for stage in recipe.stages:
            rates = learning_rates(names, stage.trainable, stage.lr, stage.name)
            frozen = {n.split(".")[0] for n in names if n not in rates}
            assert frozen == ({"vision", "llm"} if stage.name == "vision" else {"vision"})


def test_fusion_costs_what_table_7_says_in_order() -> None:
    found: dict[str, dict[str, float]] = {}
    for name, recipe in engine.recipes_of(ABLATIONS["aurora-table6"], quick=False).items():
        _EXTRAS["cost"](Finished(recipe, Path("nowhere"), False, found.setdefault(name, {}), {}))
    macs = [found[name]["macs"] for name in ("compress", "cross", "decoder", "combined")]
    assert macs == sorted(macs) and len(set(macs)) == 4
    assert macs[3] - macs[0] == pytest.approx(macs[1] + macs[2] - 2 * macs[0])
    assert {run["tokens"] for run in found.values()} == {9}


def fused(tiny: Tiny) -> Recipe:
    recipe = tiny_recipe(
        tiny,
        **{
            "model.compress": {"kind": "mlp", "patches": 16, "tokens": 4},
            "model.fusion": {"kind": "decoder"},
            "model.images": {"mode": "square", "size": 16},
            "model.lora": None,
            "stages.0.merge_lora": False,
            "stages.0.objectives": [{"kind": "lm"}],
            "stages.0.trainable": {"vision.*": None, "fusion.*": None, "compress.*": None},
            "evals": [{"task": "playroom:1", "limit": 6, "blind": False}],
        },
    )
    return recipe.model_copy(update={"stages": recipe.stages[:1]})


@pytest.fixture(scope="module")
def stage(tiny: Tiny, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("fused") / "run"
    finish(fused(tiny), run)
    return run / "stages" / "0-pretrain"


@torch.no_grad()
def test_fusion_alone_gets_the_picture_before(tiny: Tiny) -> None:
    """And nothing else of the model does: by hand, with the tokens exchanged."""
    recipe = fused(tiny)
    processor = build_processor(recipe.model)
    model = build_model(recipe.model, processor, 0).eval()
    seen: list[Any] = []
    model.fusion.register_forward_pre_hook(lambda _, args: seen.append(args))
    a, b, c = (torch.randint(0, 256, (16, 48), dtype=torch.uint8) for _ in range(3))
    ids = torch.tensor([[5, *[processor.image_token_id] * 4, 7]])

    def forward(*pictures: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """What fusion was given: the LLM's input, and the uncompressed tokens."""
        seen.clear()
        grids = torch.tensor([[4, 4]] * len(pictures))
        rows = ids.expand(len(pictures), -1)
        model(input_ids=rows, pixel_values=torch.cat(pictures), image_grids=grids)
        return seen[-1][0], seen[-1][1].view(len(pictures), 16, -1)

    embeds, whole = forward(a, b, c)
    with shuffled(model):
        model.fusion.register_forward_pre_hook(lambda _, args: seen.append(args))
        moved_embeds, moved = forward(a, b, c)
        _, alone = forward(a)
    assert torch.equal(moved, whole[[2, 0, 1]]) and torch.equal(moved_embeds, embeds)
    assert torch.equal(alone[0], whole[2])  # of one picture, the last of the call before
    assert torch.equal(forward(a)[1][0], whole[0])


@torch.no_grad()
def test_pictures_of_other_sizes_are_refused(tiny: Tiny) -> None:
    recipe = fused(tiny)
    processor = build_processor(recipe.model)
    model = build_model(recipe.model, processor, 0).eval()
    ids = torch.tensor([[5, *[processor.image_token_id] * 4, 7]]).expand(2, -1)
    pictures = torch.zeros(12, 48, dtype=torch.uint8)
    with shuffled(model), pytest.raises(AblationError, match="cannot change places"):
        model(input_ids=ids, pixel_values=pictures, image_grids=torch.tensor([[2, 2], [2, 4]]))


def test_what_is_measured_of_fusion_is_kept(stage: Path, tiny: Tiny, monkeypatch: Any) -> None:
    run = stage.parents[1]
    first = measure(fused(tiny), run, ("fusion",), quick=True)
    assert first.values["prefill"] > 0 and 0 <= first.values["shuffled"] <= 1
    assert len(first.answers["shuffled"]) == len(first.answers["score"]) == 6

    def again(*args: Any) -> None:
        raise AssertionError("measured twice")

    monkeypatch.setattr("oculi.ablate.fusing.score_shuffled", again)
    assert measure(fused(tiny), run, ("fusion",), quick=True).values == first.values
    assert prefill_milliseconds(stage) > 0


def test_a_model_without_fusion_cannot_be_shuffled(
    stage: Path, tmp_path: Path, monkeypatch: Any
) -> None:
    from oculi.ablate import fusing

    model, processor = fusing.load_exported(stage)
    model.fusion = None
    monkeypatch.setattr(fusing, "load_exported", lambda folder: (model, processor))
    with pytest.raises(AblationError, match="has no fusion module"):
        score_shuffled(stage, "playroom:1", tmp_path, 2)
