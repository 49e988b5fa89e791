"""Mask, distillation and rank: VoRA's table 2 and figures 5 to 7, which are about the same runs.

`--runs` lets one ablation take the runs of another: the rows and recipes are the same.
"""

from __future__ import annotations

from collections.abc import Mapping

from oculi.ablate.spec import (
    Ablation,
    Claim,
    Contrast,
    Correlation,
    Curves,
    Levels,
    Lines,
    Row,
    Term,
    difference,
)
from oculi.ablate.vora import KINDS, LABELS, LOSS, NOTES, SAVED, SCORE, pretraining

_PAPER = ("TQA", "POPE", "MMEp", "MMB", "SEED-I", "MMVet", "AI2D", "RQA", "Avg.")
BEST, CAUSAL, LAST = "bidirectional-block", "causal-block", "bidirectional-last"
NONE, VANILLA, HALF = "bidirectional-none", "causal-none", "bidirectional-block-half-rank"
_MODES = {"N.A.": "none", "Last-block": "last", "Block-wise": "block"}


def _row(name: str, rank: int, mask: str, distillation: str, paper: str) -> Row:
    mode = _MODES[distillation]
    overrides = [
        f"model.image_attention={mask.lower()}", f"stages.0.objectives.1.mode={mode}",
        f"model.lora.rank={rank}",
    ]  # fmt: skip
    if mode == "none":  # there are no heads to train, and a glob must match something
        overrides.append('stages.0.trainable={"llm.*.lora_?": null, "vision.*": null}')
    labels = (f"LoRA-r{rank} (r{16 * rank})", mask, distillation)
    return Row(name, tuple(overrides), labels, dict(zip(_PAPER, paper.split(), strict=True)))


TABLE_2 = (
    _row(VANILLA, 64, "Causal", "N.A.", "43.7 78.6 1137.7 47.7 57.8 20.6 49.9 49.7 50.6"),
    _row(NONE, 64, "Bidirectional", "N.A.", "43.6 80.9 1132.8 49.1 58.7 17.9 47.2 51.5 50.7"),
    _row(CAUSAL, 64, "Causal", "Block-wise", "45.1 82.7 1172.9 52.9 63.7 20.1 50.9 51.2 53.2"),
    _row(LAST, 64, "Bidirectional", "Last-block", "44.6 82.5 1197.5 51.8 63.8 17.9 49.9 52.8 52.9"),
    _row(HALF, 32, "Bidirectional", "Block-wise", "47.2 83.3 1280.5 57.6 65.3 18.5 55.9 53.1 55.6"),
    _row(BEST, 64, "Bidirectional", "Block-wise", "50.1 83.8 1224.5 53.7 65.1 22.8 52.1 55.8 55.6"),
)
_ROWS = tuple(row.name for row in TABLE_2)
_LOSS_CURVES = Curves("loss", "lm", "LM loss of pre-training")


def only(columns: tuple[str, ...], paper: Mapping[str, tuple[str, ...]]) -> tuple[Row, ...]:
    """Rows of table 2 with other numbers of the paper, by column; none where it gives none."""
    return tuple(
        Row(
            r.name,
            r.overrides,
            r.labels,
            dict(zip(columns, paper[r.name], strict=bool(paper[r.name]))),
        )
        for r in TABLE_2
        if r.name in paper
    )


table2 = Ablation(
    name="vora-table2",
    source="VoRA, table 2",
    question="What do the mask, the kind of distillation and the rank bring?",
    base=pretraining,
    rows=TABLE_2,
    labels=LABELS,
    columns=(*(f"score:{kind}" for kind in KINDS), "score", "pairs", "loss"),
    claims=(
        Claim(
            "mask, with distillation",
            "causal to bidirectional with block-wise distillation: 53.2 to 55.6, +2.4 points",
            difference(BEST, CAUSAL, "score"), "above", SCORE,
        ),
        Claim(
            "mask, without distillation",
            "causal to bidirectional without distillation: 50.6 to 50.7, +0.1 points",
            difference(NONE, VANILLA, "score"), "above", 0.0,
        ),
        Claim(
            "distilling the last block",
            "none to last block: 50.7 to 52.9, +2.2 points (section 5.2 says 2.7)",
            difference(LAST, NONE, "score"), "above", SCORE,
        ),
        Claim(
            "distilling every block",
            "last block to every block: 52.9 to 55.6, +2.7 points",
            difference(BEST, LAST, "score"), "above", SCORE,
        ),
        Claim(
            "half the rank scores the same",
            "rank 512 and rank 1024: 55.6 both",
            difference(HALF, BEST, "score"), "within", 2 * SCORE,
        ),
        Claim(
            "lower loss, better score",
            "lower loss during pre-training correlates with better performance (caption)",
            Correlation("loss", "score", _ROWS), "below", 0.0,
        ),
    ),
    figures=(_LOSS_CURVES,),
    notes=NOTES,
)  # fmt: skip

