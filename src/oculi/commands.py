"""What every command shares, wherever it is defined."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from functools import wraps
from typing import Annotated, Any

import typer

from oculi.errors import ELSEWHERE, OculiError

RecipeName = Annotated[str, typer.Argument(help="a built-in name, file.py:function or recipe.yaml")]
Overrides = Annotated[list[str] | None, typer.Argument(help="key=value, as stages.0.lr=1e-4")]


def one_line_errors(command: Callable[..., Any]) -> Callable[..., Any]:
    """A mistake in the input becomes one line and its exit code; a bug keeps its traceback."""

    @wraps(command)
    def run(*args: Any, **kwargs: Any) -> Any:
        try:
            return command(*args, **kwargs)
        except OculiError as error:
            if error.code != ELSEWHERE:
                print(f"oculi: {error}", file=sys.stderr)
            raise typer.Exit(error.exit_code) from None
        except KeyboardInterrupt:
            print("oculi: interrupted", file=sys.stderr)
            raise typer.Exit(130) from None

    return run


def quiet_libraries() -> None:
    """Progress bars and warnings of libraries out of the way of ours."""
    import os

    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()


def progress(what: str) -> Callable[[int, int], None] | None:
    """A counter on the terminal, with the time left; nothing when the output is not one."""
    if not sys.stderr.isatty():
        return None
    begun: list[tuple[float, int]] = []  # time and count of the first call: a job may go on

    def show(done: int, total: int) -> None:
        now = time.monotonic()
        begun[:] = begun or [(now, done)]
        rate = (done - begun[0][1]) / max(now - begun[0][0], 1e-9)
        left = f", {(total - done) / rate / 60:.1f} min left" if rate and done < total else ""
        end = "\n" if done >= total else ""
        # Spaces: the line before may have been longer.
        print(f"\r{what}: {done} of {total}{left:20}", end=end, file=sys.stderr, flush=True)

    return show
