"""Conversations and pictures to model inputs: one path for training, evaluation and serving."""

import base64
import io
import os
from collections.abc import Sequence
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import numpy as np
import torch
from PIL import Image
from transformers import BatchFeature, ProcessorMixin

from .chat_oculi import ChatEncoder, ImageTokens
from .encoding_error_oculi import EncodingError
from .image_processing_oculi import OculiImageProcessor
from .routed_oculi import IMAGE

IMAGE_TOKEN = "<|image_pad|>"


@dataclass(frozen=True)
class Encoded:
    """One conversation, ready to be put into a batch.

    Attributes:
        input_ids, labels: as long; image positions hold the image token's id.
        pixel_values: patches of its images, each [p, 3 * patch**2] uint8.
        grids: rows and columns of each image.
        prompt_length: tokens before the first answer, or all.
        image_spans: (start, count) of each image's positions in ``input_ids``.
        branches: as long, where turns stand side by side: 0 for what they share, then 1, 2, ...
        modality: whose routed LoRA its image positions go through, as in ``modality_ids``.
        told: the model has to be told: it is not what it takes image positions for.
    """

    input_ids: list[int]
    labels: list[int]
    pixel_values: list[np.ndarray]
    grids: list[tuple[int, int]]
    prompt_length: int
    image_spans: list[tuple[int, int]]
    branches: list[int] | None = None
    modality: int = 0
    told: bool = False


