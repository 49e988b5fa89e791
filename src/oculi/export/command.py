"""``oculi export``. torch is imported inside the command, so that ``--help`` answers at once."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from oculi.commands import one_line_errors, progress, quiet_libraries
from oculi.errors import RecipeError

EXAMPLE = "Example: oculi export runs/first --to onnx --int8 --out edge"


@one_line_errors
def export(
    checkpoint: Annotated[Path, typer.Argument(help="a run or an exported folder")],
    to: Annotated[
        Literal["hf", "onnx"], typer.Option(help="hf: a Hugging Face folder; onnx: for oculi.edge")
    ],
    out: Annotated[Path, typer.Option(help="folder to write")],
    int8: Annotated[bool, typer.Option("--int8", help="weights as int8 (onnx alone)")] = False,
) -> None:
    """A merged model as a Hugging Face folder, or as graphs that run without torch."""
    if int8 and to == "hf":
        raise RecipeError("--int8 is for --to onnx: transformers reads no int8 of ours")
    from oculi.export.hf import check_free

    check_free(out)  # before minutes of loading
    quiet_libraries()
    import oculi

    model, processor = oculi.load(checkpoint)
    name = checkpoint.resolve().name
    if to == "hf":
        from oculi.export.hf import export as export_hf

        print(export_hf(model, processor, out, name, f"exported from {name}"))
        return
    from oculi.export.onnx.write import export_onnx

    print(export_onnx(model, processor, out, name, int8, progress("exporting parts")))
