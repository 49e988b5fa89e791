"""Scores and pictures of restorations, as files that can be committed: Markdown, PNG, JSON."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from oculi.ablate.intervals import Interval, bootstrap
from oculi.objectives.exhibit import sheet
from oculi.objectives.likeness import Floats, psnr, ssim
from oculi.objectives.restoring import LEVELS, OWN, SHUFFLED, kind
from oculi.reconstruct.probe import Restored

SHOWN = 8  # pictures in the PNG
PAGE, PICTURES, SCORES = "report.md", "pictures.png", "scores.json"
MEASURES = {"PSNR": psnr, "SSIM": ssim}
LATENTS = "latents"
TOKENS = {OWN: "own tokens", SHUFFLED: "shuffled tokens"}
# None: drawn from noise alone.
STARTS: dict[float | None, str] = {None: "noise alone"}
STARTS |= {level: f"noise level {level}" for level in LEVELS}
PICTURED = (None, LEVELS[1])  # starts of the rows in the PNG


@dataclass(frozen=True)
class Difference:
    """Paired over pictures, with its 95 % interval.

    Attributes:
        measure: a key of ``MEASURES``. start: of ``STARTS``.
        of, minus: checkpoint and whose tokens, of what is compared.
    """

    measure: str
    start: float | None
    of: tuple[str, str]
    minus: tuple[str, str]
    interval: Interval


def scores(found: Restored) -> dict[str, dict[str, Floats]]:
    """By measure and condition, one number a picture."""
    shown = {**found.found, LATENTS: found.latents}
    return {
        name: {each: measure(pixels, found.originals) for each, pixels in shown.items()}
        for name, measure in MEASURES.items()
    }


def differences(by_name: Mapping[str, Mapping[str, Mapping[str, Floats]]]) -> list[Difference]:
    """Own tokens against shuffled ones, of each checkpoint; the first's own against the others'."""
    first, *others = by_name
    pairs = [((name, OWN), (name, SHUFFLED)) for name in by_name]
    pairs += [((first, OWN), (name, OWN)) for name in others]

    def gap(measure: str, start: float | None, *sides: tuple[str, str]) -> Difference:
        of, minus = (by_name[name][measure][kind(tokens, start)] for name, tokens in sides)
        return Difference(measure, start, sides[0], sides[1], _interval(of - minus))

    return [
        gap(measure, start, *pair) for pair in pairs for start in STARTS for measure in MEASURES
    ]


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
        "were trained anew, for as many steps with the same pictures and noise. *Noise alone* is drawn "
        "in many steps; from a noise level one step restores the latent. *Shuffled* is restored from the"
        " tokens of the next picture and the same noise. PSNR in dB; means and 95 % intervals over "
        "pictures, differences paired by picture.",
        "",
        *lines,
        "",
        "![restored pictures](pictures.png)",
        "",
        "Rows: the picture; through the autoencoder alone; then for each checkpoint, from "
        + " and from ".join(STARTS[start] for start in PICTURED)
        + ", from its own tokens and from shuffled ones: "
        + ", ".join(found)
        + ".",
    ]
    (out / PAGE).write_text("\n".join(text) + "\n", encoding="utf-8")
    rows = [first.originals, first.latents]
    for each in found.values():
        rows += [each.found[kind(tokens, start)] for start in PICTURED for tokens in TOKENS]
    sheet(rows, SHOWN).save(out / PICTURES)
    numbers = _numbers(command, len(first.originals), by_name, gaps)
    (out / SCORES).write_text(json.dumps(numbers, indent=1) + "\n", encoding="utf-8")
    return lines


def _table(by_name: Mapping[str, Mapping[str, Mapping[str, Floats]]]) -> list[str]:
    lines = [
        f"| checkpoint | measure | from | {' | '.join(TOKENS.values())} | autoencoder alone |",
        "|---|---|---|---|---|---|",
    ]
    for name, measures in by_name.items():
        for measure, kinds in measures.items():
            for start, shown in STARTS.items():
                names = [*(kind(tokens, start) for tokens in TOKENS), LATENTS]
                cells = [_shown(_interval(kinds[each])) for each in names]
                lines.append(f"| {name} | {measure} | {shown} | {' | '.join(cells)} |")
    return lines


def _gaps(gaps: Sequence[Difference]) -> list[str]:
    lines = ["| difference | measure | from | mean and 95 % interval |", "|---|---|---|---|"]
    for gap in gaps:
        of, minus = (f"{name}, {TOKENS[tokens]}" for name, tokens in (gap.of, gap.minus))
        lines.append(
            f"| {of} - {minus} | {gap.measure} | {STARTS[gap.start]} | {_shown(gap.interval)} |"
        )
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
                    each: {**_bounds(_interval(values)), "values": [_rounded(v) for v in values]}
                    for each, values in kinds.items()
                }
                for measure, kinds in measures.items()
            }
            for name, measures in by_name.items()
        },
        "differences": [
            {
                "measure": gap.measure,
                "of": _side(gap.of, gap.start),
                "minus": _side(gap.minus, gap.start),
                **_bounds(gap.interval),
            }
            for gap in gaps
        ],
    }


def _side(side: tuple[str, str], start: float | None) -> dict[str, str]:
    name, tokens = side
    return {"checkpoint": name, "tokens": kind(tokens, start)}


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
