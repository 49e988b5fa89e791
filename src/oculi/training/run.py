"""A recipe from its first step to its last folder: stages, merging between them, evaluation, report."""

from __future__ import annotations

import fcntl
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor

from oculi.data.loader import Steps
from oculi.data.order import stage_seed
from oculi.data.source import open_sources
from oculi.errors import CheckpointError, RecipeError
from oculi.eval.evaluate import evaluate
from oculi.eval.report import write_report
from oculi.eval.tasks import open_task
from oculi.export.hf import export
from oculi.export.load import load_exported
from oculi.export.merge import fold
from oculi.hub import resolve
from oculi.model import OculiForConditionalGeneration, OculiProcessor
from oculi.model.lora import has_lora
from oculi.objectives import build_objectives
from oculi.recipe import Recipe, Stage
from oculi.recipe import load as load_recipe
from oculi.training import checkpoint as ckpt
from oculi.training.build import DTYPES, add_lora, build_model, build_processor, cast
from oculi.training.log import RunLog
from oculi.training.loop import run_stage
from oculi.training.module import TrainModule, canonical_parameters, freeze, learning_rates
from oculi.training.optim import make_optimizer
from oculi.training.preflight import check_stages

LONG = 1000  # samples whose measuring takes long enough to say so
# What a run that failed before its first step has left; it may be started again in place.
LEFT_BY_FAILURE = ("recipe.yaml", "metrics.jsonl", "report.html", "index", "tensorboard")


def train(recipe: Recipe, out: Path, resume: bool = False, quiet: bool = False) -> Path:
    """Run a recipe.

    Args:
        recipe: what to do.
        out: the run's folder; must be new, unless ``resume``.
        resume: go on from the newest checkpoint in ``out``; the recipe must be the one it began with.
        quiet: no progress on the terminal.

    Returns:
        ``out``, which then holds ``recipe.yaml``, ``metrics.jsonl``, ``checkpoints/``, ``stages/``,
        ``evals/`` and ``report.html``.

    Raises:
        RecipeError: the folder is taken, or the recipe differs on a resume.
        DataError, CheckpointError, NonFiniteError: see the parts.
    """
    _check_folder(out, resume)
    with _lock(out):
        _keep_recipe(recipe, out, resume)
        run = Run(recipe, out, quiet)
        try:
            run.start(ckpt.newest(out / "checkpoints") if resume else None)
            for number in range(run.stage, len(recipe.stages)):
                run.run_stage(number)
        finally:
            run.log.close()
            write_report(out)
    return out


