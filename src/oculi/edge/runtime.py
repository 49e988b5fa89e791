"""Runs an exported model: pictures through one graph, prompt and answer through another.

    patches ── vision.onnx ── tokens ─┐
    ids ── embeddings.npy ────────────┴─ embeddings ── decoder.onnx ── logits of the last position
                                                 past_* ─┘      └─ present_*, the past of the next call

The prompt and each token of the answer go through the same graph. The runner knows its inputs by
name alone: what is called ``past_X`` begins empty and is given ``present_X`` from then on, and what
the vision graph puts out beside ``tokens`` is handed to the decoder in the call that has the pictures,
should it have such an input; calls without pictures are given none of it, an array of no rows. So a
graph with a fusion module, which reads the uncompressed tokens and has a cache of its own, needs no
change here.

Shapes: T tokens of a call, S vision tokens, D the LLM's width, V vocabulary.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from oculi.edge import folder as files
from oculi.edge.chat import Encoder, Message, Piece
from oculi.edge.images import Cutter
from oculi.edge.sampling import GREEDY, Decoding, choose
from oculi.errors import CheckpointError, DataError, OculiError

Array = NDArray[Any]
# Of inputs that begin empty, by onnxruntime's name.
TYPES = {"tensor(float)": np.float32, "tensor(bool)": np.bool_, "tensor(int64)": np.int64}
Content = str | Image.Image


@dataclass(frozen=True)
class Prompt:
    """A conversation, ready to be answered; its pictures have been looked at.

    Attributes:
        ids: as many as the prompt has positions.
        spans: (start, count) of the positions of each picture.
        seen: what the vision graph made, by name and in the order of pictures; ``tokens`` are [S, D].
        length: tokens before the first answer.
        vision_seconds, seconds: spent on the vision graph, and on all of it.
    """

    ids: list[int]
    spans: list[tuple[int, int]]
    seen: dict[str, list[Array]]
    length: int
    vision_seconds: float
    seconds: float


@dataclass
class Times:
    """Seconds that one answer took; filled in while it is made.

    Attributes:
        first: from the conversation to the first token. prompt: of it, the decoder's call.
        steps: each further token.
    """

    first: float = 0.0
    prompt: float = 0.0
    steps: list[float] = field(default_factory=list)


class Runner:
    """A model that is loaded; see ``load``.

    Attributes:
        settings: of the folder.
    """

    def __init__(
        self,
        settings: files.Settings,
        vision: Any,
        decoder: Any,
        embeddings: Array,
        encoder: Encoder,
    ) -> None:
        self.settings, self.encoder = settings, encoder
        self.cutter = Cutter(settings.pictures)
        self._vision, self._decoder, self._embeddings = vision, decoder, embeddings
        self._vision_outputs = [output.name for output in vision.get_outputs()]
        self._outputs = [output.name for output in decoder.get_outputs()]
        self._inputs = {one.name for one in decoder.get_inputs()}
        empty: dict[str, Array] = {
            one.name: np.zeros([n if isinstance(n, int) else 0 for n in one.shape], TYPES[one.type])
            for one in decoder.get_inputs()
            if one.type in TYPES
        }
        self._empty = {name: one for name, one in empty.items() if name.startswith("past_")}
        self._unseen = {name: empty[name] for name in self._vision_outputs if name in empty}
        self._next = {
            name: "past_" + name.removeprefix("present_")
            for name in self._outputs
            if name.startswith("present_")
        }
        if set(self._next.values()) != self._empty.keys() or "tokens" not in self._vision_outputs:
            raise CheckpointError(f"the graphs do not fit this runner; {files.AGAIN}")

    def prompt(self, messages: Sequence[tuple[str, Sequence[Content]]]) -> Prompt:
        """A conversation that ends with a question.

        Args:
            messages: (role, pieces); a piece is a string or a PIL picture. Text is text, whatever it
                says.

        Raises:
            DataError: the roles are out of order, or it is longer than the model's positions.
        """
        began = time.perf_counter()
        vision_seconds = 0.0
        seen: dict[str, list[Array]] = {name: [] for name in self._vision_outputs}
        counted: list[Message] = []
        for role, pieces in messages:
            turn: list[Piece] = []
            for piece in pieces:
                if isinstance(piece, str):
                    turn.append(piece)
                    continue
                patches = self.cutter.patches(piece)
                start = time.perf_counter()
                made = self._run(self._vision, self._vision_outputs, {"patches": patches})
                vision_seconds += time.perf_counter() - start
                for name, value in zip(self._vision_outputs, made, strict=True):
                    seen[name].append(value)
                turn.append(len(seen["tokens"][-1]))
            counted.append((role, turn))
        ids, spans, length = self.encoder.encode(counted)
        if len(ids) >= self.settings.positions:
            raise DataError(
                f"the prompt has {len(ids)} tokens, and the {self.settings.positions} positions of this "
                "model must hold the answer as well: ask with less text, or fewer or smaller pictures"
            )
        return Prompt(ids, spans, seen, length, vision_seconds, time.perf_counter() - began)

    def stream(
        self,
        prompt: Prompt,
        decoding: Decoding = GREEDY,
        times: Times | None = None,
    ) -> Iterator[int]:
        """Ids of the answer, one by one, without the one that ends it.

        Args:
            times: filled in, if given.

        Raises:
            CheckpointError: a graph fails.
        """
        times = times or Times()
        began = time.perf_counter() - prompt.seconds
        dice = np.random.default_rng(decoding.seed)
        state = self._begin(prompt)
        room = self.settings.positions - len(prompt.ids)
        for made in range(min(decoding.max_new_tokens, room)):
            start = time.perf_counter()
            values = self._run(self._decoder, self._outputs, state)
            if made == 0:
                times.prompt = time.perf_counter() - start
            out = dict(zip(self._outputs, values, strict=True))
            logits_V: NDArray[np.float32] = out["logits"][0]
            logits_V[self.settings.suppressed_ids] = -np.inf
            if made < decoding.min_new_tokens:
                logits_V[self.settings.eos_ids] = -np.inf
            token = choose(logits_V, decoding, dice)
            seconds = time.perf_counter() - began
            if made == 0:
                times.first = seconds
            else:
                times.steps.append(seconds)
            if token in self.settings.eos_ids:
                return
            yield token
            began = time.perf_counter()
            state = {past: out[present] for present, past in self._next.items()}
            state |= self._text([token])

    def _begin(self, prompt: Prompt) -> dict[str, Array]:
        """Inputs of the decoder's first call."""
        state = {**self._empty, **self._text(prompt.ids)}
        is_text_T = np.ones(len(prompt.ids), np.bool_)
        pairs = zip(prompt.spans, prompt.seen["tokens"], strict=True)
        for i, ((start, count), tokens_SD) in enumerate(pairs):
            state["embeds"][0, start : start + count] = tokens_SD
            is_text_T[start : start + count] = False
            if "image_ids" in state:
                state["image_ids"][0, start : start + count] = i
        if "prompt" in state:
            state["prompt"][0, : prompt.length] = True
        if "text_places" in state:
            state["text_places"] = np.flatnonzero(is_text_T)
        seen = {
            name: np.concatenate(values)
            for name, values in prompt.seen.items()
            if name in self._unseen and values
        }
        return {**state, **seen}

    def _text(self, ids: Sequence[int]) -> dict[str, Array]:
        """Inputs of a call whose tokens are text."""
        ids_T = np.asarray(ids)
        # The image token may lie outside of the table; its rows are overwritten.
        inside = np.where(ids_T < len(self._embeddings), ids_T, 0)
        state: dict[str, Array] = {"embeds": self._embeddings[inside].astype(np.float32)[None]}
        if "image_ids" in self._inputs:
            state["image_ids"] = np.full((1, len(ids_T)), -1, np.int64)
        if "prompt" in self._inputs:
            state["prompt"] = np.zeros((1, len(ids_T)), np.bool_)
        if "text_places" in self._inputs:
            state["text_places"] = np.arange(len(ids_T))
        return state | self._unseen

    def _run(self, session: Any, outputs: list[str], inputs: dict[str, Array]) -> list[Array]:
        try:
            made: list[Array] = session.run(outputs, inputs)
        except Exception as error:  # onnxruntime's own classes are not public
            line = str(error).splitlines()[0][:200] if str(error) else type(error).__name__
            raise CheckpointError(f"onnxruntime cannot run the graph: {line}") from None
        return made

    def texts(
        self,
        prompt: Prompt,
        decoding: Decoding = GREEDY,
        times: Times | None = None,
    ) -> Iterator[str]:
        """The answer in pieces of text, each when it is certain; joined they are ``answer``."""
        ids: list[int] = []
        shown = ""
        for token in self.stream(prompt, decoding, times):
            ids.append(token)
            text = self.encoder.decode(ids)
            # Half of a character is decoded as U+FFFD until the other half has come.
            if text.startswith(shown) and not text.endswith("\ufffd") and len(text) > len(shown):
                yield text[len(shown) :]
                shown = text
        if rest := self.encoder.decode(ids)[len(shown) :]:
            yield rest

    def answer(
        self,
        messages: Sequence[tuple[str, Sequence[Content]]],
        decoding: Decoding = GREEDY,
    ) -> str:
        """The whole answer to a conversation; errors as of ``prompt`` and ``stream``."""
        return self.encoder.decode(list(self.stream(self.prompt(messages), decoding)))


