"""From a step's number to its batches: order, encoding, packing. No state."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Protocol, TypeVar

import numpy as np
import torch
from PIL import Image
from torch.utils.data import Dataset

from oculi.batch import Batch
from oculi.data.branches import branch_positions, encode_branches, length_of_branches
from oculi.data.crops import Crops
from oculi.data.order import sample_numbers
from oculi.data.packing import pack, row_width
from oculi.data.sample import RowError, Sample
from oculi.data.source import Source, pieces, sizes
from oculi.data.turns import TurnDraws, side_by_side
from oculi.errors import DataError

if TYPE_CHECKING:
    from oculi.model import OculiProcessor
    from oculi.model.processing_oculi import Encoded


class Asking(Protocol):
    """Adds turns to the sample at a position of the order; see ``cognition/turns.py``."""

    def measured(
        self, position: int, sample: Sample, sizes: Sequence[tuple[int, int]]
    ) -> Sample: ...

    def __call__(
        self, position: int, sample: Sample, pictures: Sequence[Image.Image]
    ) -> Sample: ...


A = TypeVar("A")
B = TypeVar("B")


def encode_sample(
    sample: Sample,
    processor: OculiProcessor,
    crop: Callable[[list[Image.Image]], list[Image.Image]] = list,
    ask: Callable[[Sample, list[Image.Image]], Sample] | None = None,
) -> Encoded:
    """A sample's ids, labels and patches.

    Args:
        crop: may change its pictures, not their sizes.
        ask: may add turns about the pictures as ``crop`` leaves them.

    Raises:
        RowError: a picture cannot be read, the chat template refuses the conversation, or no answer
            is left to learn from.
    """
    try:
        pictures = crop([image.load() for image in sample.images])
    except DataError as error:
        raise RowError(str(error), sample.id, sample.source) from None
    if ask is not None:
        sample = ask(sample, pictures)
    try:
        if sample.separate:
            encoded = encode_branches(
                processor,
                [pieces(turn.messages, pictures) for turn in side_by_side(sample)],
                sample.modality,
            )
        else:
            talk = pieces(sample.messages, pictures)
            encoded = processor.encode(talk, modality=sample.modality)  # type: ignore[arg-type]
    except processor.EncodingError as error:
        raise RowError(str(error), sample.id, sample.source) from None
    if encoded.prompt_length == len(encoded.input_ids):
        raise RowError("no answer tokens to learn from", sample.id, sample.source)
    return encoded


def collate(rows: Sequence[Sequence[tuple[str, Encoded]]], channels: int) -> Batch:
    """Rows of encoded samples to one padded batch.

    Args:
        rows: for each row its samples, as (id, encoded).
        channels: 3 * patch_size**2, for a batch without images.
    """
    width = row_width(max(sum(len(e.input_ids) for _, e in row) for row in rows))
    shape = (len(rows), width)
    tokens, positions = np.zeros(shape, np.int64), np.zeros(shape, np.int64)
    segments, images = np.full(shape, -1, np.int64), np.full(shape, -1, np.int64)
    prompt, branches = np.zeros(shape, bool), np.zeros(shape, np.int64)
    modality, told = np.zeros(shape, np.int64), False
    label_rows: list[int] = []
    targets: list[int] = []
    patches: list[np.ndarray] = []
    grids: list[tuple[int, int]] = []
    for r, row in enumerate(rows):
        start = 0
        for s, (_, encoded) in enumerate(row):
            end = start + len(encoded.input_ids)
            tokens[r, start:end] = encoded.input_ids
            if encoded.branches is None:
                positions[r, start:end] = np.arange(end - start)
            else:
                positions[r, start:end] = branch_positions(encoded.branches)
                branches[r, start:end] = encoded.branches
            segments[r, start:end] = s
            prompt[r, start : start + encoded.prompt_length] = True
            images[r, start:end] = image_numbers(encoded, len(grids))
            modality[r, start:end] = encoded.modality * (images[r, start:end] >= 0)
            told = told or encoded.told
            for i, label in enumerate(encoded.labels):
                if label != -100:
                    label_rows.append(r * width + start + i - 1)
                    targets.append(label)
            patches += encoded.pixel_values
            grids += encoded.grids
            start = end
    flat = np.concatenate(patches) if patches else np.zeros((0, channels), np.uint8)
    return Batch(
        tokens_BT=torch.from_numpy(tokens),
        positions_BT=torch.from_numpy(positions),
        segments_BT=torch.from_numpy(segments),
        images_BT=torch.from_numpy(images),
        prompt_BT=torch.from_numpy(prompt),
        label_rows_R=torch.tensor(label_rows, dtype=torch.int64),
        targets_R=torch.tensor(targets, dtype=torch.int64),
        patches_PC=torch.from_numpy(flat),
        grids_N2=torch.tensor(grids, dtype=torch.int64).reshape(-1, 2),
        sample_ids=tuple(name for row in rows for name, _ in row),
        branches_BT=torch.from_numpy(branches) if branches.any() else None,
        modality_BT=torch.from_numpy(modality) if told else None,
    )


def image_numbers(encoded: Encoded, first: int) -> np.ndarray:
    """Image of each token of one sample, [T] int64, numbered from ``first``; -1 for text."""
    numbers = np.full(len(encoded.input_ids), -1, np.int64)
    for i, (start, count) in enumerate(encoded.image_spans):
        numbers[start : start + count] = first + i
    return numbers


@dataclass(frozen=True)
class BadSample:
    """A sample that was left out: its position in the order of the stage, its name, and why."""

    position: int
    id: str
    source: str
    reason: str


@dataclass(frozen=True)
class Loaded:
    """The data of one optimizer step: micro-batches (none if all is bad), and what was left out."""

    batches: list[Batch]
    bad: tuple[BadSample, ...] = ()


class Steps(Dataset[list[Batch]]):
    """Entry n is what optimizer step n eats: its samples, packed, as micro-batches.

    A sample that cannot be used is left out, and the step is smaller: taking another in its place
    would make a step depend on those before it.

    Of several ranks each makes its own rows of the same packs: a step's samples are the same for any
    number of ranks. Each of them measures all of the samples for that, and decodes its own.
    """

    def __init__(
        self,
        source: Source,
        processor: OculiProcessor,
        *,
        seed: int,
        steps: int,
        batch: int,
        pack_length: int,
        micro_rows: int,
        single_turns: float = 0.0,
        plain_turns: float = 0.0,
        separate_turns: float = 0.0,
        crop: float = 0.0,
        asking: Asking | None = None,
        rank: int = 0,
        ranks: int = 1,
    ) -> None:
        self.source, self.processor, self.seed = source, processor, seed
        self.steps, self.batch = steps, batch
        self.pack_length, self.micro_rows = pack_length, micro_rows
        self.drawn = TurnDraws(seed, single_turns, plain_turns, separate_turns)
        self.crops, self.asking = Crops(seed, crop), asking
        self.rank, self.ranks = rank, ranks
        self.channels = 3 * processor.image_processor.patch_size**2

    def __len__(self) -> int:
        return self.steps

    def __getitem__(self, step: int) -> list[Batch]:
        return self.load(step).batches

    def load(self, step: int) -> Loaded:
        """This rank's micro-batches of a step, and the samples that should be in them and are not.

        What every rank finds wrong, the first one says.

        Raises:
            DataError: a data file is not as it was; that is no matter of one sample.
        """
        shared: list[BadSample] = []
        own: list[BadSample] = []
        samples = self._draw(step, shared)
        if self.ranks == 1:  # a sample is measured by encoding it, which is to be done in any case
            encoded = self._each(samples, self._encode, own)
            rows = self._rows({p: len(e.input_ids) for p, (_, e) in encoded.items()})
        else:
            packed = self._rows(self._each(samples, self._length, shared))
            rows = packed[self.rank :: self.ranks]
            encoded = self._each({p: samples[p] for row in rows for p in row}, self._encode, own)
        found = [[encoded[p] for p in row if p in encoded] for row in rows]
        found = [row for row in found if row]
        micro = [found[i : i + self.micro_rows] for i in range(0, len(found), self.micro_rows)]
        bad = own + (shared if self.rank == 0 else [])
        bad.sort(key=lambda sample: sample.position)
        return Loaded([collate(part, self.channels) for part in micro], tuple(bad))

    def _draw(self, step: int, bad: list[BadSample]) -> dict[int, Sample]:
        """The samples of a step by their positions in the order."""
        first = step * self.batch
        numbers = sample_numbers(self.seed, first, self.batch, len(self.source))
        places = dict(enumerate(map(int, numbers), first))
        return self._each(places, lambda p, number: self.drawn(p, self.source[number]), bad)

    def _each(
        self, given: Mapping[int, A], work: Callable[[int, A], B], bad: list[BadSample]
    ) -> dict[int, B]:
        """``work`` on each that is given, by position; what is wrong with a row goes to ``bad``."""
        done: dict[int, B] = {}
        for position, value in given.items():
            try:
                done[position] = work(position, value)
            except RowError as error:
                bad.append(BadSample(position, error.id, error.source, error.reason))
        return done

    def _encode(self, position: int, sample: Sample) -> tuple[str, Encoded]:
        ask = None if self.asking is None else partial(self.asking, position)
        return sample.id, encode_sample(sample, self.processor, partial(self.crops, position), ask)

    def _length(self, position: int, sample: Sample) -> int:
        try:
            shown = sizes(sample.images)
            if self.asking is not None:
                sample = self.asking.measured(position, sample, shown)
            if sample.separate:
                turns = [pieces(turn.messages, shown) for turn in side_by_side(sample)]
                return length_of_branches(self.processor, turns)
            return self.processor.length(pieces(sample.messages, shown))
        except (DataError, self.processor.EncodingError) as error:
            raise RowError(str(error), sample.id, sample.source) from None

    def _rows(self, lengths: Mapping[int, int]) -> list[list[int]]:
        positions = list(lengths)
        rows = pack(list(lengths.values()), self.pack_length)
        return [[positions[i] for i in row] for row in rows]
