"""Table 3 and the ratio of the losses: what rows differ in, and what the claims compare."""

from __future__ import annotations

from fnmatch import fnmatchcase
from pathlib import Path

import pytest

from oculi.ablate import engine, vlsa
from oculi.ablate.runs import _EXTRAS, Finished
from oculi.ablate.spec import Ablation, Contrast
from oculi.recipe import PlayroomSource, Stage
from oculi.recipes import find_recipe
from oculi.recipes.vlsa import TINY_TOWER_LR
from oculi.training.module import learning_rates

BOTH = pytest.mark.parametrize("ablation", [vlsa.table3, vlsa.ratio], ids=lambda found: found.name)


@BOTH
def test_every_claim_compares_rows_with_equal_weight(ablation: Ablation) -> None:
    """A contrast whose weights do not cancel would measure the score itself."""
    for claim in ablation.claims:
        assert isinstance(claim.effect, Contrast)
        weights = [term.weight for term in claim.effect.terms]
        assert sum(weights) == pytest.approx(0) and max(weights) > 0
        assert {term.metric.split("@")[0] for term in claim.effect.terms} <= {"score", "loss"}
    text = "\n".join(engine.announcement(ablation, 3, quick=False))
    assert all(claim.rule() in text for claim in ablation.claims)
    assert ablation.least_seeds == 3


def test_claims_about_a_part_differ_in_that_part_alone() -> None:
    rows = {row.name: row for row in vlsa.table3.rows}
    for claim in vlsa.table3.claims:
        if claim.name.startswith("cognition alignment"):
            with_c, without = claim.effect.rows
            extra = set(rows[with_c].overrides) - set(rows[without].overrides)
            (change,) = extra
            assert change.startswith("stages.2.cognition=")  # the LLM is frozen before
            assert set(rows[without].overrides) < set(rows[with_c].overrides)
    told = {name: rows[name].labels for name in rows}
    assert told["any"] == ("any", "", "text-rich") and told["low+abc"] == (
        "low*",
        "abc",
        "text-rich",
    )


def test_the_papers_differences_are_those_of_its_rows() -> None:
    """Table 3 prints them beside the scores; those of MME and SQA do not agree with them there."""
    rows = {row.name: {k: float(v) for k, v in row.paper.items()} for row in vlsa.table3.rows}
    printed = {
        "low": (-22.3, -28.3), "low+a": (-1.8, -11.9), "low+ab": (0.3, 1.8), "any+c": (-0.1, 0.2),
        "low+abc": (0.8, 1.5),
    }  # fmt: skip
    for name, differences in printed.items():
        found = [rows[name][column] - rows["any"][column] for column in ("ChartQA", "DocVQA")]
        assert found == pytest.approx(differences, abs=0.01)


@BOTH
def test_rows_resolve_and_see_the_same_data(ablation: Ablation) -> None:
    for quick in (False, True):
        recipes = engine.recipes_of(ablation, quick)
        assert list(recipes) == [row.name for row in ablation.rows]
    steps = [sum(stage.steps for stage in recipe.stages) for recipe in recipes.values()]
    assert len(set(steps)) == 1
    for recipe in engine.recipes_of(ablation, quick=False).values():
        assert all(stage.log_every == 1 for stage in recipe.stages)


@BOTH
def test_the_tower_that_reads_learns_at_its_own_rate(ablation: Ablation) -> None:
    """In every row, as in the recipe: the last glob that matches decides."""
    for recipe in (*engine.recipes_of(ablation, quick=False).values(), find_recipe("vlsa_tiny")):
        for stage in recipe.stages[1:]:
            rates = learning_rates(["vision.tower.x"], tower_globs(stage), stage.lr, "here")
            assert rates == {"vision.tower.x": TINY_TOWER_LR}, (recipe.name, stage.name)


@BOTH
def test_muon_has_the_denoiser_of_rows_that_have_one(ablation: Ablation) -> None:
    """A glob that matches nothing would end the run."""
    for recipe in engine.recipes_of(ablation, quick=False).values():
        stage = recipe.stages[2]
        restored = any(term.kind == "reconstruct" for term in stage.objectives)
        assert any(glob.startswith("objectives.") for glob in stage.muon) == restored, recipe.name


@BOTH
def test_every_row_transcribes_half_of_its_last_stage(ablation: Ablation) -> None:
    """Without that no row reads through 36 tokens, and claims about words would compare noise."""
    for recipe in engine.recipes_of(ablation, quick=False).values():
        weights = {"read all": 0.0, "": 0.0}
        for source in recipe.stages[2].data:
            assert isinstance(source, PlayroomSource)
            weights["".join(source.kinds)] += source.weight
        assert weights["read all"] == pytest.approx(weights[""]), recipe.name


def test_rows_without_text_see_none_in_the_second_stage() -> None:
    for name, recipe in engine.recipes_of(vlsa.table3, quick=False).items():
        levels = {getattr(source, "level", None) for source in recipe.stages[1].data}
        assert levels == ({1, 2} if name.endswith("without-text") else {3, 4}), name


def tower_globs(stage: Stage) -> dict[str, float | None]:
    return {
        glob: rate for glob, rate in stage.trainable.items() if fnmatchcase("vision.tower.x", glob)
    }


def test_tokens_of_a_picture_are_what_the_rows_say() -> None:
    recipes = engine.recipes_of(vlsa.table3, quick=False)
    found: dict[str, dict[str, float]] = {}
    for name in ("any", "low", "low+ab"):
        found[name] = {}
        _EXTRAS["cost_168"](Finished(recipes[name], Path("nowhere"), False, found[name], {}))
    assert found["low"]["tokens"] == found["low+ab"]["tokens"] == 36
    assert found["any"]["tokens"] > 4 * 36
    assert found["low"]["macs_168"] < found["low+ab"]["macs_168"] < found["any"]["macs_168"]


def test_ratios_and_schedules_are_weights_of_stages() -> None:
    recipes = engine.recipes_of(vlsa.ratio, quick=False)
    found = {
        name: [stage.objectives[1].weight for stage in recipe.stages]
        for name, recipe in recipes.items()
    }
    assert found == {
        "constant-0.1": [0.1] * 3, "constant-1": [1.0] * 3, "constant-2": [2.0] * 3,
        "falling": [2.0, 1.0, 0.1], "rising": [0.1, 1.0, 2.0],
    }  # fmt: skip
    papers = find_recipe("vlsa").stages
    assert found["constant-1"] == [stage.objectives[1].weight for stage in papers]
