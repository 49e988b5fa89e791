"""Scores and pictures of restorations, as files that can be committed: Markdown, PNG, JSON."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from oculi.ablate.intervals import Interval, bootstrap
from oculi.reconstruct.metrics import Floats, psnr, ssim
from oculi.reconstruct.probe import Pixels, Restored

SHOWN = 8  # pictures in the PNG
MEASURES = {"PSNR": psnr, "SSIM": ssim}
GAP = 4


def scores(found: Restored) -> dict[str, dict[str, Floats]]:
    """By measure and condition, one number a picture."""
    kinds = {"own": found.own, "others": found.others, "latents": found.latents}
    return {
        name: {kind: measure(made, found.originals) for kind, made in kinds.items()}
        for name, measure in MEASURES.items()
    }


def write(out: Path, command: str, found: Mapping[str, Restored]) -> list[str]:
    """Write ``report.md``, ``pictures.png`` and ``scores.json`` into a folder.

    Args:
        command: that made them.
        found: restorations by checkpoint, of the same pictures; the first is compared with the others.

    Returns:
        the lines of the table and of the differences.
    """
    out.mkdir(parents=True, exist_ok=True)
    by_name = {name: scores(each) for name, each in found.items()}
    lines = [*_table(by_name), "", *_differences(by_name)]
    first = next(iter(found.values()))
    text = [
        "# Pictures restored from what the LLM is given",
        "",
        f"Made by `{command}`. {len(first.originals)} pictures; each checkpoint's Epigone and denoiser "
        "were trained anew, for as many steps with the same pictures and noise. *Others* are restored "
        "from the tokens of the next picture, from the same noise. PSNR in dB, mean and 95 % interval "
        "over pictures.",
        "",
        *lines,
        "",
        "![restored pictures](pictures.png)",
        "",
        "Rows: the picture; through the autoencoder alone; then for each checkpoint from its own tokens "
        "and from others': " + ", ".join(found) + ".",
    ]
    (out / "report.md").write_text("\n".join(text) + "\n", encoding="utf-8")
    rows = [first.originals, first.latents]
    for each in found.values():
        rows += [each.own, each.others]
    sheet(rows).save(out / "pictures.png")
    numbers = {
        name: {m: {k: [round(float(v), 4) for v in values] for k, values in kinds.items()}
               for m, kinds in measures.items()}
        for name, measures in by_name.items()
    }  # fmt: skip
    (out / "scores.json").write_text(json.dumps(numbers, indent=1) + "\n", encoding="utf-8")
    return lines


def sheet(rows: Sequence[Pixels]) -> Image.Image:
    """The first pictures of each row, side by side."""
    shown = [
        np.pad(row[:SHOWN], ((0, 0), (0, GAP), (0, GAP), (0, 0)), constant_values=255)
        for row in rows
    ]
    return Image.fromarray(np.concatenate([np.concatenate(list(row), 1) for row in shown], 0))


def _table(by_name: Mapping[str, Mapping[str, Mapping[str, Floats]]]) -> list[str]:
    lines = ["| checkpoint | measure | own tokens | others' tokens | autoencoder alone |"]
    lines.append("|---|---|---|---|---|")
    for name, measures in by_name.items():
        for measure, kinds in measures.items():
            cells = [_shown(_interval(kinds[kind])) for kind in ("own", "others", "latents")]
            lines.append(f"| {name} | {measure} | {' | '.join(cells)} |")
    return lines


def _differences(by_name: Mapping[str, Mapping[str, Mapping[str, Floats]]]) -> list[str]:
    lines = []
    for measure in MEASURES:
        for name, measures in by_name.items():
            kinds = measures[measure]
            gap = _shown(_interval(kinds["own"] - kinds["others"]))
            lines.append(f"- {measure}, {name}: own tokens against others': {gap}")
        first, *others = by_name
        for name in others:
            gap = _shown(_interval(by_name[first][measure]["own"] - by_name[name][measure]["own"]))
            lines.append(f"- {measure}: {first} against {name}: {gap}")
    return lines


def _interval(values: Floats) -> Interval:
    return bootstrap(values[None])


def _shown(interval: Interval) -> str:
    return f"{interval.effect:.3f} ({interval.low:.3f} to {interval.high:.3f})"
