"""The folder of an edge model: its files, the sums that they are checked by, its settings.

    MANIFEST.json     SHA-256 and length of every other file
    edge.json         settings: pictures, chat, ids that end an answer
    vision.onnx       one picture's patches [rows, columns, C] uint8 -> tokens [S, D]
    decoder.onnx      embeddings [1, T, D] and the cache -> logits [1, V] of the last position, the cache
    embeddings.npy    [V, D], read by rows, never as a whole
    tokenizer.json    as `tokenizers` reads it
    *.onnx.data       weights, beside the graph that they belong to

What lies in a folder is untrusted: whatever is wrong with it becomes a CheckpointError of one line.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, get_args, get_origin, get_type_hints

from oculi.errors import CheckpointError, shown

MANIFEST, SETTINGS = "MANIFEST.json", "edge.json"
VISION, DECODER = "vision.onnx", "decoder.onnx"
EMBEDDINGS, TOKENIZER = "embeddings.npy", "tokenizer.json"
NEEDED = (SETTINGS, VISION, DECODER, EMBEDDINGS, TOKENIZER)
FORMAT = 1
MAX_JSON = 64 * 2**20
AGAIN = "export it again with oculi export --to onnx"


@dataclass(frozen=True)
class Pictures:
    """How a picture is cut; see ``OculiImageProcessor`` for the meaning of each."""

    patch_size: int
    mode: str
    size: int
    min_patches: int
    max_patches: int
    image_mean: list[float]


@dataclass(frozen=True)
class Chat:
    """The chat template as ids, for conversations of users and assistants by turns.

    Attributes:
        begin: ids in front of the first question; of a conversation with a system message, in front
            of that. between: ids between contents, by ``"role role"``. generate: ids behind the last
            question, which open the answer.
        turns: questions that a conversation may have; 0 for any number. system: whether it may begin
            with a system message.
        image_token_id: stands at image positions.
        control_ids: ids that content may never become. unk_token, unk_token_id: of characters that the
            vocabulary lacks.
    """

    begin: dict[str, list[int]]
    between: dict[str, list[int]]
    generate: list[int]
    turns: int
    system: bool
    image_token_id: int
    control_ids: list[int]
    unk_token: str | None
    unk_token_id: int | None


@dataclass(frozen=True)
class Settings:
    """What ``edge.json`` holds.

    Attributes:
        name: of the model. precision: ``float32`` or ``int8``, of the weights of the graphs.
        eos_ids: end an answer. suppressed_ids: never generated.
        positions: the longest that the LLM was made for, prompt and answer.
    """

    format: int
    name: str
    precision: str
    pictures: Pictures
    chat: Chat
    eos_ids: list[int]
    suppressed_ids: list[int]
    positions: int

    def to_json(self) -> dict[str, Any]:
        """For ``edge.json``."""
        return asdict(self)


def digest(path: Path) -> str:
    """SHA-256 of a file in hexadecimal digits, read in pieces; raises OSError."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_manifest(folder: Path) -> None:
    """Enter every file that lies in a folder; raises OSError."""
    files = {
        path.name: {"sha256": digest(path), "bytes": path.stat().st_size}
        for path in sorted(folder.iterdir())
        if path.is_file() and path.name != MANIFEST
    }
    text = json.dumps({"format": FORMAT, "files": files}, indent=1)
    (folder / MANIFEST).write_text(text + "\n", encoding="utf-8")


def check(folder: Path, sums: bool = True) -> None:
    """Compare a folder with its manifest.

    Args:
        sums: also compare SHA-256 sums, which reads every byte; else the lengths alone.

    Raises:
        CheckpointError: it is no edge model, or a file is missing, cut or altered.
    """
    if not (folder / MANIFEST).is_file() or not (folder / SETTINGS).is_file():
        raise CheckpointError(
            f"{folder} is no edge model (no {MANIFEST} and {SETTINGS}): oculi export CHECKPOINT "
            "--to onnx writes one"
        )
    files = _read_json(folder / MANIFEST).get("files")
    if not isinstance(files, dict):
        raise CheckpointError(f"{folder / MANIFEST} lists no files; {AGAIN}")
    for name in NEEDED:
        if name not in files:
            raise CheckpointError(f"{folder / MANIFEST} does not list {name}; {AGAIN}")
    for name, entry in files.items():
        if Path(name).name != name or not isinstance(entry, dict):
            raise CheckpointError(f"{folder / MANIFEST} lists {shown(name)}, no file of the folder")
        _check_file(folder / name, entry, sums)