fig5 = Ablation(
    name="vora-fig5",
    source="VoRA, figure 5 and section 5.2",
    question="Which configuration has the lowest language modelling loss?",
    base=pretraining,
    # Section 5.2, added up: half the rank +0.006, and 0.016 for each step of distillation.
    rows=only(
        ("loss above the best",),
        {VANILLA: (), CAUSAL: (), BEST: ("0",), HALF: ("0.006",), LAST: ("0.016",), NONE: ("0.032",)},
    ),
    labels=LABELS,
    columns=("loss", "distill", "score"),
    claims=(
        Claim(
            "mask, with distillation",
            "bidirectional has consistently lower loss than causal (block-wise distillation)",
            difference(BEST, CAUSAL, "loss"), "below", LOSS,
        ),
        Claim(
            "mask, without distillation",
            "bidirectional has consistently lower loss than causal (no distillation)",
            difference(NONE, VANILLA, "loss"), "below", LOSS,
        ),
        Claim(
            "distilling the last block", "none to last block: loss -0.016",
            difference(LAST, NONE, "loss"), "below", LOSS,
        ),
        Claim(
            "distilling every block", "last block to every block: loss another -0.016",
            difference(BEST, LAST, "loss"), "below", LOSS,
        ),
        Claim(
            "half the rank", "rank 512 has a slightly higher loss than rank 1024: +0.006",
            difference(HALF, BEST, "loss"), "above", LOSS,
        ),
    ),
    figures=(_LOSS_CURVES,),
    notes=NOTES,
)  # fmt: skip

_BLOCKS = range(5)
_DISTILLED = (CAUSAL, LAST, HALF, BEST)

fig6 = Ablation(
    name="vora-fig6",
    source="VoRA, figure 6",
    question="How close do the LLM's blocks come to the teacher's?",
    base=pretraining,
    rows=only(
        ("distillation above the best",), {CAUSAL: (), LAST: (), BEST: ("0",), HALF: ("0.005",)}
    ),
    labels=LABELS,
    columns=("distill", *(f"block.{block}" for block in _BLOCKS)),
    claims=(
        Claim(
            "mask", "bidirectional attention reduces the average distillation loss over all blocks",
            difference(BEST, CAUSAL, "distill"), "below", LOSS,
        ),
        Claim(
            "half the rank", "rank 512 has a higher average distillation loss than 1024: +0.005",
            difference(HALF, BEST, "distill"), "above", LOSS,
        ),
    ),
    figures=(
        Curves("distill", "distill", "Distillation loss, mean over blocks", (CAUSAL, HALF, BEST)),
        Lines(
            "blocks", "Cosine with the teacher's block, held-out pictures", "block", "cosine",
            {row: tuple((block, row, f"block.{block}") for block in _BLOCKS) for row in _DISTILLED},
        ),
    ),
    extras=("blocks",),
    notes=(
        *NOTES,
        "Distilling the last block alone trains the head of that block only: one point, and its "
        "distillation loss is that block's.",
    ),
)  # fmt: skip

_LEVELS = {"early": 0.3, "middle": 0.5, "late": 0.75}


def _widening(row: str) -> Contrast:
    return Contrast((Term(1, row, "steps@late"), Term(-1, row, "steps@early")))


fig7 = Ablation(
    name="vora-fig7",
    source="VoRA, figure 7",
    question="How many steps are saved, and does the advantage widen as the loss falls?",
    base=pretraining,
    rows=only(
        ("steps to loss 1.5 (%)", "to loss 1.1 (%)"),
        {VANILLA: ("100", "100"), NONE: ("102.2", "84.3"), BEST: ("95.7", "64.5")},
    ),
    labels=LABELS,
    columns=(*(f"steps@{level}" for level in _LEVELS), "loss"),
    claims=(
        Claim(
            "the mask saves steps", "84.3 % of vanilla LoRA's steps to loss 1.1",
            difference(NONE, VANILLA, "steps@late"), "below", SAVED,
        ),
        Claim(
            "mask and distillation save steps", "64.5 % of vanilla LoRA's steps to loss 1.1",
            difference(BEST, VANILLA, "steps@late"), "below", SAVED,
        ),
        Claim(
            "the mask's advantage widens", "102.2 % of the steps to loss 1.5, 84.3 % to 1.1",
            _widening(NONE), "below", SAVED,
        ),
        Claim(
            "the advantage of both widens", "95.7 % of the steps to loss 1.5, 64.5 % to 1.1",
            _widening(BEST), "below", SAVED,
        ),
    ),
    figures=(
        _LOSS_CURVES,
        Lines(
            "steps", "Steps to a loss, relative to vanilla LoRA",
            "share of vanilla LoRA's steps after which its loss is the level", "relative steps, %",
            {
                row: tuple((share, row, f"steps@{level}") for level, share in _LEVELS.items())
                for row in (VANILLA, NONE, BEST)
            },
        ),
    ),
    levels=Levels(VANILLA, _LEVELS),
    notes=NOTES,
)  # fmt: skip
