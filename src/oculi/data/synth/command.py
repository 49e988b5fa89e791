"""``oculi data synthesize`` and ``oculi data instructions``."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from oculi.commands import one_line_errors, progress

if TYPE_CHECKING:
    from oculi.data.synth.estimate import Estimate
    from oculi.data.synth.plan import Plan

EXAMPLE = (
    "Example: oculi data synthesize photos --strategy brief-vqa --endpoint https://HOST/v1 --model NAME "
    "--key-env API_KEY --out made --dry-run"
)


@one_line_errors
def instructions(
    out: Annotated[Path | None, typer.Option(help="file to write, instead of printing")] = None,
) -> None:
    """The built-in instructions of `oculi data synthesize`, to change a copy of them."""
    from oculi import durable
    from oculi.data.synth.instructions import BUILTIN
    from oculi.errors import DataError

    text = BUILTIN.read_text(encoding="utf-8")
    if out is None:
        print(text, end="")
        return
    if out.exists():
        raise DataError(f"{out}: exists; choose another --out")
    with durable.disk_errors(str(out)):
        durable.write_text(out, text)


@one_line_errors
def synthesize(
    source: Annotated[Path, typer.Argument(help="data file, pattern, or folder of pictures")],
    strategy: Annotated[
        str, typer.Option(help="brief- or detailed-caption, brief- or detailed-vqa, recaption")
    ],
    endpoint: Annotated[str, typer.Option(help="OpenAI-compatible, as https://HOST/v1")],
    model: Annotated[str, typer.Option(help="its name there")],
    out: Annotated[Path, typer.Option(help="folder for records and samples; resumes in it")],
    key_env: Annotated[
        str | None, typer.Option(help="environment variable that holds the key")
    ] = None,
    instructions: Annotated[
        Path | None, typer.Option(help="instead of the built-in ones; see oculi data instructions")
    ] = None,
    image_root: Annotated[Path | None, typer.Option(help="where image paths start")] = None,
    format: Annotated[str | None, typer.Option(help="of the rows, if not as recognised")] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="only the first pictures")] = None,
    seed: Annotated[int, typer.Option(min=0, help="who gets which wording")] = 0,
    max_side: Annotated[int, typer.Option(min=28, help="of a sent picture, in pixels")] = 1024,
    set_: Annotated[
        list[str] | None, typer.Option("--set", help="field of the request, as temperature=0.7")
    ] = None,
    concurrency: Annotated[int, typer.Option(min=1, max=256, help="requests under way")] = 4,
    requests_per_minute: Annotated[float | None, typer.Option(min=0.01, help="at most")] = None,
    tokens_per_minute: Annotated[float | None, typer.Option(min=1, help="at most")] = None,
    tries: Annotated[int, typer.Option(min=1, help="answers asked for until one fits")] = 3,
    retries: Annotated[int, typer.Option(min=0, help="where no answer comes")] = 8,
    timeout: Annotated[float, typer.Option(min=0.1, help="seconds for a whole request")] = 120,
    image_tokens: Annotated[
        Literal["tiles", "patches"], typer.Option(help="counted as by GPT-4o or by Qwen2-VL")
    ] = "tiles",
    price_in: Annotated[
        float | None, typer.Option(min=0, help="of a million tokens that are sent")
    ] = None,
    price_out: Annotated[
        float | None, typer.Option(min=0, help="of a million tokens that are answered")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="only the estimate")] = False,
    yes: Annotated[bool, typer.Option("--yes", help="send without asking back")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="print JSON")] = False,
) -> None:
    """Captions or questions with answers for pictures, written by a model behind an endpoint.

    Estimates first, sends nothing without consent, and never asks again for what was answered.
    """
    from oculi.data.synth.asking import Limits
    from oculi.data.synth.endpoint import Endpoint, key_from
    from oculi.data.synth.estimate import Prices, estimate
    from oculi.data.synth.pictures import Pictures
    from oculi.data.synth.plan import check_plan, peek
    from oculi.data.synth.synthesize import check_answered
    from oculi.data.synth.synthesize import synthesize as run

    address = Endpoint(endpoint, None if dry_run else key_from(key_env), timeout)
    plan = _plan(strategy, instructions, model, seed, max_side, set_ or [])
    check_plan(out, plan)
    pictures, prices = Pictures(source, image_root, format, limit), Prices(price_in, price_out)
    expected = estimate(
        pictures, plan, peek(out), tries=tries, image_tokens=image_tokens, prices=prices,
        on_progress=progress("looking at pictures"),
    )  # fmt: skip
    if dry_run:
        print(json.dumps(expected.to_json(), indent=1) if as_json else "\n".join(expected.lines()))
        return
    if address.exposed:
        print("oculi: the key goes over an unencrypted connection (http)", file=sys.stderr)
    _consent(expected, yes)
    limits = Limits(
        concurrency, tries, retries, requests_per_minute, tokens_per_minute, image_tokens
    )
    summary = run(
        pictures, plan, address, out, limits, prices=prices,
        total=expected.requests, on_progress=progress("asking"),
    )  # fmt: skip
    print(json.dumps(summary.to_json(), indent=1) if as_json else "\n".join(summary.lines()))
    check_answered(summary)


def _plan(
    strategy: str, file: Path | None, model: str, seed: int, max_side: int, fields: list[str]
) -> Plan:
    from oculi.data.synth.instructions import read_instructions
    from oculi.data.synth.plan import Plan, read_settings
    from oculi.errors import RecipeError

    if not model.strip():
        raise RecipeError("--model is empty: give the name that the endpoint knows")
    known = read_instructions(file)
    return Plan(
        strategy=strategy,
        instructions=known.version,
        instruction=known.strategy(strategy),
        model=model,
        seed=seed,
        max_side=max_side,
        settings=read_settings(fields),
    )


def _consent(expected: Estimate, yes: bool) -> None:
    """Show the estimate and ask, unless nothing is to be sent; raises RecipeError without consent."""
    from oculi.errors import RecipeError

    print("\n".join(expected.lines()), file=sys.stderr)
    if yes or not expected.requests:
        return
    if not sys.stdin.isatty():
        raise RecipeError("nothing was sent: add --yes when the estimate is what you want")
    print(f"Send {expected.requests} requests? [y/N] ", end="", file=sys.stderr, flush=True)
    try:
        said = input()
    except EOFError:
        said = ""
    if said.strip().lower() not in ("y", "yes"):
        raise RecipeError("nothing was sent")
