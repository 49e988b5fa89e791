"""A conversation with a model about pictures."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from oculi.data.sample import ImageRef
from oculi.errors import DataError
from oculi.eval.evaluate import answer
from oculi.model import OculiForConditionalGeneration, OculiProcessor


class Conversation:
    """Keeps the history; the pictures stand before the first question.

    Args:
        images: files of pictures.
        max_new_tokens: longest answer in tokens.
        modality: of what the pictures show.

    Raises:
        DataError: a picture cannot be read, or the model has no LoRA for the modality.
    """

    def __init__(
        self,
        model: OculiForConditionalGeneration,
        processor: OculiProcessor,
        images: Sequence[Path],
        max_new_tokens: int,
        modality: str = "image",
    ) -> None:
        self.model, self.processor, self.modality = model, processor, modality
        try:
            processor.modality(modality)
        except processor.EncodingError as error:
            raise DataError(str(error)) from None
        self.max_new_tokens = max_new_tokens
        self._pictures = [ImageRef(path=path).load() for path in images]
        self._history: list[tuple[str, list[object]]] = []

    def ask(self, question: str) -> str:
        """The model's answer; question and answer join the history. Text is text, whatever it says."""
        parts: list[object] = [question]
        if not self._history and self._pictures:
            parts = [*self._pictures, "\n" + question]
        self._history.append(("user", parts))
        prompt = self.processor.encode(
            self._history,  # type: ignore[arg-type]
            add_generation_prompt=True,
            modality=self.modality,
        )
        reply = answer(self.model, self.processor, [prompt], self.max_new_tokens)[0]
        self._history.append(("assistant", [reply]))
        return reply
