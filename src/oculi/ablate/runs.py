"""One run of an ablation: trained to its end once, then measured, both resumable."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from oculi import durable
from oculi.ablate import metrics
from oculi.ablate.asking import Asking, evaluation, right
from oculi.ablate.metrics import Floats
from oculi.errors import AblationError
from oculi.recipe import Recipe
from oculi.recipe import load as load_recipe
from oculi.testbed import CHECKPOINTS
from oculi.training import checkpoint as ckpt
from oculi.training.folder import first_difference
from oculi.training.loop import NonFiniteError
from oculi.training.run import train

SIDE = "ablate"  # folder in a run for what is measured of it here
QUESTIONS, PICTURES = 1400, 512  # text-only questions; pictures for the cosines
PICTURE, TEXT = (84, 84), 40  # pixels and tokens of the sample whose cost is counted
LARGE = (168, 168)
QUICK_QUESTIONS, QUICK_PICTURES = 14, 8


@dataclass(frozen=True)
class Measured:
    """What one run came to.

    Attributes:
        values: by metric; one that could not be measured is missing.
        answers: for exact match, question by question: right or wrong, or for a change of it what right
            has become of before, -1 to 1.
        curves: what its pre-training logged, step by step.
        seconds: of training, over all its resumes.
        ended: ``finished``, or ``not finite`` for a run that broke off there.
    """

    values: dict[str, float]
    answers: dict[str, tuple[float, ...]]
    curves: dict[str, Floats]
    seconds: float
    ended: str


def testbed() -> str:
    """SHA-256 of the tiny checkpoints' manifest: their names stay when they are built anew."""
    manifest = CHECKPOINTS / "MANIFEST.json"
    return hashlib.sha256(manifest.read_bytes()).hexdigest() if manifest.exists() else ""


def folder_of(recipe: Recipe, runs: Path, name: str) -> Path:
    """Where a run is or will be: ``runs/name``, unless another finished run there has its recipe.

    And the same tiny checkpoints, whose names are in the recipe alone. Ablations that share a folder of
    runs have rows in common under other names, as the baseline.
    """
    own = runs / name
    if own.exists():
        return own
    now = testbed()
    for mark in sorted(runs.glob(f"*/{SIDE}/ended.json")):
        other = mark.parent.parent
        if _read(mark).get("testbed") == now and load_recipe(other / "recipe.yaml") == recipe:
            return other
    return own


def finish(recipe: Recipe, run: Path) -> bool:
    """Train a run to its end unless that is done; returns whether anything was left to do.

    Raises:
        AblationError: the folder holds a run of another recipe, or of other tiny checkpoints.
        Stopped, DiskError, ...: as ``oculi.train`` does; the next call goes on.
    """
    mark = run / SIDE / "ended.json"
    if mark.exists():
        old = load_recipe(run / "recipe.yaml").model_dump(mode="json")
        if changed := first_difference(old, recipe.model_dump(mode="json")):
            raise AblationError(
                f"{run} was trained with another recipe: {changed}. Choose another --out (or --runs)"
            )
        if _read(mark).get("testbed") != testbed():
            raise AblationError(
                f"{run} began from other tiny checkpoints than those that are there now, or does not "
                "say. Choose another --out (or --runs)"
            )
        return False
    ended = "finished"
    try:
        train(recipe, run, resume=(run / "recipe.yaml").exists(), quiet=True)
    except NonFiniteError:  # a collapse is a result
        ended = "not finite"
    _write(mark, {"ended": ended, "testbed": testbed()})
    return True


def measure(
    recipe: Recipe,
    run: Path,
    extras: tuple[str, ...],
    quick: bool,
    tasks: Mapping[str, str] | None = None,
) -> Measured:
    """Collect what a finished run has written, and measure the rest of ``extras`` and ``tasks``."""
    ended = str(_read(run / SIDE / "ended.json")["ended"])
    finite, stage = ended == "finished", next(s for s in recipe.stages if s.answers)
    curves = metrics.logged(run, stage.name)
    losses = curves.get("lm")
    if losses is None:  # not finite at the first step
        losses = np.array([])
    values = metrics.stability(losses, metrics.spikes(run, stage.name), finite)
    values["samples"] = float(stage.steps * stage.batch)
    answers: dict[str, tuple[float, ...]] = {}
    if finite:
        values |= {
            name: metrics.final_mean(curves[key])
            for name, key in (("loss", "lm"), ("distill", "distill"))
            if key in curves
        }
        _scores(recipe, run, values, answers)
        for extra in extras:
            _EXTRAS[extra](Finished(recipe, run, quick, values, answers))
        _tasks(recipe, run, tasks or {}, quick, values, answers)
    kept = {k: v for k, v in values.items() if math.isfinite(v)}
    newest = ckpt.newest(run / "checkpoints")
    seconds = ckpt.load_state(newest).seconds if newest else 0.0
    return Measured(kept, answers, curves, seconds, ended)


@dataclass(frozen=True)
class Finished:
    """A run that ended well, for what measures more; numbers go into ``values`` and ``answers``."""

    recipe: Recipe
    run: Path
    quick: bool
    values: dict[str, float]
    answers: dict[str, tuple[float, ...]]


def _last_stage(recipe: Recipe, run: Path) -> Path:
    return run / "stages" / f"{len(recipe.stages) - 1}-{recipe.stages[-1].name}"


def _scores(
    recipe: Recipe, run: Path, values: dict[str, float], answers: dict[str, tuple[float, ...]]
) -> None:
    """Exact match of the recipe's evaluations after its last stage: the first, and unseen pairs."""
    for spec in recipe.evals:
        name = "pairs" if spec.task.endswith(":pairs") else "score"
        folder = evaluation(run / "evals", recipe.stages[-1].name, spec.task)
        result = _read(folder / "result.json")
        values[name] = result["exact"]["score"]
        if name == "score":
            values |= {f"score:{k}": group["score"] for k, group in result["groups"].items()}
        answers[name] = tuple(right(folder))


def _tasks(
    recipe: Recipe,
    run: Path,
    tasks: Mapping[str, str],
    quick: bool,
    values: dict[str, float],
    answers: dict[str, tuple[float, ...]],
) -> None:
    """Exact match and vision tokens of tasks that the recipe does not evaluate, a file each."""
    asking = Asking(_last_stage(recipe, run), run / "evals", QUICK_QUESTIONS if quick else None)
    for name, task in tasks.items():
        found = _kept(run / SIDE / f"score@{name}.json", partial(asking, task))
        values |= {f"score@{name}": found["score"], f"tokens@{name}": found["tokens"]}
        answers[f"score@{name}"] = tuple(found["correct"])


def _text(of: Finished) -> None:
    def made() -> dict[str, Any]:
        from oculi.ablate.forgetting import before_training, text_ability

        questions = QUICK_QUESTIONS if of.quick else QUESTIONS
        after = text_ability(_last_stage(of.recipe, of.run), questions)
        return {"before": asdict(before_training(of.recipe, questions)), "after": asdict(after)}

    found = _kept(of.run / SIDE / "text.json", made)
    before, after = found["before"], found["after"]
    right = {k: found[k]["correct"] for k in ("before", "after")}
    share = {k: sum(v) / len(v) for k, v in right.items()}
    of.values.update({
        "text_loss": after["loss"], "text_rise": after["loss"] - before["loss"],
        "text": share["after"], "text_change": share["after"] - share["before"],
        "text_before": share["before"], "text_loss_before": before["loss"],
    })  # fmt: skip
    of.answers["text"] = tuple(right["after"])
    of.answers["text_change"] = tuple(
        int(now) - int(was) for now, was in zip(right["after"], right["before"], strict=True)
    )


def _blocks(of: Finished) -> None:
    def made() -> dict[str, float]:
        from oculi.ablate.alignment import block_cosines, distilled

        if distilled(of.recipe) is None:
            return {}
        found = block_cosines(of.run, QUICK_PICTURES if of.quick else PICTURES)
        return {str(block): cosine for block, cosine in found.items()}

    found = _kept(of.run / SIDE / "blocks.json", made)
    of.values.update({f"block.{block}": cosine for block, cosine in found.items()})


def _cost(of: Finished) -> None:
    of.values["tokens"], of.values["macs"] = _served(of.recipe, PICTURE)


def _cost_168(of: Finished) -> None:
    """The same of a picture of four tiles of the testbed's towers."""
    of.values["tokens"], of.values["macs_168"] = _served(of.recipe, LARGE)


def _served(recipe: Recipe, picture: tuple[int, int]) -> tuple[float, float]:
    """Vision tokens of a picture in the LLM, and MMAC to read it and the text, merged."""
    from oculi.plan import plan

    (stage, *_) = plan(recipe, text_tokens=TEXT, image=picture).stages
    # What a merged model computes: no LoRA, no teacher, no head of distillation; answers come after.
    served = {*stage.parameters, "attention"} - {"lora"}
    macs = sum(stage.macs[part].forward for part in served & stage.macs.keys())
    return float(stage.tokens_per_image), macs / 1e6


def _fusion(of: Finished) -> None:
    def made() -> dict[str, Any]:
        from oculi.ablate.fusing import prefill_milliseconds, score_shuffled

        stage, spec = _last_stage(of.recipe, of.run), of.recipe.evals[0]
        found: dict[str, Any] = {"prefill": prefill_milliseconds(stage)}
        if of.recipe.model.fusion is not None:
            out = of.run / SIDE / "shuffled"
            found |= score_shuffled(stage, spec.task, out, spec.limit)
        return found

    found = _kept(of.run / SIDE / "fusion.json", made)
    of.values["prefill"] = found["prefill"]
    if "score" in found:
        of.values["shuffled"] = found["score"]
        of.answers["shuffled"] = tuple(found["correct"])


_EXTRAS = {
    "text": _text, "blocks": _blocks, "cost": _cost, "cost_168": _cost_168, "fusion": _fusion
}  # fmt: skip


def _kept(path: Path, make: Callable[[], Mapping[str, Any]]) -> dict[str, Any]:
    """What a file holds; made and written first where there is none."""
    if not path.exists():
        _write(path, make())
    return _read(path)


def _read(path: Path) -> dict[str, Any]:
    try:
        found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise AblationError(
            f"{path} cannot be read: {error}. Remove its run's folder, and go on with --resume"
        ) from None
    return found


def _write(path: Path, content: Mapping[str, Any]) -> None:
    with durable.disk_errors(f"the folder {path.parent}", ", and go on with --resume"):
        path.parent.mkdir(parents=True, exist_ok=True)
        durable.write_text(path, json.dumps(content))
