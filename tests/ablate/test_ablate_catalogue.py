"""The built-in ablations are what the paper's tables say, and can be run."""

import json
import re
import shlex
from dataclasses import replace
from pathlib import Path

import pytest

from oculi.ablate import engine, vora_scaling
from oculi.ablate.catalogue import ABLATIONS, find_ablation
from oculi.ablate.spec import Ablation, Claim, Row, difference
from oculi.ablate.vora_parts import TABLE_2
from oculi.errors import AblationError, RecipeError
from oculi.recipe import DistillSpec, Recipe

ROOT = Path(__file__).parents[2]
ALL = pytest.mark.parametrize("ablation", ABLATIONS.values(), ids=list(ABLATIONS))


def mode(recipe: Recipe) -> str:
    (spec,) = [s for s in recipe.stages[0].objectives if isinstance(s, DistillSpec)]
    return spec.mode


@ALL
def test_rows_resolve_and_see_the_same_data(ablation: Ablation) -> None:
    for quick in (False, True):
        recipes = engine.recipes_of(ablation, quick)
        assert list(recipes) == [row.name for row in ablation.rows]
        for recipe in recipes.values():
            assert recipe.stages[0].log_every == 1  # steps to a loss are counted in steps
            assert (recipe.stages[0].steps < 10) == quick


@ALL
def test_a_row_takes_few_enough_steps(ablation: Ablation) -> None:
    """Of 32 samples, 0.3 s each on two cores: table 2 has to be done in 90 minutes."""
    recipes = engine.recipes_of(ablation, quick=False).values()
    steps = [sum(stage.steps for stage in recipe.stages) for recipe in recipes]
    assert 3 * sum(steps) * 0.3 / 60 < (70 if ablation.name == "vora-table2" else 100)


@ALL
def test_claims_are_said_before_and_can_be_written_down(ablation: Ablation) -> None:
    text = "\n".join(engine.announcement(ablation, 3, quick=False))
    for claim in ablation.claims:
        assert claim.name in text and claim.rule() in text
        assert claim.effect.sample(3) in text
    plan = engine.plan_of(ablation, engine.recipes_of(ablation, False), 3, False)
    assert json.loads(json.dumps(plan))["claims"][0]["rule"].startswith(
        "confirmed if the whole 95 %"
    )


def test_table_2_is_the_papers() -> None:
    table = ABLATIONS["vora-table2"]
    recipes = engine.recipes_of(table, quick=False)
    found = [
        (r.model.lora.rank if r.model.lora else 0, r.model.image_attention, mode(r))
        for r in recipes.values()
    ]
    assert found == [
        (64, "causal", "none"), (64, "bidirectional", "none"), (64, "causal", "block"),
        (64, "bidirectional", "last"), (32, "bidirectional", "block"), (64, "bidirectional", "block"),
    ]  # fmt: skip


def test_the_papers_averages_are_those_of_its_columns() -> None:
    """A mistyped benchmark would show: MME counts a twentieth."""
    for row in TABLE_2:
        numbers = {column: float(text) for column, text in row.paper.items()}
        average = numbers.pop("Avg.")
        numbers["MMEp"] /= 20
        assert sum(numbers.values()) / 8 == pytest.approx(average, abs=0.06)


def test_ablations_of_the_same_rows_have_the_same_runs() -> None:
    table = engine.recipes_of(ABLATIONS["vora-table2"], quick=False)
    for name in ("vora-fig5", "vora-fig6", "vora-fig7"):
        for row, recipe in engine.recipes_of(ABLATIONS[name], quick=False).items():
            assert recipe == table[row]


def test_figure_4_trains_the_whole_llm() -> None:
    recipes = engine.recipes_of(ABLATIONS["vora-fig4"], quick=False)
    full, lora = recipes["full-2e-4"], recipes["lora-2e-4"]
    assert full.model.lora is None and "llm.*" in full.stages[0].trainable
    assert lora.model.lora is not None and "llm.*" not in lora.stages[0].trainable
    assert full.stages[0].lr == lora.stages[0].lr == 2e-4


def test_scaling_changes_the_samples_alone() -> None:
    recipes = engine.recipes_of(ABLATIONS["vora-scaling"], quick=False)
    for name, recipe in recipes.items():
        method, steps = name.split("-")
        base = vora_scaling.vora() if method == "vora" else vora_scaling.llava()
        stage = base.stages[0].model_copy(update={"steps": int(steps)})
        assert recipe == base.model_copy(update={"stages": (stage, base.stages[1])})


def test_rows_with_other_data_are_refused() -> None:
    ablation = ABLATIONS["vora-fig7"]
    odd = replace(ablation.rows[0], overrides=("stages.0.batch=16",))
    with pytest.raises(RecipeError, match=r"same data .* stages.0.batch: was 16, is 32"):
        engine.recipes_of(replace(ablation, rows=(odd, *ablation.rows[1:])), quick=False)


def test_a_claim_about_no_row_is_refused() -> None:
    ablation = ABLATIONS["vora-fig7"]
    claim = Claim("c", "p", difference("causal-none", "nothing", "loss"), "below", 0.0)
    with pytest.raises(ValueError, match='no row "nothing"'):
        replace(ablation, claims=(claim,))
    with pytest.raises(ValueError, match="two claims"):
        replace(ablation, claims=(ablation.claims[0],) * 2)
    with pytest.raises(ValueError, match="no metric"):
        replace(ablation, columns=("blue",))
    with pytest.raises(ValueError, match="labels"):
        replace(ablation, rows=(Row("causal-none"), *ablation.rows[1:]))


def test_an_unknown_name_gets_the_nearest() -> None:
    with pytest.raises(AblationError, match='did you mean "vora-table2"'):
        find_ablation("vora-table-2")


def test_the_commands_of_the_page_are_of_ablations_that_exist() -> None:
    """``tests/test_docs.py`` leaves them out: each takes an hour."""
    page = (ROOT / "docs" / "ablations.md").read_text()
    commands = [shlex.split(line, comments=True) for line in re.findall("^oculi .*", page, re.M)]
    named = {words[2] for words in commands if words[1] == "ablate" and words[2][0] != "-"}
    assert named == set(ABLATIONS)
    for ablation in ABLATIONS.values():
        assert all(claim.name in page for claim in ablation.claims), ablation.name
