"""What is measured of a run, by name, and how its numbers are written."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

LAST = 0.1  # share of a stage's steps that a final value is the mean of
WINDOW = 50  # steps of a running mean; the paper's is 100, of longer runs (figure 5)
UNRECOVERED = 0.5  # nats per token that a collapsed run ends above its best running mean


@dataclass(frozen=True)
class Metric:
    """How a number is called and written.

    Attributes:
        title: of a column. digits: after the point. percent: a share, shown in per cent.
        what: the definition, for the report.
    """

    title: str
    what: str
    digits: int = 3
    percent: bool = False


METRICS = {
    "loss": Metric("LM loss", "nats per answer token, mean over the last tenth of pre-training"),
    "distill": Metric("distillation", "1 - cosine, mean over blocks and the last tenth", 4),
    "spikes": Metric("spikes", "losses more than 6 deviations above the 128 before", 1),
    "spiked": Metric("spiked", "whether there was a loss spike", 2),
    "collapsed": Metric(
        "collapsed",
        "the loss or gradient was not finite, or the loss ended "
        f"{UNRECOVERED} above its lowest running mean",
        2,
    ),
    "unstable": Metric("unstable", "spiked or collapsed", 2),
    "rise": Metric("rise", "last running mean of the LM loss less the lowest one", 3),
    "score": Metric("exact match", "free generation, merged model", 1, percent=True),
    "pairs": Metric("unseen pairs", "exact match on held-out colour-shape pairs", 1, percent=True),
    "tokens": Metric("image tokens", "in the LLM, mean over pictures", 0),
    "text_loss_before": Metric("text loss before", "text loss of the LLM before training"),
    "text_before": Metric("text before", "exact match on skills before training", 1, percent=True),
    "text_loss": Metric("text loss", "nats per answer token on text-only skills, after training"),
    "text_rise": Metric("text loss rise", "text loss less that of the LLM before training"),
    "text": Metric("text", "exact match on text-only skills, after training", 1, percent=True),
    "text_change": Metric(
        "text change", "exact match on skills less that before training", 1, percent=True
    ),
    "block": Metric("block", "cosine of a block with the teacher's, held-out pictures", 3),
    "steps": Metric("steps", "relative number of steps to a loss, see the levels", 1, percent=True),
    "macs": Metric(
        "MMAC",
        "millions of multiply-accumulates to read such a picture and 40 tokens of text, merged: vision "
        "part, LLM and its attention",
        1,
    ),
    "macs_168": Metric("MMAC", "the same of a picture of 168 x 168 pixels", 1),
    "shuffled": Metric(
        "shuffled",
        "exact match where the fusion module alone reads other pictures",
        1,
        percent=True,
    ),
    "prefill": Metric("ms", "median time of a prefill of one picture, on this machine: advice", 1),
    "samples": Metric("samples", "of pre-training", 0),
    "correlation": Metric("correlation", "Spearman's", 2),
}


def named(name: str) -> Metric:
    """The metric of a name such as ``loss``, ``score:colour``, ``block.2`` or ``steps@late``.

    Raises:
        ValueError: there is none.
    """
    head, *tail = re.split("[:.@]", name, maxsplit=1)
    if head not in METRICS:
        raise ValueError(f'there is no metric "{name}"; there are {", ".join(METRICS)}')
    found = METRICS[head]
    if not tail:
        return found
    title = tail[0] if head == "score" else f"{found.title} {tail[0]}"
    return Metric(title, found.what, found.digits, found.percent)


def shown_value(name: str, value: float) -> str:
    """A value in the metric's own unit, per cent for shares."""
    metric = named(name)
    return f"{100 * value:.{metric.digits}f} %" if metric.percent else f"{value:.{metric.digits}f}"


def shown_difference(name: str, *values: float, sign: str = "+") -> str:
    """Differences of a metric: the first, and the others in brackets; of shares, in points."""
    metric = named(name)
    scale, unit = (100, " points") if metric.percent else (1, "")
    first, *others = (f"{scale * value:{sign}.{metric.digits}f}" for value in values)
    return first + unit + (f" [{', '.join(others)}]" if others else "")


def logged(run: Path, stage: str) -> dict[str, Floats]:
    """What every step of a stage has logged, by name; ``step`` is one of them."""
    entries = _lines(run / "metrics.jsonl", stage)
    keys = [key for key, value in entries[-1].items() if _number(value)] if entries else []
    return {key: np.array([float(entry.get(key, math.nan)) for entry in entries]) for key in keys}


def spikes(run: Path, stage: str) -> int:
    """Number of loss spikes that a run has written down."""
    return sum(entry["event"] == "loss spike" for entry in _lines(run / "events.jsonl", stage))


def json_lines(path: Path) -> list[dict[str, Any]]:
    """The entries of a file with one in a line."""
    # Not splitlines: a text may hold a separator of its own, which JSON leaves as it is.
    lines = path.read_text(encoding="utf-8").split("\n")
    return [json.loads(line) for line in lines if line]


def final_mean(values: Floats) -> float:
    """Mean over the last tenth, of at least one value."""
    return float(values[-max(1, round(LAST * len(values))) :].mean())


def running_mean(values: Floats) -> Floats:
    """Mean of each value and those before it in the window; entry 0 is of the first whole window."""
    window = window_of(len(values))
    sums = np.concatenate([[0.0], np.cumsum(values)])
    means: Floats = (sums[window:] - sums[:-window]) / window
    return means


def window_of(steps: int) -> int:
    """Steps of the running mean: 50, or a quarter of a run that is shorter than 200."""
    return max(1, min(WINDOW, steps // 4))


def steps_to(values: Floats, level: float) -> float:
    """Steps after which the running mean first is at a level or below; NaN if it never is."""
    reached = np.flatnonzero(running_mean(values) <= level)
    return float(reached[0] + window_of(len(values))) if len(reached) else math.nan


def level_at(values: Floats, share: float) -> float:
    """The running mean after a share of the steps."""
    means, window = running_mean(values), window_of(len(values))
    return float(means[min(len(means) - 1, max(0, round(share * len(values)) - window))])


def stability(losses: Floats, spike_count: int, finite: bool) -> dict[str, float]:
    """Metrics of whether training went well.

    Args:
        losses: LM loss of every step.
        spike_count: see ``spikes``.
        finite: whether the run went to its end.
    """
    means = running_mean(losses) if len(losses) else np.array([math.nan])
    rise = float(means[-1] - means.min())
    collapsed = not finite or rise > UNRECOVERED
    return {
        "spikes": float(spike_count), "spiked": float(spike_count > 0),
        "rise": rise if finite else math.nan, "collapsed": float(collapsed),
        "unstable": float(collapsed or spike_count > 0),
    }  # fmt: skip


def relative_steps(
    curves: Mapping[str, Floats], baseline: str, shares: Mapping[str, float]
) -> dict[str, dict[str, float]]:
    """Relative steps to the baseline's losses, by row, for runs of one seed.

    Args:
        curves: LM loss of every step, by row.
        baseline: the row whose running means after ``shares`` of its steps are the levels.
    """
    base = curves[baseline]
    found: dict[str, dict[str, float]] = {row: {} for row in curves}
    for name, share in shares.items():
        level = level_at(base, share)
        for row, losses in curves.items():
            found[row][f"steps@{name}"] = steps_to(losses, level) / steps_to(base, level)
    return found


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _lines(path: Path, stage: str) -> list[dict[str, Any]]:
    return [e for e in json_lines(path) if e["stage"] == stage] if path.exists() else []
