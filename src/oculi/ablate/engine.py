"""An ablation from its plan to its report: freeze the claims, run, measure, judge.

OUT/claims.json            rows, seeds, claims and rules: written before the first run, never changed
OUT/runs/ROW-seedN/        an ordinary run each, resumable by itself
OUT/report.md, .json, .svg after every seed, and at the end with the verdicts
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

from oculi import durable
from oculi.ablate.jobs import Job, Say, done
from oculi.ablate.judge import QUICK
from oculi.ablate.metrics import relative_steps, shown_value
from oculi.ablate.report import Report
from oculi.ablate.runs import Measured, testbed
from oculi.ablate.spec import ORDER, Ablation, Row
from oculi.errors import AblationError, RecipeError
from oculi.recipe import Recipe, override, validate
from oculi.training.folder import first_difference, lock, writable

CLAIMS = "claims.json"


def run_ablation(
    ablation: Ablation,
    seeds: int,
    out: Path,
    *,
    runs: Path | None = None,
    quick: bool = False,
    resume: bool = False,
    jobs: int = 1,
    say: Say = print,
) -> Report:
    """Run what is not done yet, and report.

    Args:
        ablation: what to do.
        seeds: number of seeds, from 0; at least the ablation's least.
        out: its folder; must be new, unless ``resume``.
        runs: where the runs are; None: ``out/runs``. Finished ones of the same recipe are taken as they
            are, whatever their rows are called, so that ablations can share them.
        quick: a few steps each, to see that it works: no result.
        resume: go on with what is in ``out``; its claims must be the same.
        jobs: runs at once, each in a process of its own with its CUDA device or share of the cores.
        say: told in lines what is going on; first of all, the claims.

    Raises:
        AblationError: too few seeds, the folder is taken, its claims are others, or a run is of
            another recipe.
        Stopped, DiskError, DataError, ...: as ``oculi.train`` does; ``resume`` goes on.
    """
    check_seeds(ablation, seeds)
    recipes = recipes_of(ablation, quick)
    plan = plan_of(ablation, recipes, seeds, quick)
    check_folder(out, resume)
    with writable(out), lock(out):
        freeze(plan, out)
        for line in announcement(ablation, seeds, quick):
            say(line)
        results: dict[tuple[str, int], Measured] = {}
        report = Report(ablation, seeds, quick, results, recipes)
        work = [
            Job(
                row, seed, _seeded(recipes[row], seed), runs or out / "runs", ablation.extras,
                ablation.tasks, quick,
            )
            for seed in range(seeds)
            for row in recipes
        ]  # fmt: skip
        began, trained = time.monotonic(), 0
        with closing(done(work, jobs, say)) as found:
            for number, result in enumerate(found, 1):
                job, trained = result.job, trained + result.trained
                results[job.row, job.seed] = result.found
                pace = (time.monotonic() - began) / trained if trained else 0.0
                left = pace * (len(work) - number) / 60
                say(f"  {job.name}: {_summary(result.found)}; about {left:.1f} min left")
                if number % len(recipes) == 0:
                    _derive(ablation, results, job.seed)
                    report.write(out / "report.md")
                    if number < len(work):
                        for line in report.table():
                            say(line)
    return report


def check_seeds(ablation: Ablation, seeds: int) -> None:
    """Raises AblationError for fewer seeds than there can be intervals over."""
    if seeds < ablation.least_seeds:
        raise AblationError(
            f"{ablation.name} with --seeds {seeds}: its intervals are over seeds, so it needs "
            f"{ablation.least_seeds} or more"
        )


def recipes_of(ablation: Ablation, quick: bool) -> dict[str, Recipe]:
    """The resolved recipe of every row, with seed 0.

    Raises:
        RecipeError: an override is wrong, or the rows would not see the same data in the same order
            and the ablation does not say that they vary in it.
    """
    made = {row.name: _recipe(ablation, row, quick) for row in ablation.rows}
    first, *others = made
    for name in others:
        a, b = (_order(made[row], ablation.varied) for row in (first, name))
        if changed := first_difference(a, b):
            raise RecipeError(
                f"rows {first} and {name} of {ablation.name} would not see the same data in the same "
                f"order: stages.{changed}"
            )
    return made


def _recipe(ablation: Ablation, row: Row, quick: bool) -> Recipe:
    recipe = override((row.base or ablation.base)(), list(row.overrides))
    return quickened(recipe) if quick else recipe


def _order(recipe: Recipe, varied: Sequence[str]) -> list[dict[str, Any]]:
    """All that decides which samples a step sees, but that in which rows vary by design."""
    keys = set(ORDER.difference(varied))
    return [stage.model_dump(mode="json", include=keys) for stage in recipe.stages]


def quickened(recipe: Recipe) -> Recipe:
    """The same recipe for a look at the machinery: a hundredth of the steps, small batches."""
    data = recipe.model_dump(mode="json")
    for stage in data["stages"]:
        stage |= {
            "steps": max(4, stage["steps"] // 175), "batch": 4, "warmup_steps": 1,
            "checkpoint_every": 1000,
        }  # fmt: skip
    for spec in data["evals"]:
        spec["limit"] = 6
    return validate(data, f"{recipe.name}, quick")


def _seeded(recipe: Recipe, seed: int) -> Recipe:
    return recipe.model_copy(update={"seed": seed})


def plan_of(
    ablation: Ablation, recipes: Mapping[str, Recipe], seeds: int, quick: bool
) -> dict[str, Any]:
    """All that is decided before the first run."""
    return {
        "ablation": ablation.name,
        "source": ablation.source,
        "quick": quick,
        "seeds": list(range(seeds)),
        "claims": [claim.to_json(seeds) for claim in ablation.claims],
        "testbed": testbed(),
        "levels": ablation.levels and dict(ablation.levels.shares),
        "tasks": dict(ablation.tasks) or None,
        "varied": list(ablation.varied) or None,
        "rows": {
            name: recipe.model_dump(mode="json", exclude={"seed"})
            for name, recipe in recipes.items()
        },
    }


def check_folder(out: Path, resume: bool) -> None:
    """Refuse a folder that is not for this; raises AblationError and DiskError."""
    has_claims = (out / CLAIMS).exists()
    if resume and not has_claims:
        raise AblationError(f"{out} is no ablation to resume: it has no {CLAIMS}")
    if not resume and out.exists() and (not out.is_dir() or any(out.iterdir())):
        hint = "add --resume, or choose" if has_claims else "choose"
        raise AblationError(f"{out} exists and is not empty: {hint} another --out")
    with durable.disk_errors(f"the folder {out}"):
        out.mkdir(parents=True, exist_ok=True)


def freeze(plan: dict[str, Any], out: Path) -> None:
    """Write the plan, or compare it with the one that was written before any run.

    Raises:
        AblationError: it is another: what was decided beforehand cannot be changed afterwards.
    """
    path = out / CLAIMS
    plan = json.loads(json.dumps(plan))  # as it will be read again
    if not path.exists():
        durable.write_text(path, json.dumps(plan, indent=1, ensure_ascii=False) + "\n")
        return
    try:
        old = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise AblationError(f"{path} cannot be read: {error}. Choose another --out") from None
    if changed := first_difference(old, plan):
        raise AblationError(
            f"{path} was written before the first run, and differs now: {changed}. Claims, rows and "
            "seeds cannot change any more: resume as it began, or choose another --out"
        )


def announcement(ablation: Ablation, seeds: int, quick: bool) -> list[str]:
    """What is claimed and how it will be decided."""
    head = f"{ablation.name} ({ablation.source}): {ablation.question}"
    lines = [line for claim in ablation.claims for line in claim.lines(seeds)]
    return [head, *([QUICK] if quick else []), *ablation.differences(), *lines]


def _derive(ablation: Ablation, results: dict[tuple[str, int], Measured], seed: int) -> None:
    """Add what compares the rows of one seed."""
    if ablation.levels is None:
        return
    names = [row.name for row in ablation.rows if results[row.name, seed].ended == "finished"]
    if ablation.levels.baseline not in names:
        return
    curves = {name: results[name, seed].curves["lm"] for name in names}
    found = relative_steps(curves, ablation.levels.baseline, ablation.levels.shares)
    for name, values in found.items():
        known = {k: v for k, v in values.items() if v == v}
        run = results[name, seed]
        results[name, seed] = replace(run, values={**run.values, **known})


def _summary(found: Measured) -> str:
    parts = [f"{found.seconds:.0f} s of training"]
    if found.ended != "finished":
        parts.append(found.ended)
    shown: Sequence[str] = [name for name in ("loss", "score") if name in found.values]
    parts += [f"{name} {shown_value(name, found.values[name])}" for name in shown]
    return ", ".join(parts)
