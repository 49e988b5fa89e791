"""The tiny checkpoints' tokenizer: byte-level BPE of 1,024 ids with Qwen's special tokens.

Bytes are its alphabet, so any text survives the round trip, in Unicode's composed form (NFC): that
is Qwen2's rule, and `AutoTokenizer` applies it whatever the folder of a Qwen2 model says. Digits
stand alone, so that arithmetic can be learnt; the chat template is ChatML without a default system
prompt.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from oculi.testbed import language
from oculi.testbed.words import WORDS

VOCABULARY = 1024
PAD, START, END = "<|endoftext|>", "<|im_start|>", "<|im_end|>"
VISION_START, VISION_END, IMAGE = "<|vision_start|>", "<|vision_end|>", "<|image_pad|>"
SPECIAL = (PAD, START, END, VISION_START, VISION_END, IMAGE)

CHAT_TEMPLATE = (
    "{%- for message in messages %}"
    "{{- '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}"
    "{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}"
)
# Qwen2's cut of text into words; \p{N} alone is a single digit.
_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}|"
    r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_RANDOM = re.compile(r"\b(?!(?:SIZE|COLOUR|SHAPE|PLACE|ONE|TWO)\b)[A-Z]{2,}\b")
_TURNS = 12000
_ROLES = ("system", "user", "assistant", "You are a helpful assistant.", "Describe the image.")


def corpus() -> Iterator[str]:
    """Yield the text that merges are learnt from: the pre-training text, and each word often.

    Random capitals are left out: letters that have to be read are best told one by one.
    """
    for index in range(_TURNS):
        one = language.turn("train", index)
        for turn in (one, *(language.drill("train", index, 3) if index % 8 == 0 else ())):
            yield _RANDOM.sub("", turn.prompt)
            yield _RANDOM.sub("", turn.answer)
    for word in (*WORDS, *_ROLES):
        yield from (f"{word} {word} {word.capitalize()}",) * 20


def train() -> Any:
    """Return the tokenizer, trained anew, as a transformers fast tokenizer."""
    from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    raw = Tokenizer(models.BPE())
    raw.normalizer = normalizers.NFC()
    raw.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_WORDS), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    raw.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=list(SPECIAL),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    raw.train_from_iterator(corpus(), trainer)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=raw,
        eos_token=END,
        pad_token=PAD,
        additional_special_tokens=[START, VISION_START, VISION_END, IMAGE],
        model_max_length=4096,
        clean_up_tokenization_spaces=False,
    )
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer
