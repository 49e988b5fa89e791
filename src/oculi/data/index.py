"""How long every sample is, known before training starts and without decoding a picture.

A sample that does not fit is an error at the start, not a truncated image in the middle of a night.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from oculi.data.sample import RowError, Sample
from oculi.data.source import Source, open_source, pieces, sizes
from oculi.errors import DataError, shown
from oculi.recipe import FileSource, SourceSpec

if TYPE_CHECKING:
    from oculi.model import OculiProcessor

Progress = Callable[[int, int], None]


def sample_length(sample: Sample, processor: OculiProcessor) -> int:
    """Tokens of a sample, images included; raises DataError for an unreadable picture."""
    return processor.length(pieces(sample.messages, sizes(sample.images)))


def measure(
    source: Source, processor: OculiProcessor, on_progress: Progress | None = None
) -> NDArray[np.int32]:
    """Lengths of all samples of a source, [len(source)] int32."""
    lengths = np.empty(len(source), dtype=np.int32)
    for i in range(len(source)):
        sample = source[i]
        try:
            lengths[i] = sample_length(sample, processor)
        except DataError as error:
            raise RowError(str(error), sample.id, sample.source) from None
        if on_progress and (i % 256 == 0 or i + 1 == len(source)):
            on_progress(i + 1, len(source))
    return lengths


def check_lengths(
    specs: Sequence[SourceSpec],
    processor: OculiProcessor,
    length: int,
    cache: Path,
    on_progress: Progress | None = None,
) -> None:
    """Refuse a stage that holds samples longer than ``length`` tokens.

    Files are measured once; the result is kept in ``cache`` under a fingerprint of the file and of
    the processor. Playroom draws short questions on small pictures, so it needs no pass.

    Raises:
        DataError: with the number of too long samples, and the longest by name.
    """
    for spec in specs:
        if not isinstance(spec, FileSource):
            continue
        source = open_source(spec)
        lengths = _cached(spec, source, processor, cache, on_progress)
        too_long = np.flatnonzero(lengths > length)
        if len(too_long):
            worst = source[int(lengths.argmax())]
            raise DataError(
                f"{len(too_long)} of {len(source)} samples in {spec.path} are longer than {length} "
                f"tokens; the longest, {shown(worst.id)}, has {lengths.max()}: raise the length of the "
                "stage, lower model.images.max_patches, or take those rows out"
            )


def _cached(
    spec: FileSource,
    source: Source,
    processor: OculiProcessor,
    cache: Path,
    on_progress: Progress | None,
) -> NDArray[np.int32]:
    stat = Path(spec.path).stat()
    key = json.dumps(
        [
            str(Path(spec.path).resolve()), spec.image_root, stat.st_size, stat.st_mtime_ns,
            processor.image_processor.to_json_string(), str(processor.tokenizer.chat_template),
            hashlib.sha256(processor.tokenizer.backend_tokenizer.to_str().encode()).hexdigest(),
        ]
    )  # fmt: skip
    file = cache / f"lengths-{hashlib.sha256(key.encode()).hexdigest()[:16]}.npy"
    lengths = _load(file)
    if lengths is None or len(lengths) != len(source):
        lengths = measure(source, processor, on_progress)
        cache.mkdir(parents=True, exist_ok=True)
        partial = file.with_suffix(".partial")
        with partial.open("wb") as handle:
            np.save(handle, lengths)
        partial.replace(file)
    return lengths


def _load(file: Path) -> NDArray[np.int32] | None:
    try:
        lengths: NDArray[np.int32] = np.load(file, allow_pickle=False)
    except (OSError, EOFError, ValueError):  # not there, or cut by a full disk
        return None
    return lengths
