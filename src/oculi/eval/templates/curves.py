"""Curves as small inline SVG pictures that follow the page's colours, light or dark.

No text from a file enters a picture: names stand in the page beside it, where they are escaped,
and matplotlib would read a ``$`` in them as mathematics.
"""

from __future__ import annotations

import io
import re
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

from oculi.eval.templates.contents import Floats

BINS = 160  # of a curve's width; each gives at most two points, so a picture's size is bounded
_SMOOTHING = 20  # the window is this part of the curve
_DECADE = 10.0
_LARGEST = 1e30  # beyond, an axis with its margins may overflow
_WIDE = 1000.0  # from here on a log axis has ticks at powers of ten alone
_WIDTH, _HEIGHT = 3.4, 1.9  # inches of 72 points

# Stand-ins that matplotlib writes and the page's style sheet gives a meaning.
_INK, _RULE, _LINE = "#010101", "#020202", "#030303"
_COLOURS = {_INK: "var(--muted)", _RULE: "var(--rule)", _LINE: "currentColor"}


def curve(
    x: Floats,
    y: Floats,
    *,
    may_log: bool = False,
    exact: bool = False,
    breaks: Sequence[float] = (),
) -> str:
    """An ``<svg>``: the values faint, their running mean on top.

    Args:
        x, y: of one length, ``x`` rising; values of ``y`` that are not finite or beyond 1e30 are
            left out.
        may_log: draw a logarithmic axis if the values are positive and span a decade.
        exact: the values have no noise, draw no mean.
        breaks: rising; where the curve is interrupted, with a vertical line.

    Returns:
        the element's text, or "" if there is nothing to draw.
    """
    drawable = np.abs(y) <= _LARGEST  # False for NaN, too
    x, y = x[drawable], y[drawable]
    if not len(x):
        return ""
    cuts = np.searchsorted(x, breaks, side="right")
    settings: dict[Any, Any] = {
        "svg.fonttype": "none",
        "svg.hashsalt": "oculi",
        "path.simplify": False,
        "text.usetex": False,
    }
    with rc_context(settings):
        figure = Figure(figsize=(_WIDTH, _HEIGHT))
        axes = figure.add_axes((0.17, 0.2, 0.81, 0.75))
        _frame(axes)
        for place in breaks:
            axes.axvline(place, color=_RULE, linewidth=1, linestyle=(0, (3, 2)))
        for part_x, part_y in zip(np.split(x, cuts), np.split(y, cuts), strict=True):
            _draw(axes, part_x, part_y, BINS // (len(cuts) + 1), exact)
        _scale(axes, y, may_log)
        text = io.StringIO()
        nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
        figure.savefig(text, format="svg", transparent=True, metadata=nothing)
    return _inline(text.getvalue())


def _draw(axes: Axes, x: Floats, y: Floats, bins: int, exact: bool) -> None:
    if len(x) <= 2:
        axes.plot(x, y, color=_LINE, linewidth=0.8, marker="o", markersize=3)
    elif exact:
        axes.plot(*thinned(x, y, bins), color=_LINE, linewidth=1.6)
    else:
        axes.plot(*thinned(x, y, bins), color=_LINE, linewidth=0.8, alpha=0.35)
        axes.plot(*thinned(x, running_mean(y), bins), color=_LINE, linewidth=1.6)


def running_mean(y: Floats) -> Floats:
    """A centred mean over a twentieth of the curve, over what there is of it at both ends."""
    half = len(y) // (2 * _SMOOTHING)
    sums = np.concatenate([[0.0], np.cumsum(y)])
    places = np.arange(len(y))
    begin, end = np.maximum(places - half, 0), np.minimum(places + half + 1, len(y))
    means: Floats = (sums[end] - sums[begin]) / (end - begin)
    # Differences of sums carry the rounding of the largest value: keep within what there was.
    return np.clip(means, y.min(), y.max())


def thinned(x: Floats, y: Floats, bins: int) -> tuple[Floats, Floats]:
    """At most two points per bin, its lowest and its highest, so that no spike is lost."""
    if len(x) <= 2 * bins:
        return x, y
    kept: set[int] = {0, len(x) - 1}
    for part in np.array_split(np.arange(len(x)), bins - 1):
        kept |= {int(part[y[part].argmin()]), int(part[y[part].argmax()])}
    chosen = np.array(sorted(kept))
    return x[chosen], y[chosen]


def _frame(axes: Axes) -> None:
    axes.patch.set_visible(False)
    for side, spine in axes.spines.items():
        spine.set_visible(side in ("left", "bottom"))
        spine.set_color(_RULE)
    axes.tick_params(colors=_INK, labelsize=8, length=2, width=0.6)
    axes.grid(axis="y", color=_RULE, linewidth=0.5)
    axes.xaxis.set_major_locator(MaxNLocator(4, integer=True))
    axes.xaxis.set_major_formatter(FuncFormatter(_number))


def _scale(axes: Axes, y: Floats, may_log: bool) -> None:
    low, high = float(y.min()), float(y.max())
    if may_log and low > 1 / _LARGEST and high / low >= _DECADE:
        axes.set_yscale("log")
        many = high / low > _WIDE
        axes.yaxis.set_major_locator(
            LogLocator(subs=(1.0,) if many else (1.0, 2.0, 5.0), numticks=6)
        )
        axes.yaxis.set_minor_locator(NullLocator())
    else:
        axes.yaxis.set_major_locator(MaxNLocator(4))
    axes.yaxis.set_major_formatter(FuncFormatter(_number))


def _number(value: float, _: object = None) -> str:
    return f"{value:.4g}"


def _inline(svg: str) -> str:
    """What an HTML page needs of matplotlib's SVG file.

    Namespaces, the file's head and ids go: several pictures share the page, and an id must be
    unique in it. Clip paths and tick marks are referred to by id; theirs are hashes of their
    content, so equal ids mean equal things, and only the names of groups are dropped.
    """
    svg = svg[svg.index("<svg") :]
    parts = r"<metadata>.*?</metadata>|<style.*?</style>|<!--.*?-->"  # the style is page-wide
    svg = re.sub(parts, "", svg, flags=re.DOTALL)
    svg = re.sub(
        r"<svg [^>]*?(viewBox=\"[^\"]*\")[^>]*>", r'<svg \1 aria-hidden="true">', svg, count=1
    )
    svg = re.sub(r'<g id="[^"]*"', "<g", svg)
    svg = svg.replace("xlink:href", "href")
    svg = re.sub(r"font-size: ([\d.]+px); font-family: [^;\"]*", r"font-size: \1", svg)
    # Numbers of places alone: an axis label 0.0005 must stay what it is.
    svg = re.sub(r' (?:d|x|y)="[^"]*"', lambda found: _rounded(found[0]), svg)
    for stand_in, colour in _COLOURS.items():
        svg = svg.replace(stand_in, colour)
    return re.sub(r"\s*\n\s*", " ", svg).strip()


def _rounded(places: str) -> str:
    return re.sub(r"(\d\.\d\d)\d+", r"\1", places)
