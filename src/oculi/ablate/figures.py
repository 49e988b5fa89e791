"""Curves and points of an ablation as SVG files with their own colours, for a page on the web."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from oculi.ablate.judge import Results
from oculi.ablate.metrics import named, running_mean, window_of
from oculi.ablate.spec import Curves, Lines

_COLOURS = ("#4477aa", "#ee6677", "#228833", "#ccbb44", "#66ccee", "#aa3377", "#777777", "#222222")
_STYLES = ("-", "--")
_SETTINGS: Mapping[Any, Any] = {
    "svg.fonttype": "none", "svg.hashsalt": "oculi", "text.usetex": False, "font.size": 9,
}  # fmt: skip
_POINTS = 200  # of a line, at most


def draw(
    figure: Curves | Lines, rows: Sequence[str], seeds: Sequence[int], results: Results
) -> str:
    """The text of an SVG file.

    Args:
        figure: what to draw. rows: of the ablation, for curves that name none.
        seeds: those whose runs are all there.
    """
    with rc_context(dict(_SETTINGS)):
        page = Figure(figsize=(6.4, 3.8))
        axes = page.add_axes((0.1, 0.13, 0.87, 0.78))
        axes.set_title(figure.title, fontsize=10)
        if isinstance(figure, Curves):
            _curves(axes, figure, figure.rows or rows, seeds, results)
        else:
            _lines(axes, figure, seeds, results)
        axes.grid(color="#dddddd", linewidth=0.5)
        if axes.get_legend_handles_labels()[0]:
            axes.legend(fontsize=7, frameon=False)
        text = io.StringIO()
        nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
        page.savefig(text, format="svg", metadata=nothing)
    return text.getvalue()


def _curves(
    axes: Axes, figure: Curves, rows: Sequence[str], seeds: Sequence[int], results: Results
) -> None:
    window = 1
    for number, row in enumerate(rows):
        found = [results[row, seed].curves.get(figure.value) for seed in seeds]
        curves = [curve for curve in found if curve is not None and len(curve) > 1]
        if not curves:
            continue
        shortest = min(len(curve) for curve in curves)  # a collapsed run ends early
        window = window_of(shortest)
        mean = running_mean(np.mean([curve[:shortest] for curve in curves], axis=0))
        steps = np.arange(window, shortest + 1)
        chosen = np.unique(np.linspace(0, len(mean) - 1, _POINTS).round().astype(int))
        axes.plot(steps[chosen], mean[chosen], label=row, **_look(number))
    axes.set_xlabel(f"step (running mean over {window}, mean over seeds)")


def _lines(axes: Axes, figure: Lines, seeds: Sequence[int], results: Results) -> None:
    metric = ""
    for number, (label, points) in enumerate(figure.series.items()):
        places: list[tuple[float, float, float, float]] = []
        for x, row, metric in points:
            known = _known(row, metric, seeds, results)
            across = _known(row, x, seeds, results) if isinstance(x, str) else [x]
            if known and across:
                places.append(
                    (float(np.mean(across)), float(np.mean(known)), min(known), max(known))
                )
        if not places:
            continue
        x, mean, low, high = np.array(places).T
        scale = 100.0 if named(metric).percent else 1.0
        bars = scale * np.array([mean - low, high - mean])
        look = _look(number)
        axes.errorbar(x, scale * mean, yerr=bars, marker="o", markersize=3, label=label, **look)
    if figure.log_x:
        axes.set_xscale("log")
    axes.set_xlabel(figure.x)
    axes.set_ylabel(figure.y)


def _known(row: str, metric: str, seeds: Sequence[int], results: Results) -> list[float]:
    found = [results[row, seed].values.get(metric) for seed in seeds]
    return [value for value in found if value is not None]


def _look(number: int) -> dict[str, Any]:
    return {
        "color": _COLOURS[number % len(_COLOURS)], "linewidth": 1.2,
        "linestyle": _STYLES[number // len(_COLOURS) % 2],
    }  # fmt: skip
