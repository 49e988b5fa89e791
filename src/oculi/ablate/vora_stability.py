"""What goes wrong with too much freedom: training the whole LLM (VoRA, figure 4), and a high rank."""

from __future__ import annotations

from oculi.ablate.spec import (
    Ablation,
    Claim,
    Contrast,
    Curves,
    Lines,
    Row,
    Shares,
    Term,
    difference,
)
from oculi.ablate.vora import LOSS, NOTES, SHARE, TEXT, TEXT_LOSS, pretraining

# The recipe's rate, the tenth of it that stands for the paper's "lower value", and two above.
_RATES = {"2e-4": 2e-4, "2e-3": 2e-3, "6e-3": 6e-3, "2e-2": 2e-2}
_OWN, _LOWER = "2e-3", "2e-4"
_FULL = (
    "model.lora=null", "stages.0.merge_lora=false",
    'stages.0.trainable={"llm.*": null, "vision.*": null, "objectives.*": null}',
)  # fmt: skip


def _trained(what: str, rate: str) -> Row:
    overrides = (f"stages.0.lr={rate}", *(_FULL if what == "full" else ()))
    return Row(f"{what}-{rate}", overrides, ("whole LLM" if what == "full" else "LoRA-r64", rate))


_LORA_ROWS = tuple(f"lora-{rate}" for rate in _RATES)
_FULL_ROWS = tuple(f"full-{rate}" for rate in _RATES)


def _over_rates(metric: str) -> dict[str, tuple[tuple[float, str, str], ...]]:
    return {
        label: tuple((rate, f"{what}-{name}", metric) for name, rate in _RATES.items())
        for label, what in (("LoRA", "lora"), ("whole LLM", "full"))
    }


fig4 = Ablation(
    name="vora-fig4",
    source="VoRA, figure 4 and section 5.2",
    question="Does training the whole LLM collapse or forget where LoRA does not?",
    base=pretraining,
    rows=tuple(_trained(what, rate) for what in ("lora", "full") for rate in _RATES),
    labels=("trained", "learning rate"),
    columns=(
        "loss", "spikes", "rise", "collapsed", "score", "text_loss", "text_rise", "text",
        "text_change",
    ),
    claims=(
        Claim(
            "the whole LLM collapses more often",
            "training the full LLM can lead to unrecoverable spikes; one success among several attempts",
            Shares(_FULL_ROWS, _LORA_ROWS, "collapsed"), "above", SHARE,
        ),
        Claim(
            "the whole LLM spikes or collapses more often",
            "training the full LLM is unstable, LoRA stabilises it (section 3.1)",
            Shares(_FULL_ROWS, _LORA_ROWS, "unstable"), "above", SHARE,
        ),
        Claim(
            "at a lower rate the whole LLM is slower",
            "at a lower learning rate the loss decreased more slowly than that of LoRA-1024",
            difference(f"full-{_LOWER}", f"lora-{_OWN}", "loss"), "above", LOSS,
        ),
        Claim(
            "the whole LLM forgets more",
            "coupled parameters lead to catastrophic forgetting of the original language abilities",
            difference(f"full-{_OWN}", f"lora-{_OWN}", "text_rise"), "above", TEXT_LOSS,
        ),
        Claim(
            "LoRA preserves the LLM's abilities",
            "LoRA encodes vision while preserving the language knowledge of the LLM (section 1)",
            Contrast((Term(1, f"lora-{_OWN}", "text_change"),)), "within", TEXT,
        ),
    ),
    figures=(
        Curves("loss", "lm", "LM loss of pre-training"),
        Lines(
            "score", "Exact match on Playroom", "learning rate", "%", _over_rates("score"),
            log_x=True,
        ),
        Lines(
            "text", "Rise of the loss on text-only skills", "learning rate", "nats per token",
            _over_rates("text_rise"), log_x=True,
        ),
    ),
    extras=("text",),
    notes=(
        *NOTES,
        "Gradients are clipped at a norm of 1, as by the defaults that the paper follows.",
    ),
)  # fmt: skip

_RANKS = (32, 64, 96)
_HIGH = "6e-3"


def _ranked(rank: int, rate: str) -> Row:
    return Row(
        f"r{rank}-{rate}", (f"model.lora.rank={rank}", f"stages.0.lr={rate}"),
        (f"LoRA-r{rank} (r{16 * rank})", rate),
    )  # fmt: skip


rank = Ablation(
    name="vora-rank",
    source="VoRA, section 5.2",
    question="Is a higher rank better, and the highest one unstable?",
    base=pretraining,
    rows=tuple(_ranked(rank, rate) for rate in (_OWN, _HIGH) for rank in _RANKS),
    labels=("Vision Params", "learning rate"),
    columns=("loss", "distill", "score", "spikes", "rise", "collapsed"),
    claims=(
        Claim(
            "half the rank, LM loss", "rank 512 has a slightly higher loss than 1024: +0.006",
            difference(f"r32-{_OWN}", f"r64-{_OWN}", "loss"), "above", LOSS,
        ),
        Claim(
            "half the rank, distillation", "and a higher distillation loss: +0.005",
            difference(f"r32-{_OWN}", f"r64-{_OWN}", "distill"), "above", LOSS,
        ),
        Claim(
            "the highest rank is unstable",
            "training instability with rank 1536, none reported with 1024",
            Shares(
                (f"r96-{_OWN}", f"r96-{_HIGH}"), (f"r64-{_OWN}", f"r64-{_HIGH}"), "unstable"
            ),
            "above", SHARE,
        ),
    ),
    figures=(Curves("loss", "lm", "LM loss of pre-training"),),
    notes=(*NOTES, "Every rank is also trained at three times the learning rate, nearer to the edge."),
)  # fmt: skip
