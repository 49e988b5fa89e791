"""`oculi testbed`: its checkpoints made again, its pictures looked at."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from oculi.commands import one_line_errors, quiet_libraries
from oculi.training.allocator import keep_freed_memory

app = typer.Typer(help="The embedded world and its tiny checkpoints.", no_args_is_help=True)


@app.command(epilog="Example: oculi testbed build --out checkpoints --only llm")
@one_line_errors
def build(
    out: Annotated[Path, typer.Option(help="folder for the checkpoints")],
    only: Annotated[list[str] | None, typer.Option(help="one checkpoint; repeatable")] = None,
    quick: Annotated[
        bool, typer.Option("--quick", help="a few steps: to see that it works")
    ] = False,
) -> None:
    """Train the tiny checkpoints and write them with a manifest and a model card."""
    quiet_libraries()
    keep_freed_memory()
    from oculi.testbed.build import build as run

    run(out, only, quick)


@app.command(epilog="Example: oculi testbed sample --level 2 --out sheet.png")
@one_line_errors
def sample(
    out: Annotated[Path, typer.Option(help="PNG file; questions go into a text file beside it")],
    level: Annotated[int, typer.Option(help="1 to 5")] = 1,
    split: Annotated[
        str, typer.Option(help="train or test; levels 1, 2 and 5 also have pairs")
    ] = "test",
    n: Annotated[int, typer.Option(min=1, help="number of pictures")] = 32,
) -> None:
    """Draw Playroom pictures with their questions, to look at."""
    from oculi import durable
    from oculi.testbed import playroom

    with durable.disk_errors(str(out)):
        if n > 1:
            print(playroom.sheet(level, split, n, out))
            return
        one = playroom.item(level, split, 0)  # one picture is written as it is, to be asked about
        playroom.save(one.picture.load(), out)
    print(f"{one.question.text}\n-> {one.question.answer}")