def load(folder: str | Path, threads: int | None = None, sums: bool = True) -> Runner:
    """Open a folder that ``oculi export --to onnx`` wrote.

    Args:
        threads: of onnxruntime within an operation; None for one a core.
        sums: compare every file with its SHA-256 first. Without, lengths alone are compared.

    Raises:
        CheckpointError: the folder is none, or a file is missing, cut, altered or of another version, or
            its settings name ids that the model has not.
        OculiError: onnxruntime is not installed.
    """
    folder = Path(folder)
    files.check(folder, sums)
    settings = files.read_settings(folder)
    encoder = Encoder(folder / files.TOKENIZER, settings.chat)
    try:
        embeddings = np.load(folder / files.EMBEDDINGS, mmap_mode="r")
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{folder / files.EMBEDDINGS} cannot be read: {error}") from None
    if embeddings.ndim != 2 or embeddings.dtype.kind != "f" or not len(embeddings):
        raise CheckpointError(
            f"{folder / files.EMBEDDINGS} is no table of embeddings; {files.AGAIN}"
        )
    files.check_ids(settings, len(embeddings), folder)
    vision, decoder = (_session(folder / name, threads) for name in (files.VISION, files.DECODER))
    return Runner(settings, vision, decoder, embeddings, encoder)


def _session(path: Path, threads: int | None) -> Any:
    try:
        import onnxruntime
    except ImportError:
        raise OculiError("onnxruntime is not installed: pip install 'oculi[edge]'") from None
    options = onnxruntime.SessionOptions()
    if threads is not None:
        options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = (
        4  # what goes wrong is raised; nothing else belongs on the terminal
    )
    try:
        return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    except Exception as error:
        line = str(error).splitlines()[0][:200] if str(error) else type(error).__name__
        raise CheckpointError(f"onnxruntime cannot open {path}: {line}") from None
