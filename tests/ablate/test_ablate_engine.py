"""Plans are frozen, runs are done once, a kill costs one run at most; training is stood in for."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from helpers import Tiny, tiny_recipe
from oculi.ablate import engine, runs
from oculi.ablate.spec import Ablation, Claim, Curves, Levels, Lines, Row, difference
from oculi.errors import AblationError, RecipeError
from oculi.recipe import Recipe, load
from oculi.training.loop import NonFiniteError


class Killed(BaseException):
    """As if the process were gone."""


class World:
    """Stands in for training: writes what a run would, and may die."""

    def __init__(self) -> None:
        self.trained: list[tuple[str, bool]] = []
        self.die_at = self.not_finite_at = ""
        self.loss: Callable[[str, int], float] = lambda row, seed: 1.0
        self.said: list[str] = []

    def train(self, recipe: Recipe, run: Path, resume: bool, quiet: bool) -> None:
        self.trained.append((run.name, resume))
        run.mkdir(parents=True, exist_ok=True)
        (run / "recipe.yaml").write_text(recipe.to_yaml())
        if run.name == self.die_at:
            self.die_at = ""
            raise Killed
        row, seed = run.name.rsplit("-seed", 1)
        level = self.loss(row, int(seed))
        lines = [
            {"stage": "pretrain", "step": n, "lm": level + 1 / n, "distill": 0.5}
            for n in range(1, 101)
        ]
        (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        if run.name == self.not_finite_at:
            raise NonFiniteError("no", float("nan"), 1.0, [])

    def ablate(self, ablation: Ablation, out: Path, seeds: int = 2, **options: Any) -> Any:
        self.said = []
        return engine.run_ablation(ablation, seeds, out, say=self.said.append, **options)


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> World:
    made = World()
    monkeypatch.setattr(runs, "train", made.train)
    return made


@pytest.fixture
def ablation(tiny: Tiny) -> Ablation:
    rows = (
        Row("plain", (), ("no",), {"loss": "1.5"}),
        Row("better", ("stages.0.lr=1e-3",), ("yes",), {"loss": "1.1"}),
    )
    return Ablation(
        name="made-up",
        source="no paper, table 1",
        question="Is it better?",
        base=lambda: tiny_recipe(tiny),
        rows=rows,
        labels=("new",),
        columns=("loss", "steps@late"),
        claims=(Claim("better", "-0.4", difference("better", "plain", "loss"), "below", 0.1),),
        levels=Levels("plain", {"late": 0.75}),
        notes=("It is made up.",),
    )  # fmt: skip


NAMES = ["plain-seed0", "better-seed0", "plain-seed1", "better-seed1"]


def test_seed_by_seed_and_the_claims_first(
    world: World, ablation: Ablation, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    before: list[bool] = []
    real = world.train

    def watched(*args: Any, **named: Any) -> None:
        claims = json.loads((out / "claims.json").read_text())["claims"]
        before.append(claims[0]["name"] == "better" and any("rule:" in line for line in world.said))
        real(*args, **named)

    monkeypatch.setattr(runs, "train", watched)
    world.loss = lambda row, seed: 0.5 + seed + 0.5 * (row == "plain") + 0.001 * seed
    report = world.ablate(ablation, out)
    assert world.trained == [(name, False) for name in NAMES]
    assert before == [True] * 4
    assert load(out / "runs" / "better-seed1" / "recipe.yaml").seed == 1
    # After the first seed there is a table, and no verdict.
    (first, *_) = [n for n, line in enumerate(world.said) if line.startswith("| plain | no | 1.01")]
    assert first < world.said.index("run 3 of 4: plain-seed1")
    assert [one.verdict for one in report.judged()] == ["confirmed"]


def test_the_report_has_table_verdict_figures_and_numbers(
    world: World, ablation: Ablation, tmp_path: Path
) -> None:
    world.loss = lambda row, seed: 0.5 + seed + 0.5 * (row == "plain")
    points = ((0.0, "plain", "loss"), (1.0, "better", "loss"))
    figures = (
        Curves("loss", "lm", "by step"),
        Lines("end", "by row", "row", "loss", {"all": points}),
    )
    report = world.ablate(replace(ablation, figures=figures), tmp_path / "out")
    report.write(tmp_path / "benchmarks.md")
    for page in (tmp_path / "out" / "report.md", tmp_path / "benchmarks.md"):
        text = page.read_text()
        assert "`oculi ablate made-up --seeds 2`" in text and str(tmp_path) not in text
        assert "| row | new | LM loss | steps late (%) | paper: loss |" in text
        assert "**confirmed**" in text and "-0.500 [-0.500, -0.500]" in text
        for name in ("loss", "end"):
            svg = page.with_name(f"{page.stem}-{name}.svg")
            assert (f"({svg.name})" in text and "better" in svg.read_text()) or name == "end"
        numbers = json.loads(page.with_suffix(".json").read_text())
        assert numbers["claims"][0]["verdict"] == "confirmed"
        assert [run["row"] for run in numbers["runs"]] == ["plain", "better"] * 2


def test_quick_is_marked_everywhere(world: World, ablation: Ablation, tmp_path: Path) -> None:
    world.loss = lambda row, seed: 0.5 + 0.5 * (row == "plain")
    report = world.ablate(ablation, tmp_path / "out", quick=True)
    text = (tmp_path / "out" / "report.md").read_text()
    assert text.count("quick: not a result") == 2 and "confirmed**" not in text
    assert report.lines()[0] == "quick: not a result" and "quick: not a result" in world.said
    assert report.to_json()["claims"][0]["verdict"] == "quick: not a result"


def test_killed_and_resumed(world: World, ablation: Ablation, tmp_path: Path) -> None:
    world.die_at = "plain-seed1"
    with pytest.raises(Killed):
        world.ablate(ablation, tmp_path / "out")
    assert (tmp_path / "out" / "report.md").read_text().count("1 of 2 seeds so far") == 1
    world.trained = []
    report = world.ablate(ablation, tmp_path / "out", resume=True)
    # What was finished is not done again; what was begun goes on.
    assert world.trained == [("plain-seed1", True), ("better-seed1", False)]
    assert report.complete
    world.trained = []
    world.ablate(ablation, tmp_path / "out", resume=True)
    assert world.trained == []


def test_a_collapse_is_a_result_and_not_repeated(
    world: World, ablation: Ablation, tmp_path: Path
) -> None:
    world.not_finite_at = "better-seed0"
    report = world.ablate(ablation, tmp_path / "out")
    assert report.results["better", 0].values["collapsed"] == 1
    assert "loss" not in report.results["better", 0].values
    assert "(1 of 2)" in "\n".join(report.table())
    (judged,) = report.judged()
    assert (judged.verdict, judged.why) == (
        "not decidable", "better-seed0 has no loss (not finite)"
    )  # fmt: skip
    world.ablate(ablation, tmp_path / "out", resume=True)
    assert len(world.trained) == 4


def changed_claim(ablation: Ablation) -> Ablation:
    return replace(ablation, claims=(replace(ablation.claims[0], threshold=0.01),))


def changed_row(ablation: Ablation) -> Ablation:
    row = replace(ablation.rows[1], overrides=("stages.0.lr=2e-3",))
    return replace(ablation, rows=(ablation.rows[0], row))


@pytest.mark.parametrize(
    ("change", "seeds", "said"),
    [
        (changed_claim, 2, r"claims.0.threshold: was 0.1, is 0.01"),
        (changed_row, 2, r"rows.better.stages.0.lr: was 0.001, is 0.002"),
        (lambda ablation: ablation, 3, r"seeds: was \[0, 1\], is \[0, 1, 2\]"),
    ],
    ids=["claim", "row", "seeds"],
)
def test_what_was_decided_cannot_be_changed(
    world: World, ablation: Ablation, tmp_path: Path, change: Any, seeds: int, said: str
) -> None:
    world.ablate(ablation, tmp_path / "out")
    frozen = (tmp_path / "out" / "claims.json").read_bytes()
    with pytest.raises(AblationError, match=said):
        world.ablate(change(ablation), tmp_path / "out", seeds=seeds, resume=True)
    assert (tmp_path / "out" / "claims.json").read_bytes() == frozen


def test_overrides_hold_in_every_row_and_are_in_the_report(
    world: World, ablation: Ablation, tmp_path: Path
) -> None:
    given = ("stages.0.precision=float32", "stages.0.betas=[0.9, 0.95]")
    report = world.ablate(ablation.overriding(given), tmp_path / "out")
    for name in NAMES:
        stage = load(tmp_path / "out" / "runs" / name / "recipe.yaml").stages[0]
        assert (stage.precision, stage.betas) == ("float32", (0.9, 0.95))
        assert (stage.lr == 1e-3) == name.startswith("better")
    command = (
        "oculi ablate made-up stages.0.precision=float32 'stages.0.betas=[0.9, 0.95]' --seeds 2"
    )
    assert f"`{command}`" in report.markdown() and report.to_json()["command"] == command
    # What was begun with them does not go on without.
    with pytest.raises(AblationError, match=r"rows.plain.stages.0.betas.1: was 0.95, is 0.999"):
        world.ablate(ablation, tmp_path / "out", resume=True)


@pytest.mark.parametrize(
    ("own", "given"),
    [
        ("stages.0.lr=1e-3", "stages.0.lr=1e-4"),
        ("model.images.size=448", "model.images={kind: fixed}"),
        ("model.vision=null", "model.vision.patch_size=8"),
    ],
)
def test_what_rows_differ_in_cannot_be_overridden(ablation: Ablation, own: str, given: str) -> None:
    ablation = replace(
        ablation, rows=(ablation.rows[0], replace(ablation.rows[1], overrides=(own,)))
    )
    with pytest.raises(
        RecipeError, match=r"row better of made-up sets .* cannot be the same in every"
    ):
        ablation.overriding(("seed=3", given))
    # A key that only begins with the same letters is another.
    assert ablation.overriding((f"{own.partition('=')[0]}s=1",)).rows[1].overrides[-1] == own


def other_data(ablation: Ablation, **changes: Any) -> Ablation:
    row = replace(
        ablation.rows[1],
        overrides=("stages.1.data=[{kind: playroom, level: 1, samples: 9}]", "stages.0.lr=1e-3"),
    )
    return replace(ablation, rows=(ablation.rows[0], row), **changes)


def test_rows_may_differ_in_data_if_the_ablation_says_so(
    world: World, ablation: Ablation, tmp_path: Path
) -> None:
    with pytest.raises(RecipeError, match=r"same data in the same order: stages.1.data"):
        world.ablate(other_data(ablation), tmp_path / "out")
    world.loss = lambda row, seed: 0.5 + 0.5 * (row == "plain")
    varied = other_data(ablation, varied=("data",))
    world.ablate(varied, tmp_path / "out")
    assert json.loads((tmp_path / "out" / "claims.json").read_text())["varied"] == ["data"]
    said = "Rows differ in data by design"
    assert any(line.startswith(said) for line in world.said[:3])
    assert said in (tmp_path / "out" / "report.md").read_text()
    # All else that decides the samples is still checked.
    longer = replace(varied.rows[1], overrides=(*varied.rows[1].overrides, "stages.0.batch=3"))
    with pytest.raises(RecipeError, match=r"stages.0.batch: was 4, is 3"):
        engine.recipes_of(replace(varied, rows=(varied.rows[0], longer)), quick=False)
    with pytest.raises(ValueError, match="cannot vary in colour"):
        replace(ablation, varied=("data", "colour"))


def test_one_seed_needs_an_ablation_that_can_do_with_it(
    world: World, ablation: Ablation, tmp_path: Path
) -> None:
    with pytest.raises(AblationError, match=r"made-up with --seeds 1: .* needs 2 or more"):
        world.ablate(ablation, tmp_path / "out", seeds=1)
    assert not (tmp_path / "out").exists()
    report = world.ablate(replace(ablation, least_seeds=1), tmp_path / "out", seeds=1)
    assert [one.verdict for one in report.judged()] == ["not decidable"]


def test_what_is_frozen_is_as_before_where_nothing_new_is_used(ablation: Ablation) -> None:
    """Or an ablation that was begun before could not be resumed."""
    plan = engine.plan_of(ablation, engine.recipes_of(ablation, False), 2, False)
    assert plan["tasks"] is None and plan["varied"] is None


def test_folders_that_are_not_for_it(world: World, ablation: Ablation, tmp_path: Path) -> None:
    with pytest.raises(AblationError, match="no ablation to resume"):
        world.ablate(ablation, tmp_path / "new", resume=True)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.tex").write_text("")
    with pytest.raises(AblationError, match=r"not empty: choose another --out"):
        world.ablate(ablation, tmp_path / "other")
    world.ablate(ablation, tmp_path / "out")
    with pytest.raises(AblationError, match=r"not empty: add --resume, or choose"):
        world.ablate(ablation, tmp_path / "out")


def test_runs_are_shared_if_their_recipes_are_the_same(
    world: World, ablation: Ablation, tmp_path: Path
) -> None:
    world.ablate(ablation, tmp_path / "one")
    taken = tmp_path / "one" / "runs"
    report = world.ablate(ablation, tmp_path / "two", runs=taken)
    assert len(world.trained) == 4 and report.complete
    with pytest.raises(AblationError, match=r"better-seed0 was trained with .*lr: was 0.001, is"):
        world.ablate(changed_row(ablation), tmp_path / "three", runs=taken)


def test_a_run_is_shared_under_another_name(
    world: World, ablation: Ablation, tmp_path: Path
) -> None:
    world.ablate(ablation, tmp_path / "one")
    taken = tmp_path / "one" / "runs"
    # The baseline by another name, and a row that was not there: of two rows one is new.
    rows = (
        Row("base", (), ("no",), {}), Row("best", ("stages.0.lr=5e-4",), ("yes",), {}),
    )  # fmt: skip
    claims = (Claim("best", "", difference("best", "base", "loss"), "below", 0.1),)
    other = replace(ablation, rows=rows, claims=claims, levels=None, columns=("loss",))
    world.trained.clear()
    world.loss = lambda row, seed: 0.25
    report = world.ablate(other, tmp_path / "two", runs=taken)
    assert world.trained == [("best-seed0", False), ("best-seed1", False)]
    assert "run 1 of 4: base-seed0, which is plain-seed0" in world.said
    (judged,) = report.judged()
    assert judged.interval is not None and judged.interval.effect == pytest.approx(-0.75)


@pytest.mark.parametrize(
    "kept", ['{"ended": "finished", "testbed": "of old"}', '{"ended": "finished"}']
)
def test_runs_of_other_checkpoints_are_not_shared(
    kept: str, world: World, ablation: Ablation, tmp_path: Path
) -> None:
    """The tiny checkpoints keep their names when they are built anew; a recipe has only these."""
    world.ablate(ablation, tmp_path / "one")
    taken = tmp_path / "one" / "runs"
    for mark in taken.glob("*/ablate/ended.json"):
        mark.write_text(kept)
    with pytest.raises(
        AblationError, match=r"plain-seed0 .* other tiny checkpoints.* another --out"
    ):
        world.ablate(ablation, tmp_path / "two", runs=taken)
    rows = tuple(replace(row, name=f"new-{row.name}") for row in ablation.rows)
    claims = (Claim("better", "", difference(rows[1].name, rows[0].name, "loss"), "below", 0.1),)
    other = replace(ablation, rows=rows, claims=claims, levels=None, columns=("loss",))
    world.trained.clear()
    world.ablate(other, tmp_path / "three", runs=taken)
    assert world.trained == [(f"new-{name}", False) for name in NAMES]


def test_levels_compare_the_runs_of_one_seed(
    world: World, ablation: Ablation, tmp_path: Path
) -> None:
    """Row better is a shade below the other all along, more in the second seed."""
    world.loss = lambda row, seed: 1.0 - 0.01 * (1 + seed) * (row == "better")
    results = world.ablate(ablation, tmp_path / "out").results
    found = [results["better", seed].values["steps@late"] for seed in (0, 1)]
    assert results["plain", 1].values["steps@late"] == 1.0
    assert 0.3 < found[1] < found[0] < 1
    assert np.isfinite(found).all()
