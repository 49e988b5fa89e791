"""``oculi data join`` and ``oculi data review``, and how these and ``synthesize`` join the others."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from oculi.commands import one_line_errors, progress
from oculi.data.synth.command import EXAMPLE, instructions, synthesize


def add_commands(app: typer.Typer) -> None:
    """Add what makes data out of data to the ``oculi data`` commands."""
    app.command(epilog=EXAMPLE)(synthesize)
    app.command(epilog="Example: oculi data instructions --out mine.yaml")(instructions)
    example = "oculi data review made/samples.jsonl --out made/reviewed.jsonl"
    app.command(epilog=f"Example: {example}")(review)
    app.command(epilog="Example: oculi data join vqa.json --out joined.jsonl")(join)


@one_line_errors
def join(
    files: Annotated[list[Path], typer.Argument(help="data files, patterns or folders")],
    out: Annotated[Path, typer.Option(help="JSON Lines file to write")],
    max_turns: Annotated[int, typer.Option(min=1, help="questions of a conversation")] = 10,
    max_characters: Annotated[
        int | None, typer.Option(min=1, help="of all turns of a conversation")
    ] = None,
    image_root: Annotated[Path | None, typer.Option(help="where image paths start")] = None,
    format: Annotated[str | None, typer.Option(help="of the rows, if not as recognised")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="replace the file")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="print JSON")] = False,
) -> None:
    """Put the questions about one picture into one conversation; exits 1 when there are bad rows."""
    from oculi.data.joining import join as run

    found = run(
        files, out, image_root=image_root, form=format, max_turns=max_turns,
        max_characters=max_characters, overwrite=overwrite, on_progress=progress("grouping rows"),
    )  # fmt: skip
    print(json.dumps(asdict(found), indent=1) if as_json else "\n".join(found.lines()))
    raise typer.Exit(1 if found.bad_rows else 0)


@one_line_errors
def review(
    file: Annotated[Path, typer.Argument(help="data file, pattern or folder")],
    out: Annotated[Path, typer.Option(help="JSON Lines file for the accepted and edited rows")],
    image_root: Annotated[Path | None, typer.Option(help="where image paths start")] = None,
    format: Annotated[str | None, typer.Option(help="of the rows, if not as recognised")] = None,
    keep_undecided: Annotated[
        bool, typer.Option("--keep-undecided", help="write undecided rows as well")
    ] = False,
) -> None:
    """Accept, edit or reject samples one by one; goes on where it was left.

    Decisions are read from the terminal, or a line each from standard input."""
    from oculi.data.review import review as run

    found = run(
        file, out, _ask, lambda line: print(line, file=sys.stderr),
        image_root=image_root, form=format, keep_undecided=keep_undecided,
    )  # fmt: skip
    print("\n".join(found.lines()))


def _ask(prompt: str, text: str) -> str:
    """A line of input; on a terminal it begins with `text`, to be changed there."""
    if not sys.stdin.isatty():
        return input()
    import readline

    readline.set_startup_hook(lambda: readline.insert_text(text))
    try:
        return input(prompt)
    finally:
        readline.set_startup_hook(None)
