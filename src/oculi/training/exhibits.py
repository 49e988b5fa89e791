"""What objectives show at checkpoints: pictures and scores of the same few samples each time.

RUN/shown/STAGE-0000060-reconstruct.png     rows of pictures
RUN/shown.jsonl                             a line each, with the mean scores
"""

from __future__ import annotations

import io
import math
from pathlib import Path

import torch

from oculi import durable
from oculi.batch import Batch
from oculi.data.loader import Steps
from oculi.data.source import open_sources
from oculi.model import OculiProcessor
from oculi.objectives.base import Objective
from oculi.objectives.exhibit import Exhibit, sheet
from oculi.recipe import Stage
from oculi.training.log import RunLog
from oculi.training.module import TrainModule
from oculi.training.precision import autocast
from oculi.training.ranks import Ranks

FOLDER = "shown"


class Exhibits:
    """Shows what the objectives of a stage have to show.

    All ranks run the same forward passes through the whole module, so that split parameters meet, and
    the first one writes.

    Args:
        module: as it is trained. stage: its stage. seed: of the stage.
        processor, device, ranks, log, out: of the run.
    """

    def __init__(
        self, module: TrainModule, stage: Stage, seed: int, processor: OculiProcessor,
        device: torch.device, ranks: Ranks, log: RunLog, out: Path,
    ) -> None:  # fmt: skip
        self.module, self.stage, self.seed, self.processor = module, stage, seed, processor
        self.device, self.ranks, self.log, self.out = device, ranks, log, out
        self.terms = [term for term in module.terms() if term.shown]
        self._batches: list[Batch] | None = None
        if ranks.first and (out / FOLDER).exists():
            durable.clean(out / FOLDER)

    def show(self, step: int, total_steps: int) -> None:
        """Show the model as it is after ``step`` steps of the stage; all ranks must call it.

        Raises:
            OSError: a file cannot be written.
            DataError: a data file is not as it was.
        """
        for term in self.terms:
            found = self._pass(term)
            if found and self.ranks.first:
                self._write(term, Exhibit.joined(found), step, total_steps)

    @torch.no_grad()
    def _pass(self, term: Objective) -> list[Exhibit]:
        found: list[Exhibit] = []
        if self._batches is None:
            self._batches = self._first_samples()
        training = self.module.training
        self.module.eval()
        try:
            with term.showing(found):
                for batch in self._batches:
                    with autocast(self.stage, self.device):
                        self.module(batch.to(self.device), self.module.counts([batch]))
        finally:
            self.module.train(training)
        return found

    def _first_samples(self) -> list[Batch]:
        """The first of the stage, in its order: pictures uncut, and all of them on every rank."""
        steps = Steps(
            open_sources(self.stage.data), self.processor, seed=self.seed, steps=1,
            batch=max(term.shown for term in self.terms),
            pack_length=self.stage.pack_length or self.stage.length,
            micro_rows=self.stage.micro_rows,
        )  # fmt: skip
        return steps[0]

    def _write(self, term: Objective, found: Exhibit, step: int, total_steps: int) -> None:
        folder = self.out / FOLDER
        folder.mkdir(exist_ok=True)
        picture = f"{self.stage.name}-{step:07d}-{term.name}.png"
        packed = io.BytesIO()
        sheet(list(found.rows.values()), term.shown).save(packed, "png")
        durable.write_bytes(folder / picture, packed.getvalue())
        means = {name: float(values.mean()) for name, values in found.scores.items()}
        self.log.shown(
            self.stage.name, step, total_steps, objective=term.name, picture=picture,
            images=len(next(iter(found.rows.values()))), rows=list(found.rows),
            scores={name: mean for name, mean in means.items() if math.isfinite(mean)},
        )  # fmt: skip
