"""Score against samples beside LLaVA: the crossover that VoRA hopes for and did not see (section 6)."""

from __future__ import annotations

from collections.abc import Callable

from oculi.ablate.spec import Ablation, Claim, Contrast, Lines, Row, Term, difference
from oculi.ablate.vora import EVALS, SCORE
from oculi.recipe import Recipe
from oculi.recipes.tiny import llava_tiny, vora_tiny

_STEPS = (125, 250, 500, 1000)
_BATCH, _FINETUNING = 32, 250
_LEAST, _MOST = _STEPS[0], _STEPS[-1]


def _of_two_stages(beside: Callable[[], Recipe]) -> Recipe:
    recipe = beside()
    pretrain, finetune = recipe.stages
    often = {"log_every": 1, "checkpoint_every": 250}
    stages = (
        pretrain.model_copy(
            update={"batch": _BATCH, "schedule": "constant", "warmup_steps": 50, **often}
        ),
        finetune.model_copy(update={"steps": _FINETUNING, "warmup_steps": 50, **often}),
    )
    return recipe.model_copy(update={"stages": stages, "evals": EVALS, "keep_last": 1})


def vora() -> Recipe:
    """``vora_tiny`` with a constant learning rate in pre-training and a short fine-tuning."""
    return _of_two_stages(vora_tiny)


def llava() -> Recipe:
    """``llava_tiny`` the same way."""
    return _of_two_stages(llava_tiny)


_METHODS = {"vora": vora, "llava": llava}


def _row(method: str, steps: int) -> Row:
    samples = f"{_BATCH * steps:,}"
    name, base = f"{method}-{steps}", _METHODS[method]
    return Row(name, (f"stages.0.steps={steps}",), (method, samples), base=base)


def _gap(steps: int, sign: int = 1) -> tuple[Term, Term]:
    return Term(sign, f"vora-{steps}", "score"), Term(-sign, f"llava-{steps}", "score")


def _over_samples(metric: str) -> dict[str, tuple[tuple[float, str, str], ...]]:
    return {
        method: tuple((_BATCH * steps, f"{method}-{steps}", metric) for steps in _STEPS)
        for method in _METHODS
    }


scaling = Ablation(
    name="vora-scaling",
    source="VoRA, section 6 and table 3",
    question="Does VoRA reach LLaVA with more pre-training samples, and pass it?",
    base=vora,
    rows=tuple(_row(method, steps) for method in _METHODS for steps in _STEPS),
    labels=("method", "pre-training samples"),
    columns=("score", "pairs", "loss"),
    claims=(
        Claim(
            "VoRA needs more data",
            "VoRA relies on additional pre-training data, because the LLM has to learn to see",
            difference(f"vora-{_LEAST}", f"llava-{_LEAST}", "score"), "below", SCORE,
        ),
        Claim(
            "the gap closes with samples",
            "with a proper scale of additional data VoRA performs comparably (abstract)",
            Contrast((*_gap(_MOST), *_gap(_LEAST, -1))), "above", SCORE,
        ),
        Claim(
            "comparable at the most samples",
            "with additional data VoRA performs comparably (abstract; section 5.3, table 3)",
            difference(f"vora-{_MOST}", f"llava-{_MOST}", "score"), "within", 2 * SCORE,
        ),
        Claim(
            "the lines cross",
            "scaling VoRA could surpass encoder-based models; no clear crossover was observed",
            difference(f"vora-{_MOST}", f"llava-{_MOST}", "score"), "above", 0.0,
        ),
    ),
    figures=(
        Lines(
            "score", "Exact match after fine-tuning", "pre-training samples", "%",
            _over_samples("score"), log_x=True,
        ),
        Lines(
            "pairs", "Exact match on unseen colour-shape pairs", "pre-training samples", "%",
            _over_samples("pairs"), log_x=True,
        ),
    ),
    notes=(
        "Both see the same pre-training samples, where the paper gives VoRA 30M and LLaVA 558K, and "
        f"then the same {_BATCH * _FINETUNING:,} of fine-tuning.",
        "LLaVA's tower is VoRA's teacher, trained on pictures of this very world with the attributes of "
        "what they show: it has little to lose, where the paper hopes that a ViT loses information.",
        "Playroom's level 1, an LLM of 2.6M parameters. The loss is that of pre-training.",
    ),
)  # fmt: skip