class Run:
    """The state that passes from stage to stage.

    Attributes:
        model, processor: of the current stage.
        base: folder or id that checkpoints are changes to.
        carried: tensors that differ from the base, by canonical name.
    """

    model: OculiForConditionalGeneration
    processor: OculiProcessor

    def __init__(self, recipe: Recipe, out: Path, quiet: bool) -> None:
        self.recipe, self.out = recipe, out
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.log = RunLog(out, quiet)
        self.base = ""
        self.base_tensors: dict[str, str] = {}
        self.carried: dict[str, Tensor] = {}
        self.stage = self.step = 0
        self.optimizer_from: Path | None = None
        self._seconds, self._began = 0.0, time.monotonic()

    def start(self, checkpoint: Path | None) -> None:
        """Build the model: new, or as a checkpoint left it. Then look at all that will be done."""
        if checkpoint is None:
            self._new_model()
        else:
            self._continue(checkpoint)
        # A step that was done after the last checkpoint is done, and logged, again.
        done = [stage.name for stage in self.recipe.stages[: self.stage]]
        here = self.recipe.stages[self.stage].name
        self.log.rewind(
            lambda entry: (
                entry["stage"] in done or (entry["stage"] == here and entry["step"] <= self.step)
            )
        )
        check_stages(
            self.recipe, self.stage, self.model, self.processor, self.out / "index", self._measuring
        )

    def _measuring(self, done: int, total: int) -> None:
        if total >= LONG:
            self.log.say(f"measuring samples: {done} of {total}")

    def _continue(self, checkpoint: Path) -> None:
        state, self.carried = ckpt.load(checkpoint)
        self.stage, self.step, self._seconds = state.stage, state.step, state.seconds
        self.optimizer_from = checkpoint
        if folder := ckpt.stage_folder(self.out, state.base):
            self._from_folder(folder)
        else:
            self._new_model(lora=state.lora)
        ckpt.check_base(self.base_tensors, state.base_tensors, self.base)
        self.log.say(f"resuming at step {self.step} of stage {self.recipe.stages[self.stage].name}")

    def run_stage(self, number: int) -> None:
        """Train one stage, then merge, export and evaluate as it says."""
        stage = self.recipe.stages[number]
        self.stage = number
        torch.manual_seed(stage_seed(self.recipe.seed, number))  # of new heads
        module = TrainModule(self.model, build_objectives(stage.objectives, self.model))
        names = list(canonical_parameters(module))
        where = f"stages.{number}.trainable"
        rates = learning_rates(names, stage.trainable, stage.lr, where)
        parameters = freeze(module, rates)
        self._restore(module)
        module.to(self.device)
        for term in module.terms():
            term.place(self.device)
        optimizer = make_optimizer(parameters, rates, stage)
        if self.optimizer_from is not None:
            optimizer.load_state_dict(ckpt.load_optimizer(self.optimizer_from))
            self.optimizer_from = None
        (self.out / f"trainable-{number}-{stage.name}.txt").write_text("\n".join(rates) + "\n")
        self.log.say(_summary(number, stage, module, parameters))

        def checkpoint(step: int) -> None:
            self.step = step
            tensors = canonical_parameters(module)
            self.carried = {
                name: tensors[name] for name in {**self.carried, **rates} if name in tensors
            }
            ckpt.save(self.out / "checkpoints", self._state(), self.carried, optimizer.state_dict())
            write_report(self.out)

        if self.step < stage.steps:
            run_stage(
                module, stage, self._steps(stage, number), optimizer, list(parameters.values()),
                self.device, self.log, start=self.step, steps_before=self._steps_before(number),
                on_checkpoint=checkpoint,
            )  # fmt: skip
        self._finish_stage(number, stage)
        self.step = 0

    def _finish_stage(self, number: int, stage: Stage) -> None:
        if stage.merge_lora:
            difference = fold(self.model, self.recipe)
            self.log.say(
                f"merged LoRA into the LLM; the largest change of a logit is {difference:.1e}"
            )
        folder, exported = self._folder(number), not has_lora(self.model)
        if exported:
            cast(self.model, DTYPES[self.recipe.model.dtype])
            if not folder.exists():
                name = f"{self.recipe.name}, after {stage.name}"
                export(self.model, self.processor, folder, name, self.recipe.summary)
            self.log.say(f"exported {folder}")
        self._evaluate(stage)
        if exported:
            self._from_folder(folder)  # save, rebuild: the next stage starts as a new process would
            self.carried = {}

    def _evaluate(self, stage: Stage) -> None:
        for spec in self.recipe.evals:
            task = open_task(spec.task)
            for blind in (False, True) if spec.blind else (False,):
                name = f"{stage.name}-{task.name.replace(':', '-')}{'-blind' if blind else ''}"
                result = evaluate(
                    self.model, self.processor, task, self.out / "evals" / name, blind=blind,
                    limit=spec.limit, labels={"stage": stage.name, "checkpoint": str(self.out)},
                )  # fmt: skip
                score = result["exact"]
                self.log.say(
                    f"{task.name} after {stage.name}{' (blind)' if blind else ''}: "
                    f"{score['score']:.1%} exact, 95 % interval {score['low']:.1%} to "
                    f"{score['high']:.1%}"
                )

    def _new_model(self, lora: bool = True) -> None:
        spec = self.recipe.model
        self.processor = build_processor(spec)
        self.model = build_model(spec, self.processor, self.recipe.seed)
        self.base = spec.llm if spec.llm.startswith("testbed:") else resolve(spec.llm)
        self.base_tensors = ckpt.base_hashes(self.model)
        if spec.lora is not None and lora:
            add_lora(self.model, spec, self.recipe.seed)

    def _from_folder(self, folder: Path) -> None:
        self.model, self.processor = load_exported(folder)
        self.model.llm.set_attn_implementation(self.recipe.model.attention)
        self.base = str(folder.relative_to(self.out))
        self.base_tensors = ckpt.base_hashes(self.model)

    def _restore(self, module: TrainModule) -> None:
        """Tensors of a checkpoint or of the stage before; heads that this stage lacks are dropped."""
        parameters = canonical_parameters(module)
        wanted = {
            k: v for k, v in self.carried.items() if k in parameters or "objectives." not in k
        }
        ckpt.restore(parameters, wanted, self.out)

    def _steps(self, stage: Stage, number: int) -> Steps:
        return Steps(
            open_sources(stage.data),
            self.processor,
            seed=stage_seed(self.recipe.seed, number),
            steps=stage.steps,
            batch=stage.batch,
            pack_length=stage.pack_length or stage.length,
            micro_rows=stage.micro_rows,
            single_turns=stage.single_turns,
            plain_turns=stage.plain_turns,
            crop=stage.crop,
        )

    def _state(self) -> ckpt.State:
        return ckpt.State(
            stage=self.stage,
            step=self.step,
            total_steps=self._steps_before(self.stage) + self.step,
            lora=has_lora(self.model),
            base=self.base,
            base_tensors=self.base_tensors,
            seconds=self._seconds + time.monotonic() - self._began,
        )

    def _steps_before(self, number: int) -> int:
        return sum(stage.steps for stage in self.recipe.stages[:number])

    def _folder(self, number: int) -> Path:
        return self.out / "stages" / f"{number}-{self.recipe.stages[number].name}"


