"""The commands. torch is imported inside a command, so that ``--help`` and mistakes answer at once."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from oculi.ablate.command import EXAMPLE as ABLATE_EXAMPLE
from oculi.ablate.command import ablate
from oculi.bench.command import app as bench_app
from oculi.cognition import command as cognition
from oculi.commands import Overrides, RecipeName, one_line_errors, progress, quiet_libraries
from oculi.data.curate import add_commands
from oculi.export.command import EXAMPLE as EXPORT_EXAMPLE
from oculi.export.command import export
from oculi.export.convert.command import app as convert_app
from oculi.reconstruct.command import EXAMPLE as RECONSTRUCT_EXAMPLE
from oculi.reconstruct.command import reconstruct
from oculi.testbed.command import app as testbed_app
from oculi.training.command import EXAMPLE as TRAIN_EXAMPLE
from oculi.training.command import train

app = typer.Typer(
    help="oculi gives a language model eyes: train, compare, merge, measure and serve.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
data_app = typer.Typer(
    help="Look at data before training on it, and make more.", no_args_is_help=True
)
app.add_typer(data_app, name="data", rich_help_panel=None)
app.add_typer(testbed_app, name="testbed", rich_help_panel=None)
app.add_typer(bench_app, name="bench", rich_help_panel=None)
app.add_typer(convert_app, name="convert", rich_help_panel=None)
app.command(epilog=TRAIN_EXAMPLE)(train)
app.command(epilog=ABLATE_EXAMPLE)(ablate)
app.command(epilog=RECONSTRUCT_EXAMPLE)(reconstruct)
cognition.add_commands(data_app)
app.command(epilog=EXPORT_EXAMPLE)(export)


@app.command(epilog="Example: oculi recipes vora_tiny > mine.yaml")
@one_line_errors
def recipes(
    name: Annotated[str | None, typer.Argument(help="print this one, resolved")] = None,
) -> None:
    """The built-in recipes, a line each; or one of them, resolved."""
    from oculi.recipes import BUILTIN, find_recipe

    if name:
        print(find_recipe(name).to_yaml(), end="")
        return
    print("\n".join(f"{key:24} {build().summary}" for key, build in BUILTIN.items()))


@app.command(epilog="Example: oculi plan vora model.lora.rank=512 --gpu h200 --gpus 8")
@one_line_errors
def plan(
    recipe: RecipeName,
    overrides: Overrides = None,
    gpu: Annotated[str, typer.Option(help="name of a GPU, as h200 or rtx4090")] = "h200",
    gpus: Annotated[int, typer.Option(min=1, help="number of them")] = 1,
    start: Annotated[str | None, typer.Option(help="a model, as for oculi train")] = None,
    llm: Annotated[str | None, typer.Option(help="folder or id, as for oculi train")] = None,
    teacher: Annotated[str | None, typer.Option(help="folder or id, as for oculi train")] = None,
    text_tokens: Annotated[
        int | None, typer.Option(min=1, help="text of a sample, all learnt; else 128")
    ] = None,
    image: Annotated[
        str | None, typer.Option(help="WIDTHxHEIGHT in pixels; else the largest that is taken")
    ] = None,
    style: Annotated[
        str, typer.Option(help="exact; or paper: as published tables count one forward pass")
    ] = "exact",
    as_json: Annotated[bool, typer.Option("--json", help="print JSON")] = False,
) -> None:
    """Parameters, products, memory and the least time of a recipe, from configurations alone."""
    from oculi.recipe import override
    from oculi.recipes import find_recipe
    from oculi.recipes.flags import apply_flags

    chosen = apply_flags(find_recipe(recipe), start=start, llm=llm, teacher=teacher)
    chosen = override(chosen, overrides or [])
    quiet_libraries()
    from oculi.plan import picture_size
    from oculi.plan.styles import Asked, plan_in_style

    size = picture_size(image) if image else None
    planned = plan_in_style(style, chosen, Asked(gpu, gpus, text_tokens, size))
    print(json.dumps(planned.to_json(), indent=1) if as_json else "\n".join(planned.lines()))


@data_app.command(epilog="Example: oculi data check train.json")
@one_line_errors
def check(
    files: Annotated[list[Path], typer.Argument(help="data files, patterns or folders")],
    image_root: Annotated[Path | None, typer.Option(help="where image paths start")] = None,
    format: Annotated[str | None, typer.Option(help="of the rows, if not as recognised")] = None,
    decode: Annotated[bool, typer.Option(help="read every picture")] = True,
    as_json: Annotated[bool, typer.Option("--json", help="print JSON")] = False,
) -> None:
    """Name the format and list every bad row with id, line and reason; exits 1 when there is one."""
    from oculi.data.check import check as run

    report = run(files, image_root, decode, progress("checking"), form=format)
    print(json.dumps(report.to_json(), indent=1) if as_json else "\n".join(report.lines()))
    raise typer.Exit(0 if report.ok else 1)


@data_app.command(epilog="Example: oculi data overlap train.json test.json --out shared.jsonl")
@one_line_errors
def overlap(
    a: Annotated[Path, typer.Argument(help="data file, pattern or folder")],
    b: Annotated[Path | None, typer.Argument(help="another; without it: pairs within A")] = None,
    out: Annotated[Path | None, typer.Option(help="JSON Lines file for the pairs")] = None,
    show: Annotated[int, typer.Option(min=0, help="pairs to print")] = 20,
    tolerance: Annotated[
        float, typer.Option(help="0: only equal ones; up to 2: also stronger changes")
    ] = 1.0,
    image_root: Annotated[
        list[Path] | None, typer.Option(help="where image paths start; twice: of A and of B")
    ] = None,
    format: Annotated[
        list[str] | None, typer.Option(help="of the rows; twice: of A and of B")
    ] = None,
    workers: Annotated[
        int | None, typer.Option(min=1, help="processes; else one for each core")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="print JSON, with all pairs")] = False,
) -> None:
    """List pictures that two sets share, or one holds twice: same bytes, same pixels, or near.

    Exits 0 whether or not there are any, 1 when a row or picture could not be read."""
    import os

    from oculi.data.overlap import overlap as run

    found = run(
        a, b, image_roots=image_root or [], forms=format or [], tolerance=tolerance,
        workers=workers or os.cpu_count() or 1, progress=progress,
    )  # fmt: skip
    if out is not None:
        found.write(out)
    print(json.dumps(found.to_json(), indent=1) if as_json else "\n".join(found.lines(show)))
    raise typer.Exit(0 if found.ok else 1)


@data_app.command(epilog="Example: oculi data prepare train.json --recipe vora_tiny --out prepared")
@one_line_errors
def prepare(
    files: Annotated[list[Path], typer.Argument(help="data files, patterns or folders")],
    out: Annotated[Path, typer.Option(help="the folder to write; oculi train --data takes it")],
    recipe: Annotated[str | None, typer.Option(help="whose model will be trained on it")] = None,
    llm: Annotated[str | None, typer.Option(help="folder or id, as for oculi train")] = None,
    teacher: Annotated[str | None, typer.Option(help="folder or id, as for oculi train")] = None,
    processor: Annotated[Path | None, typer.Option(help="instead: an exported folder")] = None,
    image_root: Annotated[Path | None, typer.Option(help="where image paths start")] = None,
    format: Annotated[str | None, typer.Option(help="of the rows, if not as recognised")] = None,
    tag: Annotated[str | None, typer.Option(help="only rows of this stage tag")] = None,
    max_length: Annotated[
        int | None, typer.Option(min=1, help="leave out rows of more tokens")
    ] = None,
    min_edge: Annotated[
        int | None,
        typer.Option(min=1, help="leave out rows with a picture whose longer edge is shorter"),
    ] = None,
    phrasings: Annotated[str | None, typer.Option(help="questions for captions")] = None,
    phrasings_seed: Annotated[int, typer.Option(min=0, help="who gets which question")] = 0,
    workers: Annotated[
        int | None, typer.Option(min=1, help="processes; else one for each core")
    ] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="start anew in a folder that was prepared otherwise")
    ] = False,
) -> None:
    """Find and measure every row once, leave bad ones out, and report; resumes where it stopped."""
    import os

    from oculi.data.phrasings import find_phrasings
    from oculi.data.prepare import prepare as run

    asked = find_phrasings(phrasings, phrasings_seed)
    chosen = _processor(recipe, llm, teacher, processor)
    report = run(
        files, out, chosen, image_root=image_root, form=format, tag=tag, max_length=max_length,
        min_edge=min_edge, phrasings=asked, workers=workers or os.cpu_count() or 1, overwrite=overwrite,
        on_file=progress("finding rows, files"), on_progress=progress("measuring rows"),
    )  # fmt: skip
    print(report.read_text(encoding="utf-8"), end="")


add_commands(data_app)


def _processor(
    recipe: str | None, llm: str | None, teacher: str | None, folder: Path | None
) -> Any:
    """The processor of a recipe with the flags of `train`, or that of an exported folder."""
    from oculi.errors import RecipeError

    if (recipe is None) == (folder is None):
        raise RecipeError("whose tokens are counted? Give either --recipe or --processor")
    quiet_libraries()
    if folder is not None:
        from oculi.export.exported import load_processor

        return load_processor(folder)
    from oculi.recipes import find_recipe
    from oculi.recipes.flags import apply_flags
    from oculi.training.build import build_processor

    assert recipe is not None
    return build_processor(apply_flags(find_recipe(recipe), llm=llm, teacher=teacher).model)


@app.command(epilog="Example: oculi merge runs/first/checkpoints/step-0000500 --out merged")
@one_line_errors
def merge(
    run: Annotated[Path, typer.Argument(help="a run, or one of its checkpoints/step-N")],
    out: Annotated[Path, typer.Option(help="folder to write")],
    base: Annotated[
        str | None, typer.Option(help="where the original LLM is, if it has moved")
    ] = None,
) -> None:
    """Fold LoRA into the LLM; refuses a base that is not the one trained on."""
    quiet_libraries()
    from oculi.export.merge import merge_run

    difference = merge_run(run, out, base)
    print(f"{out}: merged; the largest change of a logit is {difference:.1e}")


@app.command("eval", epilog="Example: oculi eval runs/first --task playroom:1 --blind")
@one_line_errors
def evaluate(
    checkpoint: Annotated[
        Path, typer.Argument(help="a run, its checkpoints/step-N, or an exported folder")
    ],
    task: Annotated[
        str,
        typer.Option(
            help="playroom:1 to playroom:5, ...:pairs, ...@WxH; mme:PATH; pixels:TASK, codes:TASK; "
            "or a data file"
        ),
    ],
    blind: Annotated[bool, typer.Option("--blind", help="ask without the images")] = False,
    above_blind: Annotated[
        bool, typer.Option("--above-blind", help="ask both ways; exit 1 unless clearly above blind")
    ] = False,
    limit: Annotated[int | None, typer.Option(min=1, help="number of questions")] = None,
    batch: Annotated[int, typer.Option(min=1, help="questions asked at a time")] = 64,
    image_root: Annotated[str | None, typer.Option(help="where image paths start")] = None,
    max_new_tokens: Annotated[
        int | None,
        typer.Option(min=1, help="longest answer; default 64, or what the longest true one needs"),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="folder for result.json and answers.jsonl")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="print JSON")] = False,
) -> None:
    """Score by free generation; every answer goes into answers.jsonl."""
    from oculi.eval.command import evaluate_command
    from oculi.eval.tasks import open_task

    questions = open_task(task, image_root)  # before the weights: a misspelt name shows at once
    model, processor = _open(checkpoint)
    results = evaluate_command(
        model, processor, checkpoint, questions, blind=blind, above_blind=above_blind,
        limit=limit, batch=batch, max_new_tokens=max_new_tokens, out=out,
        on_progress=progress("answering"),
    )  # fmt: skip
    print(json.dumps(results.to_dict(), indent=1) if as_json else "\n".join(results.lines()))
    raise typer.Exit(0 if results.ok else 1)


@app.command(
    epilog="Example: oculi compare runs/first/evals/playroom-1 runs/second/evals/playroom-1"
)
@one_line_errors
def compare(
    first: Annotated[
        Path, typer.Argument(help="an evaluation's folder or answers.jsonl; or a run")
    ],
    second: Annotated[Path, typer.Argument(help="the same of what it is compared with")],
    kinds: Annotated[
        list[str] | None,
        typer.Option("--kind", help="only questions of this kind, as 'read *'; repeatable"),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="print the results as JSON")] = False,
) -> None:
    """Two evaluations of the same questions, paired: the difference, its interval, and where it lies.

    Of two runs, every evaluation that both have."""
    from oculi.eval.compare import compare as run

    found = run(first, second, kinds or ())
    if as_json:
        print(json.dumps([one.to_dict() for one in found], indent=1))
    else:
        print("\n".join(line for one in found for line in one.lines()))


@app.command(epilog='Example: oculi chat runs/first --image cat.png "What is this?"')
@one_line_errors
def chat(
    checkpoint: Annotated[
        Path, typer.Argument(help="a run, its checkpoints/step-N, or an exported folder")
    ],
    question: Annotated[str | None, typer.Argument(help="without one: a conversation")] = None,
    image: Annotated[list[Path] | None, typer.Option(help="picture; repeatable")] = None,
    modality: Annotated[
        str, typer.Option(help="of what the pictures show, where the model has LoRA for several")
    ] = "image",
    max_new_tokens: Annotated[int, typer.Option(min=1, help="longest answer in tokens")] = 128,
) -> None:
    """One answer about pictures; or, without a question, a conversation."""
    from oculi.eval.chat import Conversation

    conversation = Conversation(*_open(checkpoint), image or [], max_new_tokens, modality)
    if question is not None:
        print(conversation.ask(question))
        return
    print("An empty line or end of input ends the conversation.", file=sys.stderr)
    while text := _read_line():
        print(conversation.ask(text))


def _open(checkpoint: Path) -> tuple[Any, Any]:
    """Model and processor of a checkpoint, on the GPU if there is one."""
    quiet_libraries()
    import torch

    import oculi

    model, processor = oculi.load(checkpoint)
    return model.to("cuda" if torch.cuda.is_available() else "cpu"), processor


def _read_line() -> str:
    try:
        return input("> ").strip()
    except EOFError:
        return ""


def main() -> None:
    """Entry point of the ``oculi`` command; wrong usage is one line, as any other mistake."""
    try:
        code = app(standalone_mode=False)
    except typer.Abort:
        code = 130
    except Exception as error:
        show = getattr(error, "format_message", None)  # typer's usage errors; it exports no class
        if show is None:
            raise
        said, context = show(), getattr(error, "ctx", None)
        if "\n" in said:  # a command that was called bare: its help
            print(said, file=sys.stderr)
        else:
            help_command = f"{context.command_path} --help" if context else "oculi --help"
            print(f"oculi: {said} ({help_command})", file=sys.stderr)
        code = 2
    sys.exit(code)