class OculiProcessor(ProcessorMixin):
    """Tokenizer, picture cutter and chat encoder.

    Args:
        image_processor: cuts pictures.
        tokenizer: the LLM's own, fast. ``<|image_pad|>`` is added to it when it is missing; the
            LLM's embedding table is not touched.
        chat_template: instead of the tokenizer's own.

    Attributes:
        EncodingError: what it raises for an input that the model cannot be given; here, so that who is
            handed a processor can catch it without importing the model.
    """

    EncodingError = EncodingError

    def __init__(
        self,
        image_processor: OculiImageProcessor | None = None,
        tokenizer: Any = None,
        chat_template: str | None = None,
        **kwargs: Any,  # transformers passes its own keys (auto_map, ...) this way
    ) -> None:
        if IMAGE_TOKEN not in tokenizer.get_vocab():
            # Not add_special_tokens, which would replace the LLM's own list of them.
            tokenizer.add_tokens([IMAGE_TOKEN], special_tokens=True)
        if tokenizer.pad_token_id is None:
            tokenizer.pad_token = tokenizer.eos_token
        tokenizer.padding_side = "left"
        self.tokenizer = tokenizer
        super().__init__(
            image_processor, tokenizer, chat_template=chat_template or tokenizer.chat_template
        )
        self.image_token = IMAGE_TOKEN
        self.image_token_id = tokenizer.convert_tokens_to_ids(IMAGE_TOKEN)
        self.chat = ChatEncoder(tokenizer, self.image_token_id)

    @property
    def chat_template(self) -> Any:
        """The tokenizer's: one template, wherever it is set, read or saved."""
        return self.tokenizer.chat_template

    @chat_template.setter
    def chat_template(self, template: Any) -> None:
        self.tokenizer.chat_template = template

    @property
    def model_input_names(self) -> list[str]:
        return [
            "input_ids", "attention_mask", "pixel_values", "image_grids", "prompt_mask", "modality_ids",
        ]  # fmt: skip

    def modality(self, name: str) -> tuple[int, bool]:
        """The id of a modality's image positions, and whether the model has to be told it.

        A model without LoRA for single modalities (as a merged one) is never told.

        Raises:
            EncodingError: the model has LoRA for others, and none for this one.
        """
        known = self.image_processor.modalities or []
        number = known.index(name) + 1 if name in known else 0
        if known and not number and name != IMAGE:
            raise EncodingError(f'the model has LoRA for {", ".join(known)}, and none for "{name}"')
        return number, bool(known) and name != IMAGE

    def length(self, messages: Sequence[tuple[str, Sequence[Any]]]) -> int:
        """Tokens of a conversation whose images are given as (width, height): nothing is decoded."""
        pieces = [
            (role, [p if isinstance(p, str) else self.tokens(p) for p in parts])
            for role, parts in messages
        ]
        return len(self.chat.encode(pieces)[0])

    def tokens(self, size: tuple[int, int]) -> ImageTokens:
        """What stands for a picture of (width, height) pixels among the pieces of a message."""
        return ImageTokens(self.image_processor.tokens(self.image_processor.grid(*size)))

    def encode(
        self,
        messages: Sequence[tuple[str, Sequence[str | Image.Image]]],
        add_generation_prompt: bool = False,
        continue_final_message: bool = False,
        modality: str = IMAGE,
    ) -> Encoded:
        """A conversation of text and pictures to ids, labels and patches.

        Args:
            messages: (role, pieces) in order; a piece is a string or a PIL picture.
            add_generation_prompt: end with the opening of an assistant turn.
            continue_final_message: leave the last turn open.
            modality: of what its pictures show, for a model with LoRA for several (VoRA, section 7);
                without pictures it says nothing.

        Raises:
            EncodingError: see ``modality`` and ``ChatEncoder.encode``; or a picture has more patches
                than the compressor takes.
        """
        pixel_values: list[np.ndarray] = []
        grids: list[tuple[int, int]] = []
        pieces: list[tuple[str, list[str | ImageTokens]]] = []
        for role, parts in messages:
            pieces.append((role, []))
            for part in parts:
                if isinstance(part, str):
                    pieces[-1][1].append(part)
                    continue
                patches, grid = self.image_processor.patches(part)
                pixel_values.append(patches)
                grids.append(grid)
                pieces[-1][1].append(ImageTokens(self.image_processor.tokens(grid)))
        ids, labels, spans = self.chat.encode(pieces, add_generation_prompt, continue_final_message)
        prompt_length = next((i for i, label in enumerate(labels) if label != -100), len(ids))
        number, told = self.modality(modality) if spans else (0, False)
        return Encoded(
            ids, labels, pixel_values, grids, prompt_length, spans, modality=number, told=told
        )

    def collate(self, encoded: Sequence[Encoded]) -> BatchFeature:
        """Prompts to one left-padded batch for ``generate``: tensors as ``forward`` names them."""
        longest = max(len(item.input_ids) for item in encoded)
        pad = self.tokenizer.pad_token_id
        ids = torch.full((len(encoded), longest), pad, dtype=torch.long)
        mask = torch.zeros_like(ids)
        prompt, modality = torch.zeros_like(ids), torch.zeros_like(ids)
        for row, item in enumerate(encoded):
            start = longest - len(item.input_ids)
            ids[row, start:] = torch.tensor(item.input_ids)
            mask[row, start:] = 1
            prompt[row, start : start + item.prompt_length] = 1
            for first, count in item.image_spans:
                modality[row, start + first : start + first + count] = item.modality
        data = {"input_ids": ids, "attention_mask": mask, "prompt_mask": prompt}
        if any(item.told for item in encoded):
            data["modality_ids"] = modality
        patches = [image for item in encoded for image in item.pixel_values]
        if patches:
            data["pixel_values"] = torch.from_numpy(np.concatenate(patches))
            data["image_grids"] = torch.tensor([grid for item in encoded for grid in item.grids])
        return BatchFeature(data)

    def apply_chat_template(
        self,
        conversation: Sequence[Any],
        chat_template: str | None = None,
        tokenize: bool = False,
        add_generation_prompt: bool = False,
        continue_final_message: bool = False,
        return_dict: bool = False,
        **kwargs: Any,  # return_tensors and what pipelines add; the result is always tensors
    ) -> Any:
        """transformers' chat entry point, with content that can never become control tokens.

        With ``tokenize=False`` the result is one string, which cannot be safe: for looking only.

        What is drawn as a picture, as a spectrogram, says so in its part, for a model with LoRA for it:
        ``{"type": "image", "modality": "audio", "path": ...}``.

        Raises:
            ValueError: a content part is neither text nor image, or a conversation has two modalities.
        """
        if chat_template is not None:
            raise ValueError("set chat_template of the processor instead of passing it")
        single = isinstance(conversation[0], dict)
        conversations = [conversation] if single else conversation
        encoded = [
            self.encode(
                [(m["role"], parse_content(m["content"])) for m in messages],
                add_generation_prompt,
                continue_final_message,
                _modality(messages),
            )
            for messages in conversations
        ]
        if not tokenize:
            texts = [self._collapse(item) for item in encoded]
            return texts[0] if single else texts
        batch = self.collate(encoded)
        return batch if return_dict else batch["input_ids"]

    def _collapse(self, item: Encoded) -> str:
        """Text of an encoded conversation with one image token per image."""
        ids = list(item.input_ids)
        for start, count in reversed(item.image_spans):
            del ids[start + 1 : start + count]
        return str(self.tokenizer.decode(ids, skip_special_tokens=False))

    def __call__(
        self,
        images: Any = None,
        text: str | Sequence[str] | None = None,
        modality: str = IMAGE,
        **kwargs: Any,  # return_tensors, padding: the result is always padded tensors
    ) -> BatchFeature:
        """Raw strings with one ``<|image_pad|>`` per image, as transformers' processors take them.

        The string is the prompt as it stands, control tokens included: for text from users go
        through ``apply_chat_template`` or ``encode``. Without a chat template it begins as the
        tokenizer begins a text, whether the string says so or not.

        Args:
            images: one, a list of all in the order of their tokens, or a list for each text.
            text: one or several.
            modality: of all images, as for ``encode``.

        Raises:
            ValueError: image tokens and images differ in number, in all or in a text that has a list of
                its own; or see ``modality``.
        """
        if text is None:
            raise ValueError("OculiProcessor needs text; for images alone call its image_processor")
        texts = [text] if isinstance(text, str) else list(text)
        queue = iter(_pictures(images, [item.count(IMAGE_TOKEN) for item in texts]))
        opening, (number, told) = self.chat.opening(), self.modality(modality)
        encoded = []
        for item in texts:
            first, *rest = item.split(IMAGE_TOKEN)
            begun = list(self.tokenizer(first, add_special_tokens=False)["input_ids"])
            ids = begun if begun[: len(opening)] == opening else opening + begun
            patches, grids, spans = [], [], []
            for part in rest:
                cut, grid = self.image_processor.patches(next(queue))
                patches.append(cut)
                grids.append(grid)
                count = self.image_processor.tokens(grid)
                spans.append((len(ids), count))
                ids += [self.image_token_id] * count
                ids += self.tokenizer(part, add_special_tokens=False)["input_ids"]
            labels = [-100] * len(ids)
            encoded.append(
                Encoded(ids, labels, patches, grids, len(ids), spans, modality=number, told=told)
            )
        return self.collate(encoded)


