"""``oculi data codes`` and ``oculi data cognition``: indices made ahead, and what a stage would ask."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any

import typer

from oculi.commands import one_line_errors, progress, quiet_libraries

CODES_EXAMPLE = "Example: oculi data codes train.json --vq testbed:vq --out codes"
COGNITION_EXAMPLE = "Example: oculi data cognition vora_tiny 'stages.0.cognition={pixels: {}}'"


def add_commands(app: typer.Typer) -> None:
    """Add what is about colours and codes to the ``oculi data`` commands."""
    app.command(epilog=CODES_EXAMPLE)(codes)
    app.command(epilog=COGNITION_EXAMPLE)(cognition)


@one_line_errors
def codes(
    files: Annotated[list[Path], typer.Argument(help="data files, patterns or folders")],
    vq: Annotated[str, typer.Option(help="folder, hub id or testbed:NAME of a VQModel")],
    out: Annotated[Path, typer.Option(help="the folder to write; codes.cache names it")],
    size: Annotated[int | None, typer.Option(min=1, help="as codes.size of a stage")] = None,
    signed: Annotated[bool, typer.Option(help="as codes.signed of a stage")] = True,
    image_root: Annotated[str | None, typer.Option(help="where image paths start")] = None,
    batch: Annotated[int, typer.Option(min=1, help="pictures encoded at once")] = 32,
) -> None:
    """Encode every picture of some data once, for codes.cache; resumes where it stopped."""
    quiet_libraries()
    import torch

    from oculi.cognition.cache import write_codes
    from oculi.cognition.codebook import Codebook
    from oculi.data.source import open_sources
    from oculi.recipe import FileSource

    rows = open_sources([FileSource(path=str(file), image_root=image_root) for file in files])

    def pictures() -> Iterator[Callable[[], Any]]:
        for number in range(len(rows)):
            yield from (image.load for image in rows[number].images)

    codebook = Codebook(vq, size, signed)
    total = sum(len(rows[number].images) for number in range(len(rows)))
    device = "cuda" if torch.cuda.is_available() else "cpu"
    data = json.dumps([[str(file.resolve()) for file in files], image_root, total])
    count, bad = write_codes(
        pictures(), total, codebook, out,
        data=data, batch=batch, device=device, on_progress=progress("encoding pictures"),
    )  # fmt: skip
    for line in bad:
        print(f"left out: {line}")
    grid = f"{codebook.rows} x {codebook.columns}"
    print(f"{out}: {grid} indices of {count} different pictures, {len(bad)} left out")
    raise typer.Exit(1 if bad else 0)


@one_line_errors
def cognition(
    recipe: Annotated[
        str, typer.Argument(help="a built-in name, file.py:function, or recipe.yaml")
    ],
    overrides: Annotated[
        list[str] | None, typer.Argument(help="key=value, as for oculi train")
    ] = None,
    n: Annotated[int, typer.Option(min=0, help="conversations to show of each stage")] = 2,
) -> None:
    """What each stage asks about colours and codes, in how many tokens of its LLM, with examples."""
    from oculi.errors import RecipeError
    from oculi.recipe import override
    from oculi.recipes import find_recipe

    chosen = override(find_recipe(recipe), overrides or [])
    asking = [number for number, stage in enumerate(chosen.stages) if stage.cognition]
    if not asking:
        raise RecipeError(
            f"{chosen.name} asks for no colours or codes: set stages.N.cognition, as "
            "'stages.0.cognition={pixels: {}}'"
        )
    quiet_libraries()
    from oculi.cognition.show import lines
    from oculi.training.build import build_processor, recut

    processor = build_processor(chosen.model)
    for number in asking:
        cut = recut(processor, chosen.images_of(number))
        print("\n".join(lines(chosen, number, cut, n)))
