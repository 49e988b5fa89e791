"""``oculi bench``. What is measured is imported inside a command, so that ``--help`` answers at once."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from oculi.commands import one_line_errors, progress, quiet_libraries

app = typer.Typer(help="Measure and attack oculi itself.", no_args_is_help=True)


@app.callback()
def _commands() -> None:
    """Measure and attack oculi itself."""


@app.command(epilog="Example: oculi bench kills --quick")
@one_line_errors
def kills(
    quick: Annotated[
        bool, typer.Option("--quick", help="tear at three of four places, and flip no bits")
    ] = False,
    thorough: Annotated[
        bool, typer.Option("--thorough", help="kill the recovery as well: many minutes")
    ] = False,
    lanes: Annotated[
        int | None, typer.Option(min=1, help="processes; else one for each core")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="also write the report as Markdown")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="print JSON")] = False,
) -> None:
    """Kill training at every place where it can die, resume it, and compare every number.

    Exits 1 when a resumed run differs from one that was not killed, or a planted defect is missed."""
    from oculi.bench.kills_report import bench_kills

    report = bench_kills(quick, thorough, lanes, progress("killing"))
    if out is not None:
        command = f"oculi bench kills{' --quick' * quick}{' --thorough' * thorough}"
        out.write_text(report.markdown(command), encoding="utf-8")
    print(json.dumps(report.to_json(), indent=1) if as_json else "\n".join(report.lines()))
    raise typer.Exit(0 if report.ok else 1)


@app.command(epilog="Example: oculi bench train --quick")
@one_line_errors
def train(
    quick: Annotated[
        bool, typer.Option("--quick", help="time the first step of each, not ten")
    ] = False,
    out: Annotated[Path | None, typer.Option(help="also write the report as Markdown")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="print JSON")] = False,
) -> None:
    """Our training step beside the released VoRA's way and PEFT + Trainer: counters, and seconds.

    Exits 1 when a counter is beyond what docs/performance.md promises."""
    quiet_libraries()
    from oculi.bench.train import bench_train

    report = bench_train(repeats=0 if quick else 9, progress=progress("measuring"))
    command = f"oculi bench train{' --quick' * quick}"
    _show(report, "A training step beside its peers", command, out, as_json)
    raise typer.Exit(0 if report.ok else 1)


@app.command(epilog="Example: oculi bench loader --quick")
@one_line_errors
def loader(
    quick: Annotated[bool, typer.Option("--quick", help="few pictures, two passes")] = False,
    out: Annotated[Path | None, typer.Option(help="also write the report as Markdown")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="print JSON")] = False,
) -> None:
    """Pictures a second of one core from files to a batch, beside transformers' float32 way."""
    quiet_libraries()
    from oculi.bench.loader import bench_loader

    pictures, repeats = (16, 2) if quick else (64, 5)
    report = bench_loader(pictures, repeats, progress=progress("passes"))
    command = f"oculi bench loader{' --quick' * quick}"
    _show(report, "Pictures a second", command, out, as_json)


@app.command(epilog="Example: oculi bench gpu --size 1.5b")
@one_line_errors
def gpu(
    size: Annotated[str, typer.Option(help="7b or 1.5b (Qwen2.5's shapes), or tiny")] = "7b",
    samples: Annotated[int | None, typer.Option(min=1, help="of a step; else the size's")] = None,
    checkpointing: Annotated[
        str, typer.Option(help="of our step: none, selective or full")
    ] = "none",
    quick: Annotated[bool, typer.Option("--quick", help="time one step of each, not five")] = False,
    out: Annotated[Path | None, typer.Option(help="also write the report as Markdown")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="print JSON")] = False,
) -> None:
    """A step and an answer at real shapes with random weights on one CUDA device; no download."""
    quiet_libraries()
    from oculi.bench.gpu import bench_gpu

    report = bench_gpu(size, samples, checkpointing, 1 if quick else 5, progress("parts"))
    command = f"oculi bench gpu --size {size}{' --quick' * quick}"
    command += "" if samples is None else f" --samples {samples}"
    command += "" if checkpointing == "none" else f" --checkpointing {checkpointing}"
    _show(report, f"One device, {size}", command, out, as_json)


@app.command(epilog="Example: oculi bench edge --checkpoint runs/first --json")
@one_line_errors
def edge(
    checkpoint: Annotated[
        Path | None, typer.Option(help="trained: for the scores; else random weights, times alone")
    ] = None,
    task: Annotated[str, typer.Option(help="asked for the scores")] = "playroom:1",
    questions: Annotated[int, typer.Option(min=1, help="of the task")] = 500,
    repeats: Annotated[int, typer.Option(min=1, help="answers that are timed")] = 20,
    quick: Annotated[
        bool, typer.Option("--quick", help="a small large model, 2 repeats, 3 questions")
    ] = False,
    out: Annotated[Path | None, typer.Option(help="also write the report as Markdown")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="print JSON")] = False,
) -> None:
    """An exported int8 model beside transformers in float32: agreement, scores, pictures a second.

    Then the prefill of aurora beside that of llava at the same sizes: MACs, time, first token.
    Exits 1 when a float32 answer is another one than torch's, int8 loses more than a point, or the
    compressed prefill has no fewer MACs."""
    quiet_libraries()
    from oculi.bench.edge import bench_edge

    questions, repeats = (3, 2) if quick else (questions, repeats)
    say = progress("answers") or (lambda done, total: None)
    report = bench_edge(checkpoint, task, questions, repeats, quick, say)
    command = f"oculi bench edge{f' --checkpoint {checkpoint}' * (checkpoint is not None)}"
    command += f" --task {task} --questions {questions} --repeats {repeats}{' --quick' * quick}"
    _show(report, "An exported model beside transformers", command, out, as_json)
    raise typer.Exit(0 if report.ok else 1)


def _show(report: Any, title: str, command: str, out: Path | None, as_json: bool) -> None:
    """Print a report, and write it as a dated page if asked to, with the JSON beside it."""
    from oculi.bench.report import write

    if out is not None:
        write(report, title, command, out)
    print(json.dumps(report.to_json(), indent=1) if as_json else "\n".join(report.lines()))
