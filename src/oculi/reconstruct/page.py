"""Scores and pictures of restorations, as files that can be committed: Markdown, PNG, JSON."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from oculi.ablate.intervals import Interval, bootstrap
from oculi.reconstruct.metrics import Floats, psnr, ssim
from oculi.reconstruct.probe import Pixels, Restored

SHOWN = 8  # pictures in the PNG
PAGE, PICTURES, SCORES = "report.md", "pictures.png", "scores.json"
MEASURES = {"PSNR": psnr, "SSIM": ssim}
OWN, SHUFFLED = "own", "shuffled"
KINDS = {OWN: "own tokens", SHUFFLED: "shuffled tokens", "latents": "autoencoder alone"}
GAP = 4


@dataclass(frozen=True)
class Difference:
    """Paired over pictures, with its 95 % interval.

    Attributes:
        measure: a key of ``MEASURES``. of, minus: checkpoint and condition that are compared.
    """

    measure: str
    of: tuple[str, str]
    minus: tuple[str, str]
    interval: Interval


def scores(found: Restored) -> dict[str, dict[str, Floats]]:
    """By measure and condition, one number a picture."""
    return {
        name: {kind: measure(getattr(found, kind), found.originals) for kind in KINDS}
        for name, measure in MEASURES.items()
    }


def differences(by_name: Mapping[str, Mapping[str, Mapping[str, Floats]]]) -> list[Difference]:
    """Own tokens against shuffled ones, of each checkpoint; the first's own against the others'."""
    first, *others = by_name
    pairs = [((name, OWN), (name, SHUFFLED)) for name in by_name]
    pairs += [((first, OWN), (name, OWN)) for name in others]
    return [
        Difference(
            measure, of, minus,
            _interval(by_name[of[0]][measure][of[1]] - by_name[minus[0]][measure][minus[1]]),
        )
        for of, minus in pairs
        for measure in MEASURES
    ]  # fmt: skip


def write(out: Path, command: str, found: Mapping[str, Restored]) -> list[str]:
    """Write ``report.md``, ``pictures.png`` and ``scores.json`` into a folder.

    Args:
        command: that made them.
        found: restorations by checkpoint, of the same pictures; the first is compared with the others.

    Returns:
        the lines of the tables.
    """
    out.mkdir(parents=True, exist_ok=True)
    by_name = {name: scores(each) for name, each in found.items()}
    gaps = differences(by_name)
    lines = [*_table(by_name), "", *_gaps(gaps)]
    first = next(iter(found.values()))
    text = [
        "# Pictures restored from what the LLM is given",
        "",
        f"Made by `{command}`. {len(first.originals)} pictures; each checkpoint's Epigone and denoiser "
        "were trained anew, for as many steps with the same pictures and noise. *Shuffled* is restored "
        "from the tokens of the next picture, from the same noise. PSNR in dB; means and 95 % intervals "
        "over pictures, differences paired by picture.",
        "",
        *lines,
        "",
        "![restored pictures](pictures.png)",
        "",
        "Rows: the picture; through the autoencoder alone; then for each checkpoint from its own tokens "
        "and from shuffled ones: " + ", ".join(found) + ".",
    ]
    (out / PAGE).write_text("\n".join(text) + "\n", encoding="utf-8")
    rows = [first.originals, first.latents]
    for each in found.values():
        rows += [each.own, each.shuffled]
    sheet(rows).save(out / PICTURES)
    numbers = _numbers(command, len(first.originals), by_name, gaps)
    (out / SCORES).write_text(json.dumps(numbers, indent=1) + "\n", encoding="utf-8")
    return lines


def sheet(rows: Sequence[Pixels]) -> Image.Image:
    """The first pictures of each row, side by side."""
    shown = [
        np.pad(row[:SHOWN], ((0, 0), (0, GAP), (0, GAP), (0, 0)), constant_values=255)
        for row in rows
    ]
    return Image.fromarray(np.concatenate([np.concatenate(list(row), 1) for row in shown], 0))


def _table(by_name: Mapping[str, Mapping[str, Mapping[str, Floats]]]) -> list[str]:
    lines = [f"| checkpoint | measure | {' | '.join(KINDS.values())} |", "|---|---|---|---|---|"]
    for name, measures in by_name.items():
        for measure, kinds in measures.items():
            cells = [_shown(_interval(kinds[kind])) for kind in KINDS]
            lines.append(f"| {name} | {measure} | {' | '.join(cells)} |")
    return lines


def _gaps(gaps: Sequence[Difference]) -> list[str]:
    lines = ["| difference | measure | mean and 95 % interval |", "|---|---|---|"]
    for gap in gaps:
        of, minus = (f"{name}, {KINDS[kind]}" for name, kind in (gap.of, gap.minus))
        lines.append(f"| {of} - {minus} | {gap.measure} | {_shown(gap.interval)} |")
    return lines


def _numbers(
    command: str,
    pictures: int,
    by_name: Mapping[str, Mapping[str, Mapping[str, Floats]]],
    gaps: Sequence[Difference],
) -> dict[str, Any]:
    """What is in the tables, and every picture's score."""
    return {
        "command": command,
        "pictures": pictures,
        "checkpoints": {
            name: {
                measure: {
                    kind: {**_bounds(_interval(values)), "values": [_rounded(v) for v in values]}
                    for kind, values in kinds.items()
                }
                for measure, kinds in measures.items()
            }
            for name, measures in by_name.items()
        },
        "differences": [
            {
                "measure": gap.measure,
                "of": dict(zip(("checkpoint", "tokens"), gap.of, strict=True)),
                "minus": dict(zip(("checkpoint", "tokens"), gap.minus, strict=True)),
                **_bounds(gap.interval),
            }
            for gap in gaps
        ],
    }


def _bounds(interval: Interval) -> dict[str, float]:
    return {
        "mean": _rounded(interval.effect), "low": _rounded(interval.low), "high": _rounded(interval.high)
    }  # fmt: skip


def _rounded(value: float) -> float:
    return round(float(value), 4)


def _interval(values: Floats) -> Interval:
    return bootstrap(values[None])


def _shown(interval: Interval) -> str:
    return f"{interval.effect:.3f} ({interval.low:.3f} to {interval.high:.3f})"
