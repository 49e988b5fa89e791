"""Conversations to token ids, such that text can never become a control token or an image.

Rendering a chat template to one string and tokenizing that cannot be made safe: ``<|im_end|>`` in a
user's sentence would end his turn. So the template is rendered with stand-ins for every piece of
content, cut at the stand-ins, and each segment is encoded on its own: the template's with control
tokens, the content's with a copy of the tokenizer that knows none.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from jinja2 import TemplateError
from tokenizers import Tokenizer

from .encoding_error_oculi import EncodingError

# Private-use characters; only the template is rendered with them, so content cannot collide.
_OPEN, _CLOSE = "\ue0f0", "\ue0f1"

FALLBACK_TEMPLATE = (
    "{% for message in messages %}{{ message['role'] }}: {{ message['content'] }}"
    "{% if message['role'] == 'assistant' %}{{ eos_token }}{% endif %}{{ '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)


@dataclass(frozen=True)
class Segment:
    """A stretch of the rendered template, or (``content`` set) the place of content piece ``content``.

    The first ``ends`` of ``ids`` end an assistant's turn.
    """

    ids: tuple[int, ...] = ()
    content: int | None = None
    ends: int = 0


@dataclass(frozen=True)
class ImageTokens:
    """Stands among the pieces of a message for ``count`` positions of one image."""

    count: int


class ChatEncoder:
    """Encodes conversations with one tokenizer.

    Args:
        tokenizer: a fast tokenizer; its chat template is used, or a plain one if it has none.
        image_token_id: the id put at image positions.

    Raises:
        ValueError: the tokenizer is not a fast one.
    """

    def __init__(self, tokenizer: Any, image_token_id: int) -> None:
        if not getattr(tokenizer, "is_fast", False):
            raise ValueError(
                f"{type(tokenizer).__name__} is not a fast tokenizer: its added tokens cannot be "
                "switched off, so text could become control tokens"
            )
        self.tokenizer = tokenizer
        self.image_token_id = image_token_id
        self.control_ids = {
            *tokenizer.added_tokens_decoder,
            *tokenizer.all_special_ids,
            image_token_id,
        }
        self._plain = _without_added_tokens(tokenizer)
        # A plain dictionary, because an lru_cache cannot be pickled for a loader's worker.
        self._rendered: dict[tuple[Any, ...], tuple[Segment, ...]] = {}

    def encode_text(self, text: str) -> list[int]:
        """Token ids of content, in which no added token is recognised whatever the text says."""
        encoding = self._plain.encode(text, add_special_tokens=False)
        ids = list(encoding.ids)
        if self.control_ids.isdisjoint(ids):
            return ids
        unk_token_id = self.tokenizer.unk_token_id  # looked up once: a property that searches
        for token_id, (start, end) in zip(ids, encoding.offsets, strict=True):
            unknown = token_id == unk_token_id
            if unknown and text[start:end] != self.tokenizer.unk_token:
                continue  # a character that the vocabulary lacks controls nothing
            if token_id in self.control_ids:
                # A Unigram vocabulary may hold the spelling of a control token; cut inside of it.
                cut = start + 1
                if cut >= len(text):
                    raise EncodingError(f"the text {text!r} has no spelling but a control token")
                return self.encode_text(text[:cut]) + self.encode_text(text[cut:])
        return ids

    def encode(
        self,
        messages: Sequence[tuple[str, Sequence[str | ImageTokens]]],
        add_generation_prompt: bool = False,
        continue_final_message: bool = False,
    ) -> tuple[list[int], list[int], list[tuple[int, int]]]:
        """A conversation to ids, labels and image positions.

        Args:
            messages: (role, pieces); a piece is text or ``ImageTokens``.
            add_generation_prompt: end with the opening of an assistant turn.
            continue_final_message: end with the last message's content, its turn left open.

        Returns:
            ids and labels, both as long; a label is -100 except on the assistant's text and on the
            token that ends his turn. Then (start, count) of the positions of each image.

        Raises:
            EncodingError: a role is not a plain word, the template refuses the roles or loses content,
                or a text has no spelling but a control token.
        """
        shape = tuple((role, len(pieces)) for role, pieces in messages)
        contents = [(role, piece) for role, pieces in messages for piece in pieces]
        ids: list[int] = []
        labels: list[int] = []
        spans: list[tuple[int, int]] = []
        for segment in self._segments(shape, add_generation_prompt, continue_final_message):
            if segment.content is None:
                ids += segment.ids
                labels += segment.ids[: segment.ends]
                labels += [-100] * (len(segment.ids) - segment.ends)
                continue
            role, piece = contents[segment.content]
            if isinstance(piece, ImageTokens):
                spans.append((len(ids), piece.count))
                ids += [self.image_token_id] * piece.count
                labels += [-100] * piece.count
                continue
            text_ids = self.encode_text(piece)
            ids += text_ids
            labels += text_ids if role == "assistant" else [-100] * len(text_ids)
        return ids, labels, spans

    def opening(self) -> list[int]:
        """Ids in front of a conversation, where no template says: what the tokenizer itself puts there.

        Its post-processor decides, not its having a BOS: GPT-2's has one that it never adds.
        """
        if self.tokenizer.chat_template:
            return []
        whole = list(self.tokenizer("x")["input_ids"])
        bare = list(self.tokenizer("x", add_special_tokens=False)["input_ids"])
        for start in range(len(whole)):
            if whole[start : start + len(bare)] == bare:
                return whole[:start]
        return []

    def end_of_turn(self) -> list[int]:
        """Ids that end an answer: the tokenizer's, and the template's where that is another."""
        _, labels, _ = self.encode([("user", ["?"]), ("assistant", ["!"])])
        ends = {label for label in labels if label in self.control_ids}
        return sorted(ends | {self.tokenizer.eos_token_id})

    def _segments(
        self, shape: tuple[tuple[str, int], ...], generation: bool, continue_final: bool
    ) -> tuple[Segment, ...]:
        """The template for a conversation of this shape: depends on roles alone, so it is kept."""
        key = (str(self.tokenizer.chat_template), shape, generation, continue_final)
        if key not in self._rendered:
            if len(self._rendered) >= 1024:
                self._rendered.clear()
            self._rendered[key] = self._render(shape, generation, continue_final)
        return self._rendered[key]

    def _render(
        self, shape: tuple[tuple[str, int], ...], generation: bool, continue_final: bool
    ) -> tuple[Segment, ...]:
        count = 0
        messages = []
        speakers: list[str] = []
        for role, pieces in shape:
            if not role.isidentifier():  # it is rendered with the template, control tokens and all
                raise EncodingError(f"the role {role!r} is not a plain word")
            content = "".join(f"{_OPEN}{count + i}{_CLOSE}" for i in range(pieces))
            messages.append({"role": role, "content": content})
            speakers += [role] * pieces
            count += pieces
        roles = ", ".join(role for role, _ in shape)
        try:
            text = self.tokenizer.apply_chat_template(
                messages,
                chat_template=None if self.tokenizer.chat_template else FALLBACK_TEMPLATE,
                tokenize=False,
                add_generation_prompt=generation,
                continue_final_message=continue_final,
            )
        except TemplateError as error:  # its author's raise_exception, or a mistake in it
            raise EncodingError(
                f"the tokenizer's chat template refuses a conversation with the roles {roles}: "
                f"{str(error)!r}"
            ) from None
        opening = tuple(self.opening())
        segments = [Segment(ids=opening)] if opening else []
        seen: list[int] = []
        for i, part in enumerate(text.split(_OPEN)):
            literal = part
            if i > 0:
                number, literal = part.split(_CLOSE, 1)
                seen.append(int(number))
                segments.append(Segment(content=int(number)))
            if literal:
                ids = tuple(self.tokenizer(literal, add_special_tokens=False)["input_ids"])
                answered = bool(seen) and speakers[seen[-1]] == "assistant"
                segments.append(Segment(ids=ids, ends=self._ends(ids) if answered else 0))
        if seen != list(range(count)):
            raise EncodingError(
                "the tokenizer's chat template drops, repeats or reorders content, so it cannot be "
                f"used for a conversation with the roles {roles}"
            )
        return tuple(segments)

    def _ends(self, ids: tuple[int, ...]) -> int:
        """How many of the ids behind an answer end its turn: a control token, and space before it.

        Not the EOS alone: a base model's is ``<|endoftext|>``, and ChatML ends with ``<|im_end|>``.
        """
        for i, token_id in enumerate(ids):
            if token_id in self.control_ids:
                return i + 1
            if not str(self.tokenizer.decode([token_id])).isspace():
                break
        return 0


def _without_added_tokens(tokenizer: Any) -> Tokenizer:
    """A copy of the tokenizer's core that splits ``<|im_end|>`` as it splits any other text."""
    state = json.loads(tokenizer.backend_tokenizer.to_str())
    state["added_tokens"] = []
    state["post_processor"] = None
    state["truncation"] = state["padding"] = None
    return Tokenizer.from_str(json.dumps(state))
