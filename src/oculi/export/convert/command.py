"""``oculi convert``. What converts is imported inside a command, so that ``--help`` answers at once."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Literal

import typer

from oculi.commands import one_line_errors, progress, quiet_libraries

app = typer.Typer(help="Checkpoints of other code into ours.", no_args_is_help=True)


@app.callback()
def _commands() -> None:
    """Checkpoints of other code into ours."""


@app.command(epilog="Example: oculi convert vora Hon-Wong/VoRA-7B-Instruct --out vora-7b")
@one_line_errors
def vora(
    source: Annotated[str, typer.Argument(help="folder or hub id that the released code saved")],
    out: Annotated[Path, typer.Option(help="folder to write")],
    llm: Annotated[
        str | None,
        typer.Option(help="folder or id of its LLM: the tokenizer, if SOURCE lacks it"),
    ] = None,
    dtype: Annotated[
        Literal["float32", "bfloat16"] | None,
        typer.Option(help="of the weights; else the one they are stored in"),
    ] = None,
) -> None:
    """The released VoRA code's checkpoint, merged or not, into one that oculi and transformers load."""
    quiet_libraries()
    if sys.stderr.isatty():  # writing takes longest, and there transformers has the only counter
        from transformers.utils import logging

        logging.enable_progress_bar()
    from oculi.export.convert.vora import convert_vora

    converted = convert_vora(source, out, llm, dtype, progress("converting tensors"))
    print("\n".join(converted.lines()))
