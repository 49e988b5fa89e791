"""The built-in ablations are what the paper's tables say, and can be run."""

import json
import re
import shlex
from dataclasses import replace
from pathlib import Path

import pytest

from oculi.ablate import engine, vora_mixture, vora_scaling
from oculi.ablate.catalogue import ABLATIONS, find_ablation
from oculi.ablate.runs import _EXTRAS, Finished
from oculi.ablate.spec import Ablation, Claim, Row, difference
from oculi.ablate.vora_parts import TABLE_2
from oculi.data.index import sample_length
from oculi.data.source import Mixture, open_source, open_sources
from oculi.errors import AblationError, RecipeError
from oculi.recipe import DistillSpec, Recipe
from oculi.recipes.tiny import vora_tiny
from oculi.testbed import playroom
from oculi.training.build import build_processor, recut

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


def test_the_mixture_is_the_papers_and_the_rows_differ_in_it_alone() -> None:
    recipes = engine.recipes_of(ABLATIONS["vora-mixture"], quick=False)
    alone, mixed, same_steps = (recipes[row].stages[0] for row in vora_mixture.ROWS)
    for stage in (mixed, same_steps):
        assert stage.model_copy(update={"data": alone.data, "steps": alone.steps}) == alone
        rows = open_sources(stage.data)
        assert isinstance(rows, Mixture)
        kinds = [rows.place(place)[0] for place in range(0, len(rows), 997)]
        assert kinds.count(1) / kinds.count(0) == pytest.approx(6.4 / 30.4, rel=0.02)
    pictures = mixed.steps * 30.4 / 36.8
    assert (pictures, same_steps.steps) == (pytest.approx(alone.steps, abs=1), alone.steps)


def test_dialogues_of_the_mixture_fit() -> None:
    stage = engine.recipes_of(ABLATIONS["vora-mixture"], quick=False)["mixed"].stages[0]
    rows, processor = open_source(stage.data[1]), build_processor(vora_tiny().model)
    assert max(sample_length(rows[i], processor) for i in range(200)) <= stage.length


def test_anyres_has_the_cells_that_it_says() -> None:
    found = ABLATIONS["vora-anyres"]
    grid = found.grid
    assert grid is not None
    sizes = {cell.name: tuple(map(int, cell.name.split("x"))) for cell in grid.cells}
    assert len(sizes) == 15 and list(found.tasks) == list(sizes)
    assert {w / h for w, h in sizes.values()} == {1 / 2, 2 / 3, 1, 3 / 2, 2}
    assert {min(size) for size in sizes.values()} == {56, 84, 112}
    # What is claimed: the cells whose objects have as many pixels as in the square of pre-training.
    kept = {cell.name for cell in grid.cells if cell.claimed}
    assert kept == {name for name, size in sizes.items() if min(size) == 84} - {"84x84"}
    for name in sizes:
        a, b = (playroom.item(1, "test", 7, size) for size in (sizes[name], (84, 84)))
        ratio = a.scene.objects[0].radius / b.scene.objects[0].radius
        assert ratio == pytest.approx(min(sizes[name]) / 84)


def test_anyres_pre_trains_on_squares_and_cuts_cells_natively() -> None:
    found = ABLATIONS["vora-anyres"]
    recipes = engine.recipes_of(found, quick=False)
    square, native = recipes["square"], recipes["native"]
    *before, last = native.stages
    assert square.stages == (*before, last.model_copy(update={"images": None}))
    processor = build_processor(square.model)
    sizes = [tuple(map(int, name.split("x"))) for name in found.tasks]
    pre, fine = (recut(processor, native.images_of(n)).image_processor for n in (0, 1))
    assert all(pre.grid(*size) == (6, 6) for size in sizes)
    for width, height in sizes:  # whole patches, none of them scaled
        assert fine.grid(width, height) == (height / 14, width / 14)
    trained = {source.size for source in last.data}
    assert set(sizes) < trained and len(trained) == 25


def test_tokens_are_what_the_rows_say() -> None:
    recipes = engine.recipes_of(ABLATIONS["vora-tokens"], quick=False)
    found: dict[str, dict[str, float]] = {}
    for name, recipe in recipes.items():
        found[name] = {}
        _EXTRAS["cost"](Finished(recipe, Path("nowhere"), False, found[name], {}))
        assert int(name.rsplit("-", 1)[1]) == found[name]["tokens"]
    costs = [found[name]["macs"] for name in ("patches-36", "merged-18", "merged-9")]
    assert costs == sorted(costs, reverse=True)
    assert abs(found["large-patches-9"]["macs"] / costs[-1] - 1) < 0.02


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
    for words in commands:
        given = [word for word in words[3:] if "=" in word]
        if given and words[1] == "ablate":
            engine.recipes_of(ABLATIONS[words[2]].overriding(given), quick=False)
    for ablation in ABLATIONS.values():
        assert all(claim.name in page for claim in ablation.claims), ablation.name


def cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip("|").split(" | ")]


def reported(name: str) -> dict[str, str]:
    """Verdict and effect of every claim in a committed report; empty where there is none."""
    report = ROOT / "benchmarks" / f"{name}.md"
    lines = report.read_text().splitlines() if report.exists() else []
    rows = [cells(line) for line in lines if line.endswith("** |")]
    return {row[0]: f"{row[-1].removesuffix(' |')}: {row[3]}" for row in rows if len(row) == 7}


@pytest.mark.parametrize("name", [name for name in ABLATIONS if name.startswith("vora-")])
def test_the_page_of_claims_says_what_the_reports_say(name: str) -> None:
    """Every claim once, with the verdict and the numbers of the report, if there is one."""
    page = (ROOT / "docs" / "vora-claims.md").read_text().splitlines()
    found = reported(name)
    assert set(found) in (set(), {claim.name for claim in ABLATIONS[name].claims})
    link = f"[{name}](../benchmarks/{name}.md)" if found else f"`{name}`"
    for claim in ABLATIONS[name].claims:
        (row,) = [cells(line) for line in page if f'{link}, "{claim.name}" |' in line]
        assert row[2].removesuffix(" |") == found.get(claim.name, "no report yet"), claim.name


def test_the_page_of_ablations_lists_the_reports() -> None:
    page = (ROOT / "docs" / "ablations.md").read_text()
    for name in ABLATIONS:
        there = (ROOT / "benchmarks" / f"{name}.md").exists()
        assert (f"(../benchmarks/{name}.md)" in page) == there, name
