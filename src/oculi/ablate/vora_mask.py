"""What the mask inside an image does to the LLM's language (VoRA, section 3.3)."""

from __future__ import annotations

from oculi.ablate.spec import Ablation, Claim, Curves, difference
from oculi.ablate.vora import LABELS, NOTES, TEXT, TEXT_LOSS, pretraining
from oculi.ablate.vora_parts import BEST, CAUSAL, only

mask = Ablation(
    name="vora-mask",
    source="VoRA, section 3.3",
    question="Does it cost language that an image sees itself whole?",
    base=pretraining,
    rows=only((), {CAUSAL: (), BEST: ()}),
    labels=LABELS,
    columns=("text_loss_before", "text_loss", "text_rise", "text", "text_change", "score", "loss"),
    claims=(
        Claim(
            "a bidirectional image keeps language",
            "bidirectional attention for vision with causal masking for text preserves language "
            "capabilities",
            difference(BEST, CAUSAL, "text_rise"), "below", -TEXT_LOSS,
        ),
        Claim(
            "a bidirectional image keeps right answers", "the same, as exact match",
            difference(BEST, CAUSAL, "text_change"), "above", -TEXT,
        ),
    ),
    figures=(Curves("loss", "lm", "LM loss of pre-training"),),
    extras=("text",),
    notes=(
        *NOTES,
        "Without an image in front of it text has the same mask in both rows: what can differ is what "
        "LoRA has made of the LLM. The claims set one row beside the other, not beside the LLM before "
        "training; what pictures alone cost it is vora-mixture's question.",
        "What the mask does to seeing is in vora-table2 and vora-fig5, from the same runs.",
    ),
)  # fmt: skip
