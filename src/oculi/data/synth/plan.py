"""What a folder of synthesised samples depends on, and what has been answered so far."""

from __future__ import annotations

import fcntl
import json
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

from pydantic import Field, ValidationError

from oculi import durable
from oculi.data.rowfile import picture_digest
from oculi.data.synth.instructions import Instruction
from oculi.data.synth.pictures import Item
from oculi.data.synth.records import Journal
from oculi.errors import DataError, RecipeError, shown
from oculi.specs.base import Count, Int, Strict

PLAN, RECORDS = "plan.json", "records.jsonl"
# A reply that fits; one that does not, to be asked for again; the provider's filter; no request.
Outcome = Literal["ok", "invalid", "filtered", "refused"]
_OUTCOMES: Final = ("ok", "invalid", "filtered", "refused")
_OURS: Final = ("model", "messages", "stream", "n")  # of a request, and not to be set


class Plan(Strict):
    """All that an answer depends on, save the picture."""

    version: Literal[1] = 1
    strategy: str
    instructions: str = Field(description="their version")
    instruction: Instruction
    model: str = Field(min_length=1)
    seed: Int = Field(0, ge=0)
    max_side: Count = 1024
    settings: dict[str, Any] = Field(default_factory=dict, description="fields of the request")

    def body(self, prompt: str, url: str) -> dict[str, Any]:
        """The request for one picture, as https://platform.openai.com/docs/api-reference/chat says.

        Args:
            prompt: the text. url: the picture as a data URL.
        """
        content = [
            {"type": "image_url", "image_url": {"url": url}},
            {"type": "text", "text": prompt},
        ]
        body = {
            "model": self.model,
            "messages": [{"role": "user", "content": content}],
            "max_tokens": self.instruction.tokens.most,
        }
        return {key: value for key, value in (body | self.settings).items() if value is not None}

    def limit(self) -> int | None:
        """Tokens of an answer at most, as the request says under either name; None: it does not."""
        body = self.body("", "")
        given = (body.get(name) for name in ("max_tokens", "max_completion_tokens"))
        return max((value for value in given if type(value) is int), default=None)

    def words(self, item: Item) -> tuple[str, str]:
        """What a picture is asked with, and the question of the sample that a caption becomes."""
        asked = self.instruction
        wording = asked.wording(self.seed, item.key)
        question = item.question if asked.question == "own" else wording
        return asked.ask(wording, item.text), question


def read_settings(given: list[str]) -> dict[str, Any]:
    """Fields of a request from KEY=VALUE, the value as JSON where it is some; raises RecipeError."""
    found: dict[str, Any] = {}
    for text in given:
        key, mark, value = text.partition("=")
        if not mark or not key:
            raise RecipeError(f"{shown(text)}: give it as KEY=VALUE, as temperature=0.7")
        if key in _OURS:
            raise RecipeError(f"{shown(key)} of a request is not to be set")
        try:
            found[key] = json.loads(value)
        except (ValueError, RecursionError):
            found[key] = value
    return found


def check_plan(out: Path, plan: Plan) -> None:
    """Raise DataError when a folder holds answers to something else."""
    file = out / PLAN
    if out.exists() and not out.is_dir():
        raise DataError(f"{out}: is a file; choose another --out")
    if not file.exists():
        ours = (".lock", PLAN + durable.PARTIAL)  # the second from a kill before it had its name
        if out.is_dir() and any(each.name not in ours for each in out.iterdir()):
            raise DataError(f"{out}: exists and is not empty; choose another --out")
        return
    try:
        old = Plan.model_validate_json(file.read_bytes())
    except (OSError, ValidationError):
        raise DataError(f"{file}: is damaged; restore it, or choose another --out") from None
    for name in Plan.model_fields:
        if getattr(old, name) != getattr(plan, name):
            raise DataError(
                f"{out}: was begun with {_other(name)}; choose another --out, or go on as before"
            )


def _other(name: str) -> str:
    names = {"instruction": "other instructions", "instructions": "another version of them"}
    return names.get(name, f"another {name}")


@dataclass(slots=True)
class Entry:
    """What is recorded of a picture: the last outcome, how many answers, and where the last one is.

    `digest` is of the bytes that were asked about; empty in records from before it was noted.
    """

    outcome: Outcome
    tries: int
    place: int
    digest: str = ""


