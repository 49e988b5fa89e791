"""The built-in ablations, by name."""

from __future__ import annotations

from oculi.ablate.aurora import compressor, table6
from oculi.ablate.spec import Ablation
from oculi.ablate.vlsa import ratio, table3
from oculi.ablate.vora_anyres import anyres
from oculi.ablate.vora_mask import mask
from oculi.ablate.vora_mixture import mixture
from oculi.ablate.vora_parts import fig5, fig6, fig7, table2
from oculi.ablate.vora_scaling import scaling
from oculi.ablate.vora_stability import fig4, rank
from oculi.ablate.vora_tokens import tokens
from oculi.errors import AblationError, nearest

ABLATIONS: dict[str, Ablation] = {
    ablation.name: ablation
    for ablation in (
        table2, fig4, rank, fig5, fig6, fig7, mask, scaling, mixture, anyres, tokens, table6,
        compressor, table3, ratio,
    )
}  # fmt: skip


def find_ablation(name: str) -> Ablation:
    """An ablation by name; raises AblationError with the nearest one."""
    if name not in ABLATIONS:
        raise AblationError(
            f'unknown ablation "{name}"{nearest(name, ABLATIONS)}; there are {", ".join(ABLATIONS)}'
        )
    return ABLATIONS[name]
