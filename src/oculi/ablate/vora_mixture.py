"""Text mixed into pre-training against forgetting (VoRA, section 4.2 and table 1)."""

from __future__ import annotations

import json

from oculi.ablate.spec import Ablation, Claim, Contrast, Lines, Row, Term, difference
from oculi.ablate.vora import SCORE, STEPS, TEXT, TEXT_LOSS, pretraining
from oculi.recipe import LanguageSource, PlayroomSource, SourceSpec

# Samples of table 1, in millions.
PICTURES, TEXTS = 30.4, 6.4
_PLACES = 1_000_000
_PLAYROOM = PlayroomSource(level=1, samples=_PLACES)
_LANGUAGE = LanguageSource(samples=_PLACES, weight=TEXTS / PICTURES)
_AS_MANY_PICTURES = round(STEPS * (PICTURES + TEXTS) / PICTURES)

ROWS = ALONE, MIXED, SAME_STEPS = "pictures", "mixed", "mixed-same-steps"


def _row(name: str, sources: tuple[SourceSpec, ...], steps: int, told: str) -> Row:
    data = json.dumps([source.model_dump(mode="json") for source in sources])
    return Row(name, (f"stages.0.data={data}", f"stages.0.steps={steps}"), (told, f"{steps}"))


_MIXTURE = f"pictures and text, {PICTURES} : {TEXTS}"
_ROWS = (
    _row(ALONE, (_PLAYROOM,), STEPS, "pictures alone"),
    _row(MIXED, (_PLAYROOM, _LANGUAGE), _AS_MANY_PICTURES, _MIXTURE),
    _row(SAME_STEPS, (_PLAYROOM, _LANGUAGE), STEPS, _MIXTURE),
)


def _bars(metric: str) -> tuple[tuple[float, str, str], ...]:
    return tuple((number, row.name, metric) for number, row in enumerate(_ROWS))


mixture = Ablation(
    name="vora-mixture",
    source="VoRA, section 4.2 and table 1",
    question="Does training on pictures alone cost text ability, and does mixed-in text keep it?",
    base=pretraining,
    rows=_ROWS,
    labels=("data", "steps"),
    columns=(
        "text_loss_before", "text_loss", "text_rise", "text_before", "text", "text_change", "score",
        "pairs",
    ),
    claims=(
        Claim(
            "pictures alone cost text ability",
            "extended caption-only training slightly degrades the LLM's instruction following",
            Contrast((Term(1, ALONE, "text_rise"),)), "above", TEXT_LOSS,
        ),
        Claim(
            "pictures alone cost right answers", "the same, as exact match",
            Contrast((Term(1, ALONE, "text_change"),)), "below", TEXT,
        ),
        Claim(
            "mixed training keeps text ability",
            "to preserve this ability, we mixed text instruction data into the training data",
            Contrast((Term(1, MIXED, "text_rise"),)), "below", -TEXT_LOSS,
        ),
        Claim(
            "mixed training keeps right answers", "the same, as exact match",
            Contrast((Term(1, MIXED, "text_change"),)), "above", -TEXT,
        ),
        Claim(
            "mixing helps text", "a mixture of image and text data alleviates forgetting (table 1)",
            difference(MIXED, ALONE, "text"), "above", TEXT,
        ),
        Claim(
            "mixing costs nothing in seeing",
            "no number; all of the paper's models are trained on the mixture. As many pictures",
            difference(MIXED, ALONE, "score"), "above", -2 * SCORE,
        ),
        Claim(
            "nor in as many steps", "no number; fewer pictures, by the share of text",
            difference(SAME_STEPS, ALONE, "score"), "above", -2 * SCORE,
        ),
    ),
    figures=(
        Lines(
            "text", "Loss on text-only skills", "0: pictures, 1: mixed, 2: mixed, as many steps",
            "nats per token",
            {"before training": _bars("text_loss_before"), "after": _bars("text_loss")},
        ),
    ),
    extras=("text",),
    varied=("data",),
    notes=(
        "Playroom's level 1, an LLM of 2.6M parameters and a teacher of 5 blocks, instead of DataComp, "
        "7B and 24 blocks. Questions and answers, not captions.",
        "The text is what the LLM was pre-trained on, new dialogues of it, and a part of it practises "
        "the skills that are tested: the easiest case of keeping an ability. The test's questions are "
        "of other dice, but 44 % of 1,400 are also among 137,000 training prompts (of 200 each: add "
        "176, subtract 187, copy 54, spell 200, sort numbers 1, sort words and reverse 0).",
        "The proportion is one of samples, as in table 1. A dialogue has about six times as many "
        "answer tokens as a question about a picture, so that most of the mixed rows' loss is text's.",
        "Scores are of the merged model, without fine-tuning. The LM loss of pre-training is of other "
        "data from row to row, and is not compared.",
    ),
)  # fmt: skip