def _summary(
    number: int, stage: Stage, module: TrainModule, parameters: dict[str, torch.nn.Parameter]
) -> str:
    trained = sum(p.numel() for p in parameters.values())
    total = sum(p.numel() for p in module.parameters())
    return (
        f"stage {number}, {stage.name}: {stage.steps} steps of {stage.batch} samples; trains "
        f"{trained / 1e6:.2f}M of {total / 1e6:.2f}M parameters (objectives' included)"
    )


def _check_folder(out: Path, resume: bool) -> None:
    """Refuse a folder that is not for this run, before anything is written into it."""
    if out.exists() and not out.is_dir():
        raise RecipeError(f"{out} is a file: choose another --out")
    if resume:
        if not (out / "recipe.yaml").exists():
            raise CheckpointError(f"{out} is no run to resume: it has no recipe.yaml")
        return
    found = {path.name for path in out.iterdir()} - {".lock"} if out.exists() else set()
    metrics = out / "metrics.jsonl"
    stepped = metrics.exists() and metrics.stat().st_size > 0
    if found and ("recipe.yaml" not in found or stepped or not found.issubset(LEFT_BY_FAILURE)):
        raise RecipeError(f"{out} exists and is not empty: add --resume, or choose another --out")
    out.mkdir(parents=True, exist_ok=True)


def _keep_recipe(recipe: Recipe, out: Path, resume: bool) -> None:
    """Write the recipe, or compare it with that of the run to resume."""
    saved = out / "recipe.yaml"
    if not resume:
        saved.write_text(recipe.to_yaml(), encoding="utf-8")
        return
    old, new = load_recipe(saved).model_dump(mode="json"), recipe.model_dump(mode="json")
    if difference := first_difference(old, new):
        raise RecipeError(
            f"{out} began with another recipe: {difference}. Resume with the old value"
        )


def first_difference(old: object, new: object, where: str = "") -> str:
    """``key: was A, is B`` for the first place in which two recipes differ, or an empty string."""
    if isinstance(old, dict) and isinstance(new, dict):
        pairs = [(k, old.get(k), new.get(k)) for k in {**old, **new}]
    elif isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        pairs = [(str(i), a, b) for i, (a, b) in enumerate(zip(old, new, strict=True))]
    else:
        return "" if old == new else f"{where}: was {old}, is {new}"
    for key, a, b in pairs:
        if found := first_difference(a, b, f"{where}.{key}" if where else str(key)):
            return found
    return ""


@contextmanager
def _lock(out: Path) -> Iterator[None]:
    """Two trainers must not write one run."""
    with (out / ".lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise RecipeError(f"{out} is being trained by another process") from None
        yield
