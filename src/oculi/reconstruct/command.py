"""``oculi reconstruct``. All but the options is imported inside, so that ``--help`` answers at once."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from oculi.commands import one_line_errors, progress, quiet_libraries
from oculi.errors import DataError

EXAMPLE = "Example: oculi reconstruct runs/with runs/without --out runs/restored"


@one_line_errors
def reconstruct(
    checkpoints: Annotated[
        list[Path], typer.Argument(help="runs or exported folders; the first against the others")
    ],
    out: Annotated[
        Path,
        typer.Option(
            help="folder for report.md, pictures.png, scores.json; RUN/restored: in its report"
        ),
    ],
    data: Annotated[
        Path | None,
        typer.Option(help="data file with pictures: its first are scored, the rest trained on"),
    ] = None,
    level: Annotated[int, typer.Option(min=1, max=5, help="of Playroom, without --data")] = 3,
    side: Annotated[int, typer.Option(min=16, help="of Playroom's pictures, in pixels")] = 168,
    pictures: Annotated[int, typer.Option(min=2, help="scored")] = 64,
    train_pictures: Annotated[
        int, typer.Option(min=1, help="a probe is trained on, again and again; tokens are kept")
    ] = 3072,
    steps: Annotated[int, typer.Option(min=1, help="of training a probe, 32 pictures each")] = 1200,
    denoiser: Annotated[str, typer.Option(help="an SD3 transformer")] = "testbed:sd3",
    vae: Annotated[str, typer.Option(help="the autoencoder of its latents")] = "testbed:vae",
    size: Annotated[int, typer.Option(min=16, help="of what is restored, in pixels")] = 96,
    rank: Annotated[int, typer.Option(min=1, help="of the Epigone")] = 64,
    seed: Annotated[int, typer.Option(help="of weights and noise")] = 0,
) -> None:
    """Restore pictures from what the LLM is given of them, with PSNR, SSIM and intervals.

    What a checkpoint's tokens do not hold cannot be restored. Each checkpoint gets a probe of its own,
    trained in the same way; its vision part is not changed."""
    quiet_libraries()
    names = [str(path) for path in checkpoints]
    if len(set(names)) != len(names):
        raise DataError(f"a checkpoint is given twice among {', '.join(names)}")
    import torch

    from oculi.eval.report import RESTORED, write_report
    from oculi.export.load import load_checkpoint
    from oculi.recipe import ReconstructSpec
    from oculi.reconstruct.page import write
    from oculi.reconstruct.probe import Probe, restore

    train, test, available = _pictures(data, level, side, pictures)
    spec = ReconstructSpec(denoiser=denoiser, vae=vae, size=size, rank=rank)
    probe = Probe(spec, steps, min(train_pictures, available), seed=seed)
    found: dict[str, Any] = {}
    for path in checkpoints:
        model, processor = load_checkpoint(path)
        model.to("cuda" if torch.cuda.is_available() else "cpu")
        found[str(path)] = restore(
            model, processor, probe, train, test, progress(f"probing {path}")
        )
        del model  # or two are on the device at once
    shown = f"--data {data}" if data is not None else f"--level {level} --side {side}"
    command = (
        f"oculi reconstruct {' '.join(names)} {shown} --pictures {pictures} "
        f"--train-pictures {train_pictures} --steps {steps} --denoiser {denoiser} --vae {vae} "
        f"--size {size} --rank {rank} --seed {seed}"
    )
    print("\n".join(write(out, command, found)))
    if out.name == RESTORED and (out.parent / "recipe.yaml").exists():
        write_report(out.parent)
    print(f"report: {out / 'report.md'}", file=sys.stderr)


def _pictures(data: Path | None, level: int, side: int, count: int) -> tuple[Any, list[Any], int]:
    """A function from numbers to pictures to train on, the pictures that are scored, and how many there
    are to train on.

    Raises:
        DataError: there are too few.
    """
    from oculi.data.source import open_source
    from oculi.recipe import FileSource, PlayroomSource

    if data is not None:
        rows = open_source(FileSource(path=str(data)))
        with_pictures = [i for i in range(len(rows)) if rows[i].images]
        if len(with_pictures) <= count:
            raise DataError(
                f"{data} has {len(with_pictures)} rows with pictures: more than --pictures {count} are "
                "needed, because none is trained on and scored"
            )
        scored, others = with_pictures[:count], with_pictures[count:]
        test = [rows[i].images[0].load() for i in scored]
        return lambda number: rows[others[number]].images[0].load(), test, len(others)
    size = (side, side)
    rows, held_out = (
        open_source(PlayroomSource(level=level, samples=samples, split=split, size=size))
        for samples, split in ((1_000_000, "train"), (count, "test"))
    )
    test = [held_out[i].images[0].load() for i in range(count)]
    return lambda number: rows[number].images[0].load(), test, len(rows)
