"""``python -m oculi.edge``: answers and times of an exported folder, without torch."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from oculi.errors import OculiError, RecipeError

if TYPE_CHECKING:
    from PIL import Image

    from oculi.edge.runtime import Content, Runner

HELP = """usage: python -m oculi.edge COMMAND ...

Answers from a folder that oculi export --to onnx wrote; torch is not needed.

  answer  one answer, or a conversation without a question
  bench   first-token latency, time a token, answers a second

python -m oculi.edge COMMAND --help says more."""
EXAMPLE = 'Example: python -m oculi.edge answer edge --image cat.png "What is this?"'


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; a mistake in the input is one line and the error's exit code."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    command = COMMANDS.get(words[0]) if words else None
    if command is None:
        asked = bool(words) and words[0] in ("-h", "--help")
        print(HELP, file=sys.stdout if asked else sys.stderr)
        return 0 if asked else 2
    make, run = command
    try:
        # Not subcommands of argparse: those take no question behind the options.
        run(make().parse_intermixed_args(words[1:]))
    except OculiError as error:
        print(f"oculi: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("oculi: interrupted", file=sys.stderr)
        return 130
    return 0


def _answer_parser() -> argparse.ArgumentParser:
    parser = _parser("answer", "One answer, or a conversation without a question.", EXAMPLE)
    parser.add_argument("question", nargs="?", help="without one: a conversation")
    parser.add_argument("--max-new-tokens", type=int, default=128, help="longest answer in tokens")
    parser.add_argument("--temperature", type=float, default=0.0, help="0: the likeliest token")
    parser.add_argument("--top-p", type=float, default=1.0, help="draw from the likeliest so many")
    parser.add_argument("--seed", type=int, default=0, help="of the draws")
    parser.add_argument("--system", help="a message in front of the conversation")
    return parser


def _bench_parser() -> argparse.ArgumentParser:
    example = "Example: python -m oculi.edge bench edge --image cat.png"
    parser = _parser("bench", "First-token latency, time a token, answers a second.", example)
    parser.add_argument("question", nargs="?", default="What is this?")
    parser.add_argument("--new-tokens", type=int, default=16, help="of every answer")
    parser.add_argument("--repeats", type=int, default=20, help="answers that are timed")
    parser.add_argument("--json", action="store_true", help="print JSON")
    return parser


def _parser(command: str, description: str, epilog: str) -> argparse.ArgumentParser:
    name = f"python -m oculi.edge {command}"
    parser = argparse.ArgumentParser(prog=name, description=description, epilog=epilog)
    parser.add_argument("folder", type=Path, help="what oculi export --to onnx wrote")
    parser.add_argument("--image", type=Path, action="append", default=[], help="repeatable")
    parser.add_argument("--threads", type=int, help="within an operation; else one a core")
    parser.add_argument(
        "--no-sums", action="store_true", help="compare lengths of files, not SHA-256 sums"
    )
    return parser


def _answer(chosen: argparse.Namespace) -> None:
    from oculi.edge.sampling import Decoding

    decoding = Decoding(chosen.max_new_tokens, chosen.temperature, chosen.top_p, chosen.seed)
    runner, pictures = _open(chosen)
    talk: list[tuple[str, list[Content]]] = []
    if chosen.system is not None:
        talk.append(("system", [chosen.system]))
    question = chosen.question
    if question is None:
        print("An empty line or end of input ends the conversation.", file=sys.stderr)
    while question := question or _read_line():
        talk.append(("user", [*pictures, "\n" + question] if pictures else [question]))
        pictures = []  # they stand before the first question
        said = ""
        for text in runner.texts(runner.prompt(talk), decoding):
            print(text, end="", flush=True)
            said += text
        print()
        talk.append(("assistant", [said]))
        if chosen.question is not None:
            return
        question = None


def _read_line() -> str:
    try:
        return input("> ").strip()
    except EOFError:
        return ""


def _bench(chosen: argparse.Namespace) -> None:
    from oculi.edge.measure import measure

    if chosen.repeats < 1:
        raise RecipeError(f"--repeats {chosen.repeats} is below one")
    runner, pictures = _open(chosen)
    content = [*pictures, "\n" + chosen.question] if pictures else [chosen.question]
    measured = measure(runner, [("user", content)], chosen.new_tokens, chosen.repeats)
    print(json.dumps(measured.to_json(), indent=1) if chosen.json else "\n".join(measured.lines()))


def _open(chosen: argparse.Namespace) -> tuple[Runner, list[Image.Image]]:
    from oculi.data.images import load_image
    from oculi.data.sample import ImageRef
    from oculi.edge.runtime import load

    if chosen.threads is not None and chosen.threads < 1:
        raise RecipeError(f"--threads {chosen.threads} is below one")
    pictures = [load_image(ImageRef(path=path)) for path in chosen.image]
    return load(chosen.folder, chosen.threads, not chosen.no_sums), pictures


COMMANDS: dict[str, tuple[Callable[[], argparse.ArgumentParser], Callable[..., None]]] = {
    "answer": (_answer_parser, _answer),
    "bench": (_bench_parser, _bench),
}

if __name__ == "__main__":
    sys.exit(main())
