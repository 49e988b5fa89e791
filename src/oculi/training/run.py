"""A recipe from its first step to its last folder: stages, merging between them, what each leaves."""

from __future__ import annotations

import time
from contextlib import nullcontext
from pathlib import Path

import torch
from torch import Tensor

from oculi import durable
from oculi.cognition.turns import cognition_of
from oculi.data.loader import Steps
from oculi.data.order import stage_seed
from oculi.data.source import open_sources
from oculi.errors import CheckpointError
from oculi.export.exported import load_exported
from oculi.export.hf import export
from oculi.export.merge import fold
from oculi.model import OculiForConditionalGeneration, OculiProcessor
from oculi.model.lora import has_lora
from oculi.objectives import build_objectives
from oculi.recipe import Recipe, Stage
from oculi.training import checkpoint as ckpt
from oculi.training.build import (
    DTYPES,
    add_lora,
    base_of,
    build_model,
    build_processor,
    cast,
    recut,
    set_attention,
)
from oculi.training.exhibits import Exhibits
from oculi.training.folder import check_folder, keep_recipe, lock, writable
from oculi.training.log import RunLog, SilentLog
from oculi.training.loop import run_stage
from oculi.training.module import TrainModule, canonical_parameters, freeze, learning_rates
from oculi.training.monitor import Monitor
from oculi.training.optim import make_optimizer
from oculi.training.parallel import part_of, split, whole_on_cpu
from oculi.training.precision import advice, compute_in
from oculi.training.preflight import check_device, check_stages
from oculi.training.ranks import ALONE, ElsewhereError, Ranks, ranks_of_launcher
from oculi.training.results import Reports, score_stage
from oculi.training.saver import Saver
from oculi.training.signals import Interrupt, Stopped, Stopper