@dataclass(slots=True)
class Tokens:
    """As servers have counted them."""

    prompt: int = 0
    completion: int = 0

    def add(self, value: Mapping[str, Any]) -> None:
        """Add those of a record."""
        self.prompt += value.get("prompt_tokens") or 0
        self.completion += value.get("completion_tokens") or 0


class Records:
    """The answers so far, each on the disk; safe to add to from threads.

    Raises:
        DataError: a line is damaged, or no record.
    """

    def __init__(self, journal: Journal) -> None:
        self._journal, self._lock = journal, threading.Lock()
        self.entries: dict[str, Entry] = {}
        self.tokens = Tokens()
        for place, value in journal:
            _enter(self.entries, place, value, journal.path)
            self.tokens.add(value)

    def add(self, item: Item, outcome: Outcome, reason: str, reply: str, **counted: int) -> None:
        """Record an answer; raises DiskError."""
        value = {
            "key": item.key, "id": item.id, "place": item.place, "digest": item.digest,
            "outcome": outcome, "reason": reason, "reply": reply, **counted,
        }  # fmt: skip
        with self._lock:
            place = self._journal.add(value)
            _enter(self.entries, place, value, self._journal.path)
            self.tokens.add(value)

    def read(self, key: str) -> dict[str, Any]:
        """The last record of a picture."""
        return self._journal.read(self.entries[key].place)


def is_open(entries: Mapping[str, Entry], key: str, tries: int) -> bool:
    """Whether a picture is still to be asked about."""
    entry = entries.get(key)
    return entry is None or (entry.outcome == "invalid" and entry.tries < tries)


def forget_changed(entries: dict[str, Entry], item: Item) -> bool:
    """Take out what is recorded of a picture if its bytes are others now; returns whether they are.

    The key of a file is its name, which says nothing of what lies under it now.
    """
    entry = entries.get(item.key)
    if entry is None or entry.digest in ("", item.key):  # bytes inside a row are their own key
        return False
    try:
        changed = picture_digest(item.image) != entry.digest
    except DataError:  # nobody can say; whoever asks finds out why
        del entries[item.key]
        return False
    if changed:
        del entries[item.key]
    return changed


def _enter(entries: dict[str, Entry], place: int, value: Mapping[str, Any], path: Path) -> None:
    key, outcome = value.get("key"), value.get("outcome")
    counts = [value.get(name) or 0 for name in ("prompt_tokens", "completion_tokens")]
    digest = value.get("digest", "")
    texts = [key, digest, value.get("reply"), value.get("reason")]
    whole = all(isinstance(text, str) for text in texts) and all(type(n) is int for n in counts)
    if outcome not in _OUTCOMES or not whole:
        raise DataError(f"{path}: byte {place} is no record; take that line out")
    before = entries.get(str(key))
    again = before is not None and before.digest in ("", digest)
    entries[str(key)] = Entry(outcome, before.tries + 1 if before and again else 1, place, digest)


def peek(out: Path) -> dict[str, Entry]:
    """The answers so far, without touching anything; raises DataError as `Records`."""
    entries: dict[str, Entry] = {}
    file, place = out / RECORDS, 0
    if not file.exists():
        return entries
    with file.open("rb") as lines:
        for line in lines:
            if line.endswith(b"\n"):  # else it is being written, or was when its writer was killed
                _enter(entries, place, _object(line), file)
            place += len(line)
    return entries


def _object(line: bytes) -> dict[str, Any]:
    try:
        value = json.loads(line)
    except (ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}


@contextmanager
def opened(out: Path, plan: Plan) -> Iterator[Records]:
    """The records of a folder for this process alone, begun if there are none.

    Raises:
        DataError: the folder holds something else, or another process has it.
    """
    check_plan(out, plan)
    with durable.disk_errors(str(out)):
        out.mkdir(parents=True, exist_ok=True)
        lock = (out / ".lock").open("w")
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise DataError(f"{out}: another process is at work there") from None
        if not (out / PLAN).exists():
            with durable.disk_errors(str(out)):
                durable.write_text(out / PLAN, plan.model_dump_json(indent=1))
        with Journal(out / RECORDS) as journal:
            yield Records(journal)
