"""The curves of a run as figures: losses stage by stage, what tells its health over all of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from oculi.eval.templates.contents import Floats, StageLog
from oculi.eval.templates.curves import curve
from oculi.eval.templates.markup import NAME, text

MOST = 24  # figures in all; each takes about 25 ms
_COLOURS = 6
_HEALTH = (
    ("lr", "learning rate", False, True),
    ("samples_per_second", "samples per second", False, False),
    ("grad_norm", "gradient norm, before clipping", True, False),
)


@dataclass(frozen=True)
class _Panel:
    name: str
    colour: str
    x: Floats
    y: Floats
    may_log: bool = False
    exact: bool = False
    breaks: Sequence[float] = ()


def curves(stages: Sequence[StageLog]) -> str:
    """Small pictures of one size; an objective has one colour in all stages."""
    if not stages:
        return "<p>No step has been logged.</p>"
    names = dict.fromkeys(name for stage in stages for name in stage.objectives)
    colours = {name: f"var(--c{i % _COLOURS})" for i, name in enumerate(names)}
    left = MOST - len(_HEALTH)
    parts = [
        '<p class="quiet">Faint: as logged. Strong: a running mean over a twentieth of the '
        "curve.</p>"
    ]
    for stage in stages:
        panels = _losses(stage, colours)
        shown, left = panels[:left], max(0, left - len(panels))
        rest = "" if len(shown) == len(panels) else '<p class="quiet">More are left out.</p>'
        parts.append(f"<h3>Losses in {text(stage.name, NAME)}, by step</h3>{_grid(shown)}{rest}")
    lines = "; dashed lines part the stages" if len(stages) > 1 else ""
    parts.append(f"<h3>The whole run, by step{lines}</h3>{_grid(_health(stages))}")
    return "".join(parts)


def _losses(stage: StageLog, colours: dict[str, str]) -> list[_Panel]:
    panels = [
        _Panel(name, colours[name], stage.steps, stage.values[name], True)
        for name in stage.objectives
    ]
    # The total of one objective is that objective again.
    if len(panels) != 1 and "loss" in stage.values:
        total = _Panel("loss, the total", "var(--ink)", stage.steps, stage.values["loss"], True)
        panels.insert(0, total)
    return panels


def _health(stages: Sequence[StageLog]) -> list[_Panel]:
    starts = np.cumsum([0.0, *(stage.steps[-1] for stage in stages)])
    steps = np.concatenate([s.steps + start for s, start in zip(stages, starts[:-1], strict=True)])
    panels = []
    for key, title, may_log, exact in _HEALTH:
        values = [stage.values.get(key, np.full(len(stage.steps), np.nan)) for stage in stages]
        kind = (may_log, exact, starts[1:-1].tolist())
        panels.append(_Panel(title, "var(--ink)", steps, np.concatenate(values), *kind))
    return panels


def _grid(panels: Sequence[_Panel]) -> str:
    return f'<div class="curves">{"".join(map(_figure, panels))}</div>'


def _figure(panel: _Panel) -> str:
    drawn = curve(panel.x, panel.y, may_log=panel.may_log, exact=panel.exact, breaks=panel.breaks)
    finite = panel.y[np.isfinite(panel.y)]
    said = "nothing to draw: no finite value"
    if len(finite):
        said = f"last {finite[-1]:.4g}, lowest {finite.min():.4g}, highest {finite.max():.4g}"
    return (
        f'<figure style="--line:{panel.colour}"><figcaption><b>{text(panel.name, NAME)}</b> '
        f"<small>{said}</small></figcaption>{drawn}</figure>"
    )
