"""``oculi train``. All but the options is imported inside, so that ``--help`` answers at once."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from oculi.commands import Overrides, RecipeName, one_line_errors, quiet_libraries
from oculi.training.allocator import keep_freed_memory

EXAMPLE = "Example: oculi train vora_tiny stages.0.steps=300 --out runs/first"


@one_line_errors
def train(
    recipe: RecipeName,
    overrides: Overrides = None,
    out: Annotated[Path, typer.Option(help="the run's folder")] = ...,  # type: ignore[assignment]
    resume: Annotated[bool, typer.Option("--resume", help="go on where the run stopped")] = False,
    start: Annotated[str | None, typer.Option(help="train this further: run, folder or id")] = None,
    llm: Annotated[str | None, typer.Option(help="folder or id of the LLM")] = None,
    teacher: Annotated[
        str | None, typer.Option(help="folder or id of the ViT, to distil from or to see with")
    ] = None,
    vq: Annotated[str | None, typer.Option(help="folder or id of the VQ model of codes")] = None,
    data: Annotated[
        list[str] | None,
        typer.Option(
            help="file, folder or pattern for every stage, or STAGE=FILE for one; repeatable"
        ),
    ] = None,
    epochs: Annotated[
        list[str] | None,
        typer.Option(help="passes over the data in place of steps, or STAGE=NUMBER; repeatable"),
    ] = None,
    seed: Annotated[int | None, typer.Option(help="of the new weights and the order")] = None,
) -> None:
    """Run a recipe: its stages, the merge between them, its evaluations, and the report."""
    from oculi.recipe import override
    from oculi.recipes import find_recipe
    from oculi.recipes.flags import apply_epochs, apply_flags

    chosen = apply_flags(
        find_recipe(recipe), start=start, llm=llm, teacher=teacher, vq=vq, data=data, seed=seed
    )
    chosen = apply_epochs(override(chosen, overrides or []), epochs or [], overrides or [])
    quiet_libraries()
    keep_freed_memory()
    from oculi.training.run import train as run

    run(chosen, out, resume=resume)
    print(f"report: {out / 'report.html'}")
