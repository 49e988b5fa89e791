"""`oculi data review`: a person accepts, edits or rejects samples, one after the other.

The manual curation of AuroraEdge-V (section 4.3). Every decision is on the disk before the next
sample is shown, under what the sample says: rows may move, and a row that has changed is shown again.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final, Literal

from oculi import durable
from oculi.data.formats import FileSource
from oculi.data.images import ImageError
from oculi.data.rowfile import picture_key, remarks, root_hint, to_row, write_rows
from oculi.data.sample import ImageSlot, ImageSource, Message, Sample
from oculi.data.synth.records import Journal
from oculi.errors import DataError, shown

Verdict = Literal["accept", "edit", "reject", "undo"]
_VERDICTS: Final = ("accept", "edit", "reject", "undo")
_PROMPT: Final = "accept (a), edit (e), reject (r), skip (s), back (b), quit (q)? "
_NAMES: Final = {"system": "system", "user": "Q", "assistant": "A"}
_PREVIEW: Final = 1600  # pixels, longest side

Ask = Callable[[str, str], str]  # prompt and the text to begin with -> a line; raises EOFError


@dataclass
class Reviewed:
    """Counts of decisions over all rows of the file, and what was written."""

    out: str
    accepted: int = 0
    edited: int = 0
    rejected: int = 0
    undecided: int = 0
    bad_rows: int = 0
    written: int = 0
    hint: str = ""

    def lines(self) -> Iterator[str]:
        """The counts as text."""
        yield (
            f"accepted {self.accepted}, edited {self.edited}, rejected {self.rejected}, "
            f"undecided {self.undecided}" + (f"; bad rows {self.bad_rows}" if self.bad_rows else "")
        )
        yield f"{self.out}: {self.written} rows"
        if self.hint:
            yield self.hint


@dataclass(frozen=True, slots=True)
class _Decision:
    verdict: Verdict
    texts: tuple[str, ...] = ()  # of an edit: questions and answers by turns


def review(
    path: Path,
    out: Path,
    ask: Ask,
    show: Callable[[str], None],
    *,
    image_root: Path | None = None,
    form: str | None = None,
    keep_undecided: bool = False,
) -> Reviewed:
    """Show every row that nobody has decided on, and write those accepted or edited to `out`.

    Args:
        path: a data file, a pattern or a folder. out: a JSON Lines file; decisions are kept beside
            it, in `OUT.decisions`.
        ask, show: the terminal.
        image_root, form: as of a source in a recipe.
        keep_undecided: write undecided rows as well.

    Raises:
        DataError: the file cannot be read, or `out` is it.
    """
    rows = FileSource(path, image_root, form=form)
    if out.exists() and any(out.samefile(file) for file in rows.files):
        raise DataError(f"{out}: is what is reviewed; choose another --out")
    with Journal(out.with_name(out.name + ".decisions")) as journal:
        decided = _decisions(journal)
        with suppress(EOFError):
            _Session(rows, journal, decided, ask, show, _preview(out)).run()
    _preview(out).unlink(missing_ok=True)
    found = Reviewed(str(out), bad_rows=len(rows.bad_rows), hint=root_hint(out, rows.root))
    found.written = write_rows(out, _kept(rows, decided, found, keep_undecided, show))
    return found


def _preview(out: Path) -> Path:
    return out.with_name(f".{out.name}.jpg")  # hidden: `out` may lie among pictures


def _decisions(journal: Journal) -> dict[str, _Decision]:
    decided: dict[str, _Decision] = {}
    for place, value in journal:
        key, verdict, texts = value.get("key"), value.get("verdict"), value.get("texts")
        texts = texts if isinstance(texts, list) else [None]
        listed = all(isinstance(text, str) for text in texts)
        if not isinstance(key, str) or verdict not in _VERDICTS or not listed:
            raise DataError(f"{journal.path}: byte {place} is no decision; take that line out")
        _decide(decided, key, _Decision(verdict, tuple(texts)))
    return decided


def _decide(decided: dict[str, _Decision], key: str, decision: _Decision) -> None:
    if decision.verdict == "undo":
        decided.pop(key, None)
    else:
        decided[key] = decision


def _key(sample: Sample) -> str:
    said = [(message.role, message.content) for message in sample.messages]
    shown_ = [_seen(image) for image in sample.images]
    text = repr((sample.id, said, shown_)).encode("utf-8", "surrogatepass")
    return hashlib.blake2b(text, digest_size=16).hexdigest()


def _seen(image: ImageSource) -> str:
    try:
        return picture_key(image)
    except ImageError as error:
        return str(error)  # the row must be shown all the same, or nobody could reject it


class _Session:
    """One sitting at the terminal."""

    def __init__(
        self,
        rows: FileSource,
        journal: Journal,
        decided: dict[str, _Decision],
        ask: Ask,
        show: Callable[[str], None],
        preview: Path,
    ) -> None:
        self.rows, self.journal, self.decided = rows, journal, decided
        self.ask, self.show, self.preview = ask, show, preview

    def run(self) -> None:
        """Until the last row, `q`, or the end of input (EOFError)."""
        number, back = 0, list[int]()
        while number < len(self.rows):
            sample = self.rows[number]
            key = _key(sample)
            if key in self.decided:
                number += 1
                continue
            self._present(number, sample)
            said = self.ask(_PROMPT, "").strip().lower()
            if said == "q":
                return
            if said == "b":
                number = self._undo(back) if back else number
                continue
            if said in ("a", "r") or (said == "e" and self._edit(key, sample)):
                if said != "e":
                    self._note(key, _Decision("accept" if said == "a" else "reject"))
            elif said != "s":
                self.show(f"{shown(said)} is none of the letters; nothing was decided")
                continue
            back.append(number)
            number += 1

    def _undo(self, back: list[int]) -> int:
        number = back.pop()
        key = _key(self.rows[number])
        if key in self.decided:
            self._note(key, _Decision("undo"))
        return number

    def _note(self, key: str, decision: _Decision) -> None:
        value = {"key": key, "verdict": decision.verdict, "texts": list(decision.texts)}
        self.journal.add(value)
        _decide(self.decided, key, decision)

    def _present(self, number: int, sample: Sample) -> None:
        self.show(f"\n[{number + 1} of {len(self.rows)}] row {shown(sample.id)}")
        for place, image in enumerate(sample.images, start=1):
            try:
                picture = image.load()
                width, height = picture.size
                self.show(f"  picture {place}: {width} x {height} pixels, {self.preview}")
                if place == 1:  # under one name: a viewer that is left open follows
                    picture.thumbnail((_PREVIEW, _PREVIEW))
                    with durable.disk_errors(str(self.preview)):
                        self.preview.parent.mkdir(parents=True, exist_ok=True)
                        picture.save(self.preview, "JPEG")
            except DataError as error:
                self.show(f"  picture {place}: {error}")
        for message in sample.messages:
            self.show(f"  {_NAMES[message.role]}: {_printable(message.text.strip())}")

    def _edit(self, key: str, sample: Sample) -> bool:
        """Ask for every text anew; returns whether there is a sample to keep."""
        self.show('  an empty line keeps a text, "-" as a question takes it and its answer out,')
        self.show(r"  \n stands for a line break and \\ for a backslash")
        texts: list[str] = []
        talk = [m.text.strip() for m in sample.messages if m.role != "system"]
        for question, answer in zip(talk[::2], talk[1::2], strict=True):
            asked = self._line("Q", question)
            if asked == "-":
                continue
            texts += [asked, self._line("A", answer)]
        if not texts or not all(text.strip() for text in texts[1::2]):
            self.show("  nothing is left of it; reject it instead")
            return False
        if not all(text.strip() for text in texts[2::2]):
            self.show("  a later question is empty; nothing was decided")
            return False
        self._note(key, _Decision("edit", tuple(texts)))
        return True

    def _line(self, name: str, text: str) -> str:
        said = self.ask(f"  {name}: ", _escaped(text))
        return _unescaped(said.strip()) if said.strip() else text


def _escaped(text: str) -> str:
    return text.replace("\\", "\\\\").replace("\n", "\\n")


def _unescaped(text: str) -> str:
    parts = text.split("\\\\")
    return "\\".join(part.replace("\\n", "\n") for part in parts)


def _printable(text: str) -> str:
    """Safe to print: what a model writes could move the cursor of the terminal."""
    return "".join(c if c.isprintable() or c == "\n" else repr(c)[1:-1] for c in text)


def _kept(
    rows: FileSource,
    decided: dict[str, _Decision],
    found: Reviewed,
    keep_undecided: bool,
    show: Callable[[str], None],
) -> Iterator[dict[str, Any]]:
    """The rows to write, and their counts; one whose picture cannot be written is a bad row."""
    for number, sample in enumerate(rows):
        decision = decided.get(_key(sample))
        if decision.verdict != "reject" if decision else keep_undecided:
            made = sample
            if decision is not None and decision.verdict == "edit":
                made = _edited(sample, decision.texts)
            try:
                row = to_row(made, remarks(rows.row(number)))
            except ImageError as error:
                found.bad_rows += 1
                show(f"{sample.source}: row {shown(sample.id)}: {error}; it is left out")
                continue
            yield row
        if decision is None:
            found.undecided += 1
        elif decision.verdict == "reject":
            found.rejected += 1
        elif decision.verdict == "edit":
            found.edited += 1
        else:
            found.accepted += 1


def _edited(sample: Sample, texts: tuple[str, ...]) -> Sample:
    """The sample with other questions and answers, all its pictures in front of the first."""
    system = tuple(message for message in sample.messages if message.role == "system")
    slots = tuple(ImageSlot(number) for number in range(len(sample.images)))
    messages = list(system)
    for number, text in enumerate(texts):
        if number == 0:
            asked = (("\n" if slots else "") + text,) if text else ()
            content: tuple[str | ImageSlot, ...] = (*slots, *asked)
            messages.append(Message("user", content))
        else:
            messages.append(Message("assistant" if number % 2 else "user", (text,)))
    made = replace(sample, messages=tuple(messages))
    made.validate(for_training=True)
    return made
