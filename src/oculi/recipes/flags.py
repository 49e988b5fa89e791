"""The common overrides as flags: ``--start``, ``--llm``, ``--teacher``, ``--vq``, ``--data``, seed."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from oculi.errors import DataError, RecipeError
from oculi.recipe import DistillSpec, EvalSpec, FileSource, Recipe, validate
from oculi.specs.model import TO_BE_GIVEN

SHOWN_ANSWERS = 48


def apply_flags(
    recipe: Recipe,
    *,
    start: str | None = None,
    llm: str | None = None,
    teacher: str | None = None,
    vq: str | None = None,
    data: Sequence[str | Path] | None = None,
    seed: int | None = None,
) -> Recipe:
    """The recipe with the flags that were given.

    ``start`` is a model that sees already, in the place of the recipe's LLM and new vision part.
    ``data`` replaces the data of every stage, and the evaluations by a look at its first questions. A
    file as ``pretrain=captions.jsonl`` is for the stage of that name alone, which then has no others.
    ``teacher`` is the ViT: it replaces the teacher of every distillation and the start of the vision
    part, where that is the same ViT or where nothing is distilled, as in LLaVA. ``vq`` is the encoder
    whose codebook indices are asked for, in every stage that asks.

    Raises:
        DataError: there is no such file or folder, and nothing matches the pattern.
        RecipeError: there is a teacher, but the recipe has no ViT; a VQ encoder, and no stage asks; an
            LLM beside a model that has one; or a model to start from is wanted.
        CheckpointError: there is no such model to start from.
    """
    if start is not None:
        if llm is not None:
            raise RecipeError(
                f"--llm: the model of --start {start} has its LLM; leave one of them out"
            )
        from oculi.training.start import begin_with

        recipe = begin_with(recipe, start)
    elif recipe.model.start == TO_BE_GIVEN:
        raise RecipeError(f"{recipe.name} trains a model that sees already: give it by --start")
    content: dict[str, Any] = recipe.model_dump(mode="json")
    if llm is not None:
        content["model"]["llm"] = llm
    if seed is not None:
        content["seed"] = seed
    if teacher is not None:
        _replace_teacher(content, teacher, recipe)
    if vq is not None:
        _replace_vq(content, vq, recipe.name)
    if data:
        _replace_data(content, [str(given) for given in data])
    return validate(content, recipe.name)


def apply_epochs(recipe: Recipe, given: Sequence[str], overrides: Sequence[str] = ()) -> Recipe:
    """The recipe with as many steps as so many passes over each stage's data take, rounded up.

    Warm-up is then a tenth of a stage's steps at most: a few of them would else never reach its rate.

    Args:
        given: a number for every stage, or ``STAGE=NUMBER`` for one.
        overrides: what else was asked for; the steps of such a stage cannot be set as well.

    Raises:
        RecipeError: there is no such stage, it is no number above 0, or steps are given too.
        DataError: the data cannot be read.
    """
    if not given:
        return recipe
    from oculi.data.source import open_sources

    of_stage = _epochs(recipe, given)
    content: dict[str, Any] = recipe.model_dump(mode="json")
    for number, (stage, settings) in enumerate(zip(recipe.stages, content["stages"], strict=True)):
        if (epochs := of_stage.get(stage.name)) is None:
            continue
        if any(one.startswith(f"stages.{number}.steps=") for one in overrides):
            raise RecipeError(f"stages.{number}.steps and --epochs both set it: give one of them")
        steps = math.ceil(epochs * len(open_sources(stage.data)) / stage.batch)
        settings["steps"] = steps
        settings["warmup_steps"] = min(stage.warmup_steps, steps // 10)
    return validate(content, recipe.name)


def _epochs(recipe: Recipe, given: Sequence[str]) -> dict[str, float]:
    """Passes by stage; what is said of one stage goes before what is said of all."""
    names = [stage.name for stage in recipe.stages]
    of_all, of_one = dict[str, float](), dict[str, float]()
    for text in given:
        name, equals, number = text.rpartition("=")
        if equals and name not in names:
            raise RecipeError(
                f'--epochs {text}: there is no stage "{name}"; the stages are {", ".join(names)}'
            )
        try:
            epochs = float(number)
        except ValueError:
            epochs = math.nan
        if not 0 < epochs < math.inf:
            raise RecipeError(f'--epochs {text}: "{number}" is no number above 0')
        if equals:
            of_one[name] = epochs
        else:
            of_all = dict.fromkeys(names, epochs)
    return of_all | of_one


def _replace_data(content: dict[str, Any], given: Sequence[str]) -> None:
    from oculi.data.kinds import is_data

    names = [stage["name"] for stage in content["stages"]]
    of_stage: dict[str, list[str]] = {name: [] for name in names}
    of_all: list[str] = []
    for text in given:
        name, _, path = text.partition("=")
        if is_data(Path(text)):
            of_all.append(text)
        elif name in of_stage and is_data(Path(path)):
            of_stage[name].append(path)
        else:
            missing = path if name in of_stage else text
            stages = f"; the stages are {', '.join(names)}" if missing == text and path else ""
            raise DataError(f"there is no data file {missing}{stages}")
    for stage in content["stages"]:
        if files := of_stage[stage["name"]] or of_all:
            stage["data"] = [FileSource(path=path).model_dump(mode="json") for path in files]
    # Answers on what was trained on: the report shows at a glance whether anything was learnt.
    shown = dict.fromkeys([*of_all, *(path for files in of_stage.values() for path in files)])
    evals = [EvalSpec(task=path, limit=SHOWN_ANSWERS) for path in shown]
    content["evals"] = [spec.model_dump(mode="json") for spec in evals]


def _replace_teacher(content: dict[str, Any], teacher: str, recipe: Recipe) -> None:
    kind = DistillSpec.model_fields["kind"].default
    old = set()
    vision, begun = content["model"]["vision"], recipe.model.start is not None
    for stage in content["stages"]:
        for objective in stage["objectives"]:
            if objective["kind"] == kind:
                old.add(objective["teacher"])
                objective["teacher"] = teacher
    if not old and (vision["init_from"] is None or begun):
        raise RecipeError(
            f"--teacher: {recipe.name} distils from no ViT, and its vision part starts from none"
        )
    if not begun and (not old or vision["init_from"] in old):
        vision["init_from"] = teacher


def _replace_vq(content: dict[str, Any], vq: str, name: str) -> None:
    asked = [stage["cognition"] for stage in content["stages"] if stage["cognition"]]
    codes = [cognition["codes"] for cognition in asked if cognition["codes"]]
    if not codes:
        raise RecipeError(
            f"--vq: {name} asks for no codebook indices: set stages.N.cognition.codes in place of it"
        )
    for settings in codes:
        settings["vq"] = vq