def parse_content(content: str | Sequence[dict[str, Any]]) -> list[str | Image.Image]:
    """A message's content in transformers' form to text and pictures, as their files have them.

    Raises:
        ValueError: a part is neither text nor image, or its picture cannot be told from it.
    """
    if isinstance(content, str):
        return [content]
    pieces: list[str | Image.Image] = []
    for part in content:
        kind = part.get("type")
        if kind == "text":
            pieces.append(part["text"])
        elif kind == "image":
            source = next(
                (part[key] for key in ("image", "url", "path", "base64") if key in part), None
            )
            if source is None:
                raise ValueError('an image part needs "image", "url", "path" or "base64"')
            pieces.append(open_picture(source))
        else:
            raise ValueError(f'a content part of type "{kind}" is neither text nor image')
    return pieces


def _modality(messages: Sequence[Any]) -> str:
    """What the parts of a conversation say; raises ValueError where they say several."""
    parts = [part for m in messages if not isinstance(m["content"], str) for part in m["content"]]
    said = {part.get("modality", IMAGE) for part in parts if part.get("type") == "image"}
    if len(said) > 1:
        raise ValueError(
            f"one conversation has pictures of {' and of '.join(sorted(map(str, said)))}"
        )
    return str(said.pop()) if said else IMAGE


def _pictures(images: Any, wanted: Sequence[int]) -> list[Image.Image]:
    """All pictures in order, ``wanted`` of each text; raises ValueError as the processor does."""
    if isinstance(images, (list, tuple)) and any(isinstance(x, (list, tuple)) for x in images):
        if len(images) != len(wanted):
            raise ValueError(f"{len(images)} lists of images for {len(wanted)} texts")
        lists = [_flatten(item) for item in images]
        for i, (found, count) in enumerate(zip(lists, wanted, strict=True)):
            if len(found) != count:
                raise ValueError(
                    f"text {i} has {count} times {IMAGE_TOKEN}, but its list holds {len(found)} images"
                )
        return [picture for found in lists for picture in found]
    pictures = _flatten(images)
    if sum(wanted) != len(pictures):
        raise ValueError(
            f"{sum(wanted)} times {IMAGE_TOKEN} in the text, but {len(pictures)} images"
        )
    return pictures


def _flatten(images: Any) -> list[Image.Image]:
    if images is None:
        return []
    if isinstance(images, (list, tuple)):
        return [picture for item in images for picture in _flatten(item)]
    return [open_picture(images)]


def open_picture(source: Any) -> Image.Image:
    """A picture from itself, a URL, a path, a data URL or base64, with its own mode and EXIF.

    transformers' ``load_image`` converts to RGB, and then nobody can scale 16-bit grey or lay alpha over
    white; see ``to_rgb``.

    Raises:
        ValueError: ``source`` is none of these.
    """
    if isinstance(source, Image.Image):
        return source
    try:
        if source.startswith(("http://", "https://")):
            with urlopen(source, timeout=60) as reply:
                data = reply.read()
        elif os.path.isfile(source):
            data = Path(source).read_bytes()
        else:
            data = base64.b64decode("".join(source.rpartition(",")[2].split()), validate=True)
        return Image.open(io.BytesIO(data))
    except (
        AttributeError, TypeError, ValueError, OSError, HTTPException, Image.DecompressionBombError,
    ) as error:  # fmt: skip
        raise ValueError(
            f"{str(source)[:200]!r} is no picture, and no URL, path or base64 of one that can be "
            f"opened: {error}"
        ) from error