def _check_file(path: Path, entry: dict[str, Any], sums: bool) -> None:
    try:
        length = path.stat().st_size if path.is_file() else None
        if length is None:
            raise CheckpointError(f"{path} is missing; {AGAIN}")
        if length != entry.get("bytes"):
            raise CheckpointError(
                f"{path} has {length} bytes where {entry.get('bytes')} were written: it was cut or "
                f"altered; {AGAIN}"
            )
        if sums and digest(path) != entry.get("sha256"):
            raise CheckpointError(f"{path} is not the file that was written; {AGAIN}")
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror}") from None


def read_settings(folder: Path) -> Settings:
    """The settings of a folder; raises CheckpointError for what is not as this version writes it."""
    path = folder / SETTINGS
    data = _read_json(path)
    if data.get("format") != FORMAT:
        raise CheckpointError(
            f"{path} has the format {shown(str(data.get('format')))}, and this oculi reads {FORMAT}; "
            f"{AGAIN}"
        )
    settings: Settings = _typed(Settings, data, path, "")
    return settings


def check_ids(settings: Settings, rows: int, folder: Path) -> None:
    """Look whether the model has the ids that its settings name.

    Args:
        rows: of the table of embeddings.

    Raises:
        CheckpointError: it has not, or the chat lacks a stretch that its turns need.
    """
    chat, path = settings.chat, folder / SETTINGS
    begin, between = {"user"}, set()
    if chat.turns != 1:
        between |= {"user assistant", "assistant user"}
    if chat.system:
        begin, between = begin | {"system"}, between | {"system user"}
    for place, needed, found in (
        ("begin", begin, chat.begin), ("between", between, chat.between)
    ):  # fmt: skip
        if lacking := sorted(needed - found.keys()):
            raise CheckpointError(f'{path}: chat.{place} lacks "{lacking[0]}"; {AGAIN}')
    named = {
        "eos_ids": settings.eos_ids,
        "suppressed_ids": settings.suppressed_ids,
        "chat.generate": chat.generate,
        **{f"chat.begin {key}": ids for key, ids in chat.begin.items()},
        **{f"chat.between {key}": ids for key, ids in chat.between.items()},
    }
    for place, ids in named.items():
        for token_id in ids:
            if not 0 <= token_id < rows:
                raise CheckpointError(
                    f"{path}: {shown(place)} names the id {token_id}, and the model has {rows} ids; "
                    f"{AGAIN}"
                )
    if not 0 <= chat.image_token_id < 2**31 or chat.turns < 0:
        raise CheckpointError(f"{path}: chat is not as oculi writes it; {AGAIN}")


def _read_json(path: Path) -> dict[str, Any]:
    try:
        if path.stat().st_size > MAX_JSON:
            raise CheckpointError(f"{path} is longer than {MAX_JSON // 2**20} MiB; {AGAIN}")
        data = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror}") from None
    except (ValueError, RecursionError):
        raise CheckpointError(f"{path} is no JSON; {AGAIN}") from None
    if not isinstance(data, dict):
        raise CheckpointError(f"{path} holds no settings; {AGAIN}")
    return data


def _typed(kind: Any, value: Any, path: Path, place: str) -> Any:
    """``value`` as the annotation ``kind`` says, dataclasses from dictionaries."""
    origin, arguments = get_origin(kind), get_args(kind)
    if hasattr(kind, "__dataclass_fields__") and isinstance(value, dict):
        names = {field.name for field in fields(kind)}
        if names != value.keys():
            wrong = ", ".join(sorted(map(str, names ^ value.keys())))
            raise CheckpointError(
                f"{path}: {place or 'settings'} lacks, or has too much: {shown(wrong)}"
            )
        hints = get_type_hints(kind)
        dot = f"{place}." if place else ""
        return kind(**{n: _typed(hints[n], value[n], path, dot + n) for n in names})
    if origin is list and isinstance(value, list):
        return [_typed(arguments[0], item, path, place) for item in value]
    if origin is dict and isinstance(value, dict):
        return {str(k): _typed(arguments[1], item, path, place) for k, item in value.items()}
    kinds: Sequence[Any] = (
        arguments if origin is not None and origin not in (list, dict) else (kind,)
    )
    plain = tuple(float | int if one is float else one for one in kinds)
    for one in plain:
        if isinstance(value, one) and (one is bool or not isinstance(value, bool)):
            return value
    raise CheckpointError(f"{path}: {place} is not as oculi writes it; {AGAIN}")
