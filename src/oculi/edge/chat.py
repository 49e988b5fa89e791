"""Conversations to token ids, with the chat template as fixed ids: no Jinja, and text stays text.

``ChatEncoder`` renders the template with stand-ins for content and cuts it there; the export keeps what
stands between contents. Content goes through a copy of the tokenizer that knows no added token, as
there, so that ``<|im_end|>`` in a question ends no turn.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from tokenizers import Tokenizer

from oculi.edge.folder import AGAIN, Chat
from oculi.errors import CheckpointError, DataError

Piece = str | int  # text, or the number of tokens of a picture
Message = tuple[str, Sequence[Piece]]


class Encoder:
    """Encodes conversations and decodes answers.

    Args:
        path: ``tokenizer.json``.
        chat: the template as ids.

    Raises:
        CheckpointError: the file is no tokenizer.
    """

    def __init__(self, path: Path, chat: Chat) -> None:
        self.chat = chat
        self._control = frozenset(chat.control_ids)
        try:
            text = path.read_text(encoding="utf-8")
            self.tokenizer = Tokenizer.from_str(text)
            state = {**json.loads(text), "added_tokens": [], "post_processor": None}
            self._plain = Tokenizer.from_str(
                json.dumps({**state, "truncation": None, "padding": None})
            )
        except Exception:  # tokenizers raises bare Exceptions
            raise CheckpointError(f"{path} is no tokenizer; {AGAIN}") from None

    def encode(self, messages: Sequence[Message]) -> tuple[list[int], list[tuple[int, int]], int]:
        """A conversation that ends with a question to the ids of its prompt.

        Args:
            messages: (role, pieces); a piece is text, or how many positions a picture takes.

        Returns:
            the ids; (start, count) of the positions of each picture; tokens before the first answer.

        Raises:
            DataError: the roles are not an optional system message and then user and assistant by
                turns, ending with the user; or the template cannot take so many turns.
        """
        self._check_roles([role for role, _ in messages])
        ids = list(self.chat.begin[messages[0][0]])
        spans: list[tuple[int, int]] = []
        prompt: int | None = None
        for i, (role, pieces) in enumerate(messages):
            if i:
                ids += self.chat.between[f"{messages[i - 1][0]} {role}"]
            if role == "assistant" and prompt is None:
                prompt = len(ids)
            for piece in pieces:
                if isinstance(piece, int):
                    spans.append((len(ids), piece))
                    ids += [self.chat.image_token_id] * piece
                else:
                    ids += self.encode_text(piece)
        ids += self.chat.generate
        return ids, spans, len(ids) if prompt is None else prompt

    def _check_roles(self, roles: list[str]) -> None:
        talk = roles[1:] if roles[:1] == ["system"] else roles
        wanted = ["assistant" if i % 2 else "user" for i in range(len(talk))]
        if not talk or talk != wanted or talk[-1] != "user":
            raise DataError(
                f"a conversation of {', '.join(roles) or 'nobody'}: an optional system message, then "
                "user and assistant by turns, is what can be answered, and the user must be the last"
            )
        if talk is not roles and not self.chat.system:
            raise DataError("this model's chat template has no place for a system message")
        if 0 < self.chat.turns < (len(talk) + 1) // 2:
            raise DataError(
                "this model's chat template writes turns otherwise as more follow, so this runner takes "
                f"conversations of {self.chat.turns} question(s)"
            )

    def encode_text(self, text: str) -> list[int]:
        """Ids of content, in which no added token is recognised whatever the text says.

        Raises:
            DataError: the text has no spelling but a control token, or cannot be encoded.
        """
        try:
            encoding = self._plain.encode(text, add_special_tokens=False)
        except Exception:  # lone surrogates, which no tokenizer takes
            raise DataError("the text holds characters that are no Unicode") from None
        ids: list[int] = list(encoding.ids)
        if self._control.isdisjoint(ids):
            return ids
        for token_id, (start, end) in zip(ids, encoding.offsets, strict=True):
            if token_id == self.chat.unk_token_id and text[start:end] != self.chat.unk_token:
                continue
            if token_id in self._control:
                cut = start + 1
                if cut >= len(text):
                    raise DataError(f"the text {text!r} has no spelling but a control token")
                return self.encode_text(text[:cut]) + self.encode_text(text[cut:])
        return ids

    def decode(self, ids: Sequence[int]) -> str:
        """Text of generated ids, without special tokens."""
        return str(self.tokenizer.decode(list(ids), skip_special_tokens=True))
