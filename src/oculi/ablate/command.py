"""``oculi ablate``. All but the options is imported inside, so that ``--help`` answers at once."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated

import typer

from oculi.commands import one_line_errors, quiet_libraries
from oculi.training.allocator import keep_freed_memory

EXAMPLE = "Example: oculi ablate vora-table2 --seeds 3 --out runs/table2"


@one_line_errors
def ablate(
    name: Annotated[str | None, typer.Argument(help="an ablation; see --list")] = None,
    overrides: Annotated[
        list[str] | None, typer.Argument(help="key=value in every row, as for oculi train")
    ] = None,
    seeds: Annotated[
        int | None, typer.Option(min=1, max=20, help="runs of each row; else 3, with --quick 2")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="its folder; else runs/NAME")] = None,
    runs: Annotated[
        Path | None, typer.Option(help="folder of runs to share with others; else OUT/runs")
    ] = None,
    jobs: Annotated[
        int, typer.Option(min=1, max=64, help="runs at once, a GPU or a share of the cores each")
    ] = 1,
    report: Annotated[
        Path | None, typer.Option(help="also write the report here, as benchmarks/NAME.md")
    ] = None,
    quick: Annotated[
        bool, typer.Option("--quick", help="a few steps each, to see that it works: no result")
    ] = False,
    resume: Annotated[bool, typer.Option("--resume", help="go on where it stopped")] = False,
    show_list: Annotated[bool, typer.Option("--list", help="what there is, a line each")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="print JSON")] = False,
) -> None:
    """A paper's table or figure at small scale: runs, table, curves, and a verdict for each claim.

    Claims and their rules are printed and written down before the first run."""
    from oculi.ablate.catalogue import ABLATIONS, find_ablation
    from oculi.ablate.spec import QUICK_SEEDS, SEEDS

    if name is None or show_list:
        for key, one in ABLATIONS.items():
            print(f"{key:14} {len(one.rows)} rows  {one.source}: {one.question}")
        return
    ablation = find_ablation(name).overriding(overrides or [])
    quiet_libraries()
    keep_freed_memory()
    from oculi.ablate.engine import run_ablation

    folder = out or Path("runs") / (name + "-quick" * quick)
    planned = seeds or (QUICK_SEEDS if quick else SEEDS)
    done = run_ablation(
        ablation, planned, folder, runs=runs, quick=quick, resume=resume, jobs=jobs,
        say=lambda line: print(line, file=sys.stderr, flush=True),
    )  # fmt: skip
    if report is not None:
        done.write(report)
    print(json.dumps(done.to_json(), indent=1) if as_json else "\n".join(done.lines()))
    print(f"report: {report or folder / 'report.md'}", file=sys.stderr)
