"""Fewer vision tokens: what VoRA names as a limitation, and the two ways out of it that it names."""

from __future__ import annotations

from oculi.ablate.spec import Ablation, Claim, Curves, Lines, Row, difference
from oculi.ablate.vora import NOTES, SCORE, pretraining

ALL, HALF, QUARTER, LARGE = "patches-36", "merged-18", "merged-9", "large-patches-9"
# Limits of patches go with their size: a picture of 84 pixels is 6 x 6 of 14 or 3 x 3 of 28.
_LARGE = ("model.vision.patch_size=28", "model.images.min_patches=4", "model.images.max_patches=16")


def _merged(name: str, factor: int) -> Row:
    overrides = (f"model.compress={{kind: merge, factor: {factor}}}",)
    return Row(name, overrides, ("14", f"1 of {factor}"))


def _against_cost(metric: str) -> dict[str, tuple[tuple[str, str, str], ...]]:
    return {
        "patches of 14, merged": tuple(("macs", row, metric) for row in (QUARTER, HALF, ALL)),
        "patches of 28": tuple(("macs", row, metric) for row in (LARGE, ALL)),
    }


tokens = Ablation(
    name="vora-tokens",
    source="VoRA, section 6",
    question="What do fewer vision tokens cost in score, and save in work?",
    base=pretraining,
    rows=(
        Row(ALL, (), ("14", "all")),
        _merged(HALF, 2),
        _merged(QUARTER, 4),
        Row(LARGE, _LARGE, ("28", "all")),
    ),
    labels=("patch", "tokens kept"),
    columns=("tokens", "macs", "score", "pairs", "loss", "distill"),
    claims=(
        Claim(
            "half of the tokens score the same",
            "the defect could be mitigated through token merging techniques (section 6)",
            difference(HALF, ALL, "score"), "within", 2 * SCORE,
        ),
        Claim(
            "a quarter of the tokens scores the same",
            "the same; AIM merges to a quarter without training (arXiv 2412.03248)",
            difference(QUARTER, ALL, "score"), "within", 2 * SCORE,
        ),
        Claim(
            "larger patches score the same",
            "the defect could be mitigated through larger patch sizes (section 6)",
            difference(LARGE, ALL, "score"), "within", 2 * SCORE,
        ),
        Claim(
            "merging beats larger patches",
            "not the paper's: of as many tokens, those chosen by what they show should say more",
            difference(QUARTER, LARGE, "score"), "above", SCORE,
        ),
    ),
    figures=(
        Lines(
            "score", "Exact match against the work of reading a picture", "MMAC", "%",
            _against_cost("score"),
        ),
        Lines(
            "pairs", "Exact match on unseen colour-shape pairs", "MMAC", "%", _against_cost("pairs")
        ),
        Curves("loss", "lm", "LM loss of pre-training"),
    ),
    extras=("cost",),
    notes=(
        *NOTES,
        "The paper has no such experiment: claims say what its limitation section hopes for.",
        "Tokens are merged by the similarity of patch embeddings, which know nothing but their pixels "
        "and place; AIM merges what a ViT has made of them. The 40 tokens of text are always read.",
        "Patches of 28 start from the teacher's filters at half of the resolution; their target is the "
        "mean of the teacher's four states. Distillation losses of rows have different targets.",
    ),
)  # fmt: skip
