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

from oculi import durable
from oculi.data.formats import FileSource as FileRows
from oculi.data.prepared import PreparedRows
from oculi.data.sample import RowError, Sample
from oculi.data.source import Source, open_file, pieces, sizes
from oculi.errors import DataError, shown
from oculi.recipe import FileSource, SourceSpec

if TYPE_CHECKING:
    from oculi.model import OculiProcessor

Progress = Callable[[int, int], None]
BAD_SHARE = 0.01  # of the samples; with more that cannot be used it is not the data that was meant


def sample_length(sample: Sample, processor: OculiProcessor) -> int:
    """Tokens of a sample, images included.

    Raises:
        RowError: a picture cannot be read, or the chat template refuses the conversation.
    """
    try:
        return processor.length(pieces(sample.messages, sizes(sample.images)))
    except (DataError, processor.EncodingError) as error:
        raise RowError(str(error), sample.id, sample.source) from None


def measure(
    source: Source, processor: OculiProcessor, on_progress: Progress | None = None
) -> NDArray[np.int32]:
    """Lengths of all samples of a source, [len(source)] int32; 0 of those that have none.

    Training leaves such samples out, as it does those that turn out to be damaged further on.

    Raises:
        DataError: more than 1 % have a picture that cannot be read, or a conversation that the chat
            template refuses; the first one is named.
    """
    lengths = np.empty(len(source), dtype=np.int32)
    first, bad = None, 0
    for i in range(len(source)):
        sample = source[i]
        try:
            lengths[i] = sample_length(sample, processor)
        except RowError as error:
            lengths[i], bad = 0, bad + 1
            first = first or error
            if bad > BAD_SHARE * len(source):
                more = f" (and {bad - 1} more, over {BAD_SHARE:.0%} of all)" if bad > 1 else ""
                raise RowError(f"{first.reason}{more}", first.id, first.source) from None
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

    Prepared data has its lengths with it. Other files are measured once; the result is kept in
    ``cache`` under a fingerprint of the files and of the processor. Playroom draws short questions on
    small pictures, so it needs no pass.

    Raises:
        DataError: with the number of too long samples, and the longest by name.
    """
    for spec in specs:
        if not isinstance(spec, FileSource):
            continue
        source = open_file(spec)
        if isinstance(source, PreparedRows):
            lengths = source.lengths(processor_fingerprint(processor))
        else:
            lengths = _cached(source, processor, cache, on_progress)
        too_long = np.flatnonzero(lengths > length)
        if len(too_long):
            worst = source[int(lengths.argmax())]
            raise DataError(
                f"{len(too_long)} of {len(source)} samples in {spec.path} are longer than {length} "
                f"tokens; the longest, {shown(worst.id)}, has {lengths.max()}: raise the length of the "
                "stage, lower model.images.max_patches, or leave them out (oculi data prepare "
                "--max-length)"
            )


def processor_fingerprint(processor: OculiProcessor) -> str:
    """SHA-256 of all that a sample's length depends on; saving and loading do not change it."""
    images, tokenizer = processor.image_processor, processor.tokenizer
    state = json.loads(tokenizer.backend_tokenizer.to_str())
    parts = [
        images.patch_size, images.mode, images.size, images.min_patches, images.max_patches,
        str(tokenizer.chat_template),
        *(state.get(part) for part in ("added_tokens", "normalizer", "pre_tokenizer", "model")),
        # Not None: folders were prepared without them.
        *([images.compress] if images.compress else []),
        *([images.vision_tokens] if images.vision_tokens else []),
    ]  # fmt: skip
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def _cached(
    source: FileRows, processor: OculiProcessor, cache: Path, on_progress: Progress | None
) -> NDArray[np.int32]:
    key = json.dumps([source.fingerprint, processor_fingerprint(processor)])
    file = cache / f"lengths-{hashlib.sha256(key.encode()).hexdigest()[:16]}.npy"
    lengths = _load(file)
    if lengths is None or len(lengths) != len(source):
        lengths = measure(source, processor, on_progress)
        cache.mkdir(parents=True, exist_ok=True)
        partial = file.with_suffix(".partial")
        with partial.open("wb") as handle:
            np.save(handle, lengths)
        durable.sync(partial)
        durable.move(partial, file)
    return lengths


def _load(file: Path) -> NDArray[np.int32] | None:
    try:
        lengths: NDArray[np.int32] = np.load(file, allow_pickle=False)
    except (OSError, EOFError, ValueError):  # not there, or cut by a full disk
        return None
    return lengths
