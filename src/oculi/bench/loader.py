"""``oculi bench loader``: pictures a second, from files to a batch, beside the naive way.

The naive way is what the released VoRA code and most fine-tuning scripts do: open, pad to a square, and
let transformers' processor resize, scale and normalise in float32. Ours cuts patches of the same size as
uint8, and the model normalises them where it runs. Both also encode the text of the sample.

Processor seconds are compared, not the clock's: they are what a core can do, whoever else uses it.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from PIL import Image
from transformers import CLIPImageProcessorPil

from oculi.bench.goals import Goal, table
from oculi.bench.report import versions
from oculi.data.loader import collate, encode_sample
from oculi.data.source import open_sources
from oculi.model import OculiProcessor
from oculi.model.patch_embed_oculi import CLIP_MEAN, CLIP_STD
from oculi.recipe import FileSource, ImageSpec, ModelSpec, PatchEmbedSpec
from oculi.training.build import build_processor

SIZE, PATCH = 448, 14  # of VoRA's pre-training
QUESTION, ANSWER = "What is in the picture?", "A drawing of coloured waves."


@dataclass(frozen=True)
class LoaderReport:
    """What one core does.

    Attributes:
        pictures: measured; width, height: of the files.
        ours, naive: pictures a processor second, the most of several passes.
    """

    pictures: int
    width: int
    height: int
    ours: float
    naive: float

    def goals(self) -> list[Goal]:
        """The promise."""
        ratio = self.ours / self.naive
        return [Goal("pictures a second / naive", ratio, 1.5, at_least=True, advice=True)]

    def to_json(self) -> dict[str, Any]:
        """For ``--json``."""
        goals = [goal.to_dict() for goal in self.goals()]
        return {
            **asdict(self),
            "ratio": self.ours / self.naive,
            "versions": versions(),
            "goals": goals,
        }

    def lines(self) -> list[str]:
        """For the terminal and for Markdown."""
        rows = [["oculi", f"{self.ours:.0f}"], ["naive", f"{self.naive:.0f}"]]
        heads = [
            f"{self.pictures} JPEG files of {self.width} x {self.height}",
            "pictures/s and core",
        ]
        return [*table(heads, rows), "", *(f"- {goal.line()}" for goal in self.goals())]


def bench_loader(
    pictures: int = 64,
    repeats: int = 5,
    size: tuple[int, int] = (640, 480),
    progress: Callable[[int, int], None] | None = None,
) -> LoaderReport:
    """Measure both ways in turns on the same files.

    Args:
        pictures: how many files. repeats: passes of each way over them.
        size: width and height of the files.
        progress: told how many passes are done.
    """
    say = progress or (lambda done, total: None)
    with TemporaryDirectory() as name:
        data = write_files(Path(name), pictures, size)
        processor = build_processor(
            ModelSpec(
                llm="testbed:llm",
                vision=PatchEmbedSpec(patch_size=PATCH, width=8, grid=(32, 32)),
                images=ImageSpec(mode="square", size=SIZE),
            )
        )
        ways: dict[str, Callable[[], object]] = {
            "ours": our_way(data, processor),
            "naive": naive_way(data, processor.tokenizer),
        }
        best = dict.fromkeys(ways, 0.0)
        for done in range(repeats):
            say(done, repeats)
            for way, run in ways.items():
                began = time.process_time()
                run()
                best[way] = max(best[way], pictures / (time.process_time() - began))
    say(repeats, repeats)
    width, height = size
    return LoaderReport(pictures, width, height, ours=best["ours"], naive=best["naive"])


def write_files(folder: Path, pictures: int, size: tuple[int, int]) -> Path:
    """JPEG files of smooth waves, which compress as photographs do, and a LLaVA file for them."""
    rows = []
    width, height = size
    y, x = np.mgrid[:height, :width] / 40.0
    for i in range(pictures):
        waves = [np.sin(x * (1 + 0.1 * c) + i) * np.cos(y + c * i) for c in range(3)]
        pixels = (127 + 120 * np.stack(waves, -1)).astype(np.uint8)
        Image.fromarray(pixels).save(folder / f"{i}.jpg", quality=90)
        turns = [("human", f"<image>\n{QUESTION}"), ("gpt", ANSWER)]
        talk = [{"from": who, "value": what} for who, what in turns]
        rows.append({"id": str(i), "image": f"{i}.jpg", "conversations": talk})
    path = folder / "rows.json"
    path.write_text(json.dumps(rows), encoding="utf-8")
    return path


def our_way(data: Path, processor: OculiProcessor) -> Callable[[], object]:
    """One batch of all rows, by the functions of the training loader."""
    source = open_sources((FileSource(path=str(data)),))
    channels = 3 * PATCH**2

    def run() -> object:
        samples = [source[i] for i in range(len(source))]
        return collate([[(s.id, encode_sample(s, processor))] for s in samples], channels)

    return run


def naive_way(data: Path, tokenizer: Any) -> Callable[[], object]:
    """The same rows as a float32 tensor of pictures and lists of ids."""
    rows = json.loads(data.read_text(encoding="utf-8"))
    edge = {"height": SIZE, "width": SIZE}
    processor = CLIPImageProcessorPil(
        size={"shortest_edge": SIZE}, crop_size=edge, image_mean=CLIP_MEAN, image_std=CLIP_STD
    )
    background = tuple(round(255 * mean) for mean in CLIP_MEAN)

    def run() -> object:
        pictures, texts = [], []
        for row in rows:
            picture = Image.open(data.parent / row["image"]).convert("RGB")
            side = max(picture.size)
            square = Image.new("RGB", (side, side), background)
            square.paste(picture, ((side - picture.width) // 2, (side - picture.height) // 2))
            made = processor(square, return_tensors="pt")
            pictures.append(made["pixel_values"][0])
            texts.append([tokenizer(turn["value"])["input_ids"] for turn in row["conversations"]])
        return torch.stack(pictures), texts

    return run