LONG = 1000  # samples whose measuring takes long enough to say so


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
        Stopped: a signal asked for it; ``resume`` goes on.
        DiskError: the folder cannot be written; what was saved is intact.
        NoUsableCheckpointError: there are checkpoints, and all are damaged.
        DataError, CheckpointError, LoaderError, NonFiniteError: see the parts.
    """
    ranks = ALONE
    with Stopper() as stopper:
        try:
            with ranks_of_launcher() as ranks, writable(out):
                _train(recipe, out, resume, quiet, stopper, ranks)
        except Interrupt:
            last = ckpt.newest(out / "checkpoints")
            where = f"go on from {last} with --resume" if last else "nothing was saved yet"
            stopped = Stopped(f"stopped by {stopper.name}: {where}", stopper.number or 0)
            if ranks.first:
                raise stopped from None
            raise ElsewhereError(str(stopped), stopped.exit_code) from None
    return out


def _train(
    recipe: Recipe, out: Path, resume: bool, quiet: bool, stopper: Stopper, ranks: Ranks
) -> None:
    part_of(recipe.shard, ranks.count)
    check_device(recipe, ranks.device)
    ranks.first_does(lambda: check_folder(out, resume))
    with lock(out) if ranks.first else nullcontext():
        ranks.first_does(lambda: keep_recipe(recipe, out, resume))
        run = Run(recipe, out, quiet, stopper, ranks)
        try:
            run.start(resume)
            for number in range(run.stage, len(recipe.stages)):
                run.run_stage(number)
        except Interrupt:
            run.saver.wait()
            raise
        finally:
            with stopper.deferred():
                run.close()


class Run:
    """The state that passes from stage to stage.

    Attributes:
        model, processor: of the current stage.
        base: folder or id that checkpoints are changes to.
        carried: tensors that differ from the base, by canonical name.
        monitor: of the current stage.
    """

    model: OculiForConditionalGeneration
    processor: OculiProcessor

    def __init__(
        self, recipe: Recipe, out: Path, quiet: bool = False, stopper: Stopper | None = None,
        ranks: Ranks = ALONE,
    ) -> None:  # fmt: skip
        self.recipe, self.out, self.stopper = recipe, out, stopper or Stopper()
        self.ranks, self.device = ranks, ranks.device
        self.log = RunLog(out, quiet) if ranks.first else SilentLog(out)
        self.saver = Saver(out / "checkpoints", recipe.keep_last, recipe.keep_every, ranks)
        self.monitor = Monitor()
        self.base = ""
        self.base_tensors: dict[str, str] = {}
        self.carried: dict[str, Tensor] = {}
        self.stage = self.step = 0
        self.optimizer_from: Path | None = None
        self._seconds, self._began = 0.0, time.monotonic()
        self.reports = Reports(out, self.log.warn)

    def start(self, resume: bool) -> None:
        """Build the model: new, or as a checkpoint left it. Then look at all that will be done."""
        checkpoint, broken = self.ranks.first_does(lambda: self._newest(resume))
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
        for line in broken:
            self.log.event("damaged checkpoint", here, self.step, what=line)
        # What rank 0 has measured, the others find in the index.
        self.ranks.first_does(self._check_stages)
        if not self.ranks.first:
            self._check_stages()

    def _newest(self, resume: bool) -> tuple[Path | None, list[str]]:
        """The checkpoint to go on from, and what is wrong with newer ones; also tidies the folder."""
        folder, broken = self.out / "checkpoints", list[str]()
        checkpoint = ckpt.newest_valid(folder, broken.append) if resume else None
        durable.clean(folder)
        for line in broken:
            self.log.warn(line)
        if checkpoint is not None:
            ckpt.set_aside(folder, checkpoint)
            ckpt.prune(folder, self.recipe.keep_last, self.recipe.keep_every)  # or a kill skips it
        return checkpoint, broken

    def _check_stages(self) -> None:
        check_stages(
            self.recipe, self.stage, self.model, self.processor, self.out / "index", self._measuring
        )

    def _measuring(self, done: int, total: int) -> None:
        if total >= LONG:
            self.log.say(f"measuring samples: {done} of {total}")

    def _continue(self, checkpoint: Path) -> None:
        state, self.carried = ckpt.load(checkpoint, verified=True)
        self.stage, self.step, self._seconds = state.stage, state.step, state.seconds
        self.monitor = Monitor(state.monitor)
        self.optimizer_from = checkpoint
        self._rebuild(state.base, state.lora)
        ckpt.check_base(self.base_tensors, state.base_tensors, self.base)
        self.log.say(f"resuming at step {self.step} of stage {self.recipe.stages[self.stage].name}")

    def run_stage(self, number: int) -> None:
        """Train one stage, then merge, export and evaluate as it says."""
        stage = self.recipe.stages[number]
        self.stage = number
        self.processor = recut(self.processor, self.recipe.images_of(number))
        self._train_stage(number, stage)
        self.saver.wait()
        if not self.ranks.alone:
            self._join()
        with self.stopper.interruptible():  # a signal may have been heard during the last step
            self._finish_stage(number, stage)
        self.step, self.monitor = 0, Monitor()

    def _train_stage(self, number: int, stage: Stage) -> None:
        torch.manual_seed(stage_seed(self.recipe.seed, number))  # of new heads
        terms = build_objectives(stage.objectives, self.model)
        module = TrainModule(self.model, terms, stage.checkpointing)
        names = list(canonical_parameters(module))
        where = f"stages.{number}.trainable"
        rates = learning_rates(names, stage.trainable, stage.lr, where)
        freeze(module, rates)
        self._restore(module)
        compute_in(stage, self.model)
        self.log.say(_summary(number, stage, module))
        if self.ranks.first and (line := advice(stage, number, self.device)):
            self.log.say(line)
        split(module, self.ranks, self.recipe.shard, DTYPES[stage.precision])
        module.place(self.device, DTYPES[stage.precision], stage.compile)
        tensors = canonical_parameters(module)
        parameters = {name: tensors[name] for name in rates}
        optimizer = make_optimizer(parameters, rates, stage)
        if self.optimizer_from is not None:
            ckpt.load_optimizer(self.optimizer_from, optimizer)
            self.optimizer_from = None
        if self.ranks.first:
            names_file = self.out / f"trainable-{number}-{stage.name}.txt"
            names_file.write_text("\n".join(rates) + "\n")

        exhibits = Exhibits(
            module, stage, stage_seed(self.recipe.seed, number), self.processor, self.device,
            self.ranks, self.log, self.out,
        )  # fmt: skip

        def checkpoint(step: int) -> None:
            exhibits.show(step, self._steps_before(number) + step)
            self.step = step
            self.carried = {
                name: tensors[name] for name in {**self.carried, **rates} if name in tensors
            }
            self.saver.save(self._state(), self.carried, optimizer.state_dict(), self.log.sync)
            if self.ranks.first:
                self.reports.renew()

        if self.step < stage.steps:
            run_stage(
                module, stage, self._steps(stage, number), optimizer, list(parameters.values()),
                self.device, self.log, start=self.step, steps_before=self._steps_before(number),
                on_checkpoint=checkpoint, on_step=self.saver.check, monitor=self.monitor,
                stopper=self.stopper, ranks=self.ranks,
            )  # fmt: skip

    def close(self) -> None:
        """Let go of files and threads, and report; what fails here has been said before."""
        self.saver.close()
        self.log.close()
        if self.ranks.first:
            self.reports.close()

    def _join(self) -> None:
        """Put the whole model together on every rank: what it was built from, and what has changed.

        A split module does not become whole in place. So rank 0 merges and exports what a resume from
        the last checkpoint would build.
        """
        self.carried = whole_on_cpu(self.carried)
        lora = has_lora(self.model)
        self._rebuild(self.base, lora)
        self.processor = recut(self.processor, self.recipe.images_of(self.stage))
        self._restore(TrainModule(self.model, []))
        if self.ranks.first:
            self.model.to(self.device)

    def _finish_stage(self, number: int, stage: Stage) -> None:
        """Rank 0 merges, exports and evaluates; then all go on from what it has exported."""
        durable.reach("finish")
        exported = stage.merge_lora or not has_lora(self.model)
        self.ranks.first_does(lambda: self._export_and_score(number, stage))
        if exported:
            folder = self._folder(number)
            trained = ckpt.tensor_hashes(self.model) if self.ranks.first else None
            self._from_folder(folder)  # save, rebuild: the next stage starts as a new process would
            if trained is not None:
                self._check_export(folder, trained)
            self.carried = {k: v for k, v in self.carried.items() if k.startswith("objectives.")}
        durable.reach("finished")

    def _export_and_score(self, number: int, stage: Stage) -> None:
        if stage.merge_lora:
            difference = fold(self.model, self.recipe)
            durable.reach("folded")
            self.log.say(
                f"merged LoRA into the LLM; the largest change of a logit is {difference:.1e}"
            )
        if not has_lora(self.model):
            folder = self._folder(number)
            cast(self.model, DTYPES[self.recipe.model.dtype])
            if not folder.exists():
                name = f"{self.recipe.name}, after {stage.name}"
                export(self.model, self.processor, folder, name, self.recipe.summary)
            self.log.say(f"exported {folder}")
        score_stage(self.model, self.processor, self.recipe, stage, self.out, self.log)

    def _check_export(self, folder: Path, trained: dict[str, str]) -> None:
        """Raises CheckpointError if the folder is not what was trained, as after a bit flip."""
        found = ckpt.tensor_hashes(self.model)
        for name in sorted(trained.keys() | found.keys()):
            if trained.get(name) != found.get(name):
                raise CheckpointError(
                    f"{folder} does not hold what was trained: {name} differs. Remove the folder and "
                    "go on with --resume: it is exported anew"
                )

    def _new_model(self, lora: bool = True) -> None:
        spec = self.recipe.model
        self.processor = build_processor(spec)
        self.model = build_model(spec, self.processor, self.recipe.seed)
        self.base = base_of(spec)
        self.base_tensors = ckpt.base_hashes(self.model, spec.start is not None)
        if spec.lora is not None and lora:
            add_lora(self.model, spec, self.recipe.seed)

    def _rebuild(self, base: str, lora: bool) -> None:
        """The model that changes are made to: an exported stage, or that of the recipe."""
        if folder := ckpt.stage_folder(self.out, base, self.recipe.model.llm):
            self._from_folder(folder)
        else:
            self._new_model(lora)

    def _from_folder(self, folder: Path) -> None:
        self.model, self.processor = load_exported(folder)
        set_attention(self.model, self.recipe.model)
        self.base = str(folder.relative_to(self.out))
        self.base_tensors = ckpt.base_hashes(self.model, started=True)

    def _restore(self, module: TrainModule) -> None:
        """Tensors of a checkpoint or of the stage before; heads that this stage lacks are dropped.

        So are those of an objective that has other shapes here, as with another teacher.
        """
        parameters = canonical_parameters(module)
        other = {
            _objective(k)
            for k, v in self.carried.items()
            if k in parameters and parameters[k].shape != v.shape and _objective(k)
        }
        wanted = {
            k: v
            for k, v in self.carried.items()
            if not _objective(k) or (k in parameters and _objective(k) not in other)
        }
        ckpt.restore(parameters, wanted, self.out)

    def _steps(self, stage: Stage, number: int) -> Steps:
        seed = stage_seed(self.recipe.seed, number)
        return Steps(
            open_sources(stage.data), self.processor, seed=seed, steps=stage.steps,
            batch=stage.batch, pack_length=stage.pack_length or stage.length,
            micro_rows=stage.micro_rows, single_turns=stage.single_turns,
            plain_turns=stage.plain_turns, separate_turns=stage.separate_turns, crop=stage.crop,
            asking=cognition_of(stage, seed, self.processor),
            rank=self.ranks.rank, ranks=self.ranks.count,
        )  # fmt: skip

    def _state(self) -> ckpt.State:
        return ckpt.State(
            stage=self.stage,
            step=self.step,
            total_steps=self._steps_before(self.stage) + self.step,
            lora=has_lora(self.model),
            base=self.base,
            base_tensors=self.base_tensors,
            seconds=self._seconds + time.monotonic() - self._began,
            monitor=self.monitor.state(),
        )

    def _steps_before(self, number: int) -> int:
        return sum(stage.steps for stage in self.recipe.stages[:number])

    def _folder(self, number: int) -> Path:
        return self.out / "stages" / f"{number}-{self.recipe.stages[number].name}"


def _objective(name: str) -> str:
    """``objectives.distill.`` of a tensor that belongs to one, else nothing."""
    parts = name.split(".", 2)
    return f"{parts[0]}.{parts[1]}." if parts[0] == "objectives" else ""


def _summary(number: int, stage: Stage, module: TrainModule) -> str:
    trained = sum(p.numel() for p in module.parameters() if p.requires_grad)
    total = sum(p.numel() for p in module.parameters())
    return (
        f"stage {number}, {stage.name}: {stage.steps} steps of {stage.batch} samples; trains "
        f"{trained / 1e6:.2f}M of {total / 1e6:.2f}M parameters (objectives' included)"
    )
