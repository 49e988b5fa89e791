"""MME: two yes-or-no questions of every picture, in fourteen categories (arXiv 2306.13394).

Its data is read in both forms that people have: files of rows with ``question_id``, ``image``,
``question``, ``answer`` and ``category`` (``lmms-lab/MME``, Parquet), and the folder of the original
release: a folder for each category, with a text file of two lines, question and answer parted by a tab,
for each picture, beside the pictures or in ``questions_answers_YN`` next to ``images``.

A category's score is accuracy in percent, plus accuracy+ in percent: the share of pictures of which both
questions are answered rightly. So a constant answer has 50, and a perfect model 200. Perception is the
sum over ten categories (of 2,000), cognition over four (of 800). VoRA's world knowledge (table 4) is the
sum over posters, celebrity, landmark and artwork (of 800).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from oculi.data.content import kind, one_picture, text
from oculi.data.grouped import PICTURES
from oculi.data.images import ImageError, image_ref, open_file
from oculi.data.kinds import find_files, open_container
from oculi.data.sample import ImageSlot, ImageSource, Message, RowError, Sample
from oculi.errors import DataError, nearest, shown
from oculi.eval.score import Scoring

PREFIX: Final = "mme:"
WORLD_KNOWLEDGE: Final = ("posters", "celebrity", "landmark", "artwork")
# The sums that are reported; the first two are MME's own, the last is VoRA's table 4.
SPLITS: Final[Mapping[str, tuple[str, ...]]] = {
    "perception": (
        "existence", "count", "position", "color", "posters", "celebrity", "scene", "landmark",
        "artwork", "OCR",
    ),
    "cognition": (
        "commonsense_reasoning", "numerical_calculation", "text_translation", "code_reasoning",
    ),
    "world_knowledge": WORLD_KNOWLEDGE,
}  # fmt: skip
CATEGORIES: Final = (*SPLITS["perception"], *SPLITS["cognition"])
BEST: Final = 200  # of one category
KEYS: Final = ("question_id", "image", "question", "answer", "category")
ANSWERS: Final = ("yes", "no")
TEXTS: Final = "questions_answers_YN"
PICTURE_FOLDER: Final = "images"
LONGEST_TEXT: Final = 2**16  # bytes of two questions


@dataclass(frozen=True)
class MmeRow:
    """A question as a sample; its id is the picture's, shared by the two questions of it."""

    category: str
    sample: Sample


def open_mme(path: Path, image_root: Path | None = None) -> list[MmeRow]:
    """All questions, the two of a picture one after the other, in the order of their first rows.

    Args:
        path: the folder of the original release, or a file, folder of files or pattern of rows.
        image_root: where rows' image paths start, if they are paths; None: the file's folder.

    Raises:
        DataError: there is nothing of the kind, a row is bad, or a picture has not two questions.
    """
    found = _folder_rows(path) if _is_release(path) else _file_rows(path, image_root)
    by_picture: dict[tuple[str, str], list[MmeRow]] = {}
    for row in found:
        rows = by_picture.setdefault((row.category, row.sample.id), [])
        rows.append(_with_the_picture(rows[0], row) if rows else row)
    if not by_picture:
        raise DataError(f"{path}: there are no questions")
    for (category, id), rows in by_picture.items():
        if len(rows) != 2:
            raise DataError(
                f"{path}: {category}, picture {shown(id)} has {len(rows)} questions; MME asks two of "
                "every picture, and accuracy+ needs both"
            )
    return [row for rows in by_picture.values() for row in rows]


def _with_the_picture(first: MmeRow, row: MmeRow) -> MmeRow:
    """The row with the picture of the first question of it: so that it is in memory once."""
    return replace(row, sample=replace(row.sample, images=first.sample.images))


# Files of rows


def _file_rows(path: Path, image_root: Path | None) -> Iterator[MmeRow]:
    for file in find_files(path):
        container = open_container(file)
        container.also_read(KEYS)
        root = image_root or file.parent
        for found in container.rows():
            where = f"{file}:{found.ref.line}"
            if found.row is None:
                raise DataError(f"{where}: {found.problem}")
            try:
                yield _row(found.row, root, where)
            except (RowError, ImageError) as error:
                said = error.reason if isinstance(error, RowError) else str(error)
                raise DataError(f"{where}: {said}") from None


def _row(row: Mapping[str, Any], root: Path, where: str) -> MmeRow:
    for key in KEYS:
        if row.get(key) is None:
            raise RowError(f'no "{key}"; a row of MME has {", ".join(KEYS)}')
    id = row["question_id"]
    if isinstance(id, bool) or not isinstance(id, str | int):
        raise RowError(f'"question_id" is {kind(id)}; it must name the picture')
    question, answer, category = (
        text(row[key], f'"{key}"') for key in ("question", "answer", "category")
    )
    image = one_picture(row["image"], '"image"', root)
    return _question(str(id), question, answer, category, image, where)


def _question(
    id: str, question: str, answer: str, category: str, image: ImageSource, where: str
) -> MmeRow:
    """A checked question; raises RowError."""
    if category not in CATEGORIES:
        raise RowError(f"no category {shown(category)}{nearest(category, CATEGORIES)}")
    if answer.strip().lower() not in ANSWERS:
        raise RowError(f"the answer is {shown(answer)}; MME's are Yes and No")
    if not question.strip():
        raise RowError("the question is empty")
    messages = (
        Message("user", (ImageSlot(0), "\n" + question.strip())),
        Message("assistant", (answer.strip(),)),
    )
    return MmeRow(category, Sample(id, messages, (image,), where))


# The folder of the original release


def _is_release(path: Path) -> bool:
    return any((path / category).is_dir() for category in CATEGORIES)


def _folder_rows(path: Path) -> Iterator[MmeRow]:
    for category in CATEGORIES:
        folder = path / category
        if not folder.is_dir():
            continue
        texts, pictures = folder / TEXTS, folder / PICTURE_FOLDER
        texts = texts if texts.is_dir() else folder
        pictures = pictures if pictures.is_dir() else folder
        images = {p.stem: p for p in sorted(pictures.iterdir()) if p.suffix[1:].lower() in PICTURES}
        for file in sorted(texts.glob("*.txt")):
            try:
                if file.stem not in images:
                    raise RowError(f"there is no picture {shown(file.stem)} in {pictures}")
                image = image_ref(images[file.stem].name, pictures)
                for number, (question, answer) in enumerate(_lines(file, path), start=1):
                    id = f"{category}/{images[file.stem].name}"  # as the files of rows have it
                    yield _question(id, question, answer, category, image, f"{file}:{number}")
            except (RowError, ImageError) as error:
                said = error.reason if isinstance(error, RowError) else str(error)
                raise DataError(f"{file}: {said}") from None


def _lines(file: Path, root: Path) -> Iterator[tuple[str, str]]:
    """Question and answer of every line; raises RowError or ImageError."""
    with open_file(file.absolute(), root, file.name, LONGEST_TEXT) as opened:
        data = opened.read()
    try:
        lines = data.decode("utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise RowError(f"not valid UTF-8 at byte {error.start + 1}") from None
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        question, tab, answer = line.rpartition("\t")
        if not tab:
            raise RowError(f"line {number} has no tab between question and answer")
        yield question, answer


# Scores


def yes_or_no(said: str) -> str | None:
    """What an answer says, as MME's own script reads it: by its first four characters; None: neither."""
    start = said.strip().lower()[:4]
    return next((word for word in ANSWERS if word in start), None)


def _correct(prediction: str, answer: str) -> bool:
    return yes_or_no(prediction) == yes_or_no(answer)


def _summary(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """MME's scores by category, and the sums of ``SPLITS``, as ``mme`` of the result."""
    categories = {name: _category([r for r in rows if r["group"] == name]) for name in CATEGORIES}
    found = {name: scores for name, scores in categories.items() if scores is not None}
    splits = {}
    for name, parts in SPLITS.items():
        there = [part for part in parts if part in found]
        splits[name] = {
            "score": sum(found[part]["score"] for part in there),
            "best": BEST * len(there),
            "categories": {part: found[part]["score"] for part in there},
            "missing": [part for part in parts if part not in found],
        }
    return {"mme": {"categories": found, **splits}}


def _category(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any] | None:
    """Accuracy over questions and accuracy+ over pictures of which both were asked, in percent."""
    if not rows:
        return None
    asked, right = Counter(r["id"] for r in rows), Counter(r["id"] for r in rows if r["correct"])
    whole = [id for id, number in asked.items() if number == 2]
    accuracy = 100 * sum(right.values()) / len(rows)
    plus = 100 * sum(right[id] == 2 for id in whole) / len(whole) if whole else 0.0
    return {
        "score": accuracy + plus,
        "accuracy": accuracy,
        "accuracy_plus": plus,
        "questions": len(rows),
        "pictures": len(whole),
    }


def _lines_of(result: Mapping[str, Any]) -> list[str]:
    found = result["mme"]
    lines = [
        f"{name:22} {scores['accuracy']:5.1f} + {scores['accuracy_plus']:5.1f} = "
        f"{scores['score']:5.1f} of {BEST}"
        for name, scores in found["categories"].items()
    ]
    for name in SPLITS:
        split = found[name]
        if not split["categories"]:
            continue
        without = f" (without {', '.join(split['missing'])})" if split["missing"] else ""
        label = name.replace("_", " ")
        lines.append(f"{label:22} {split['score']:.1f} of {split['best']:,}{without}")
    return lines


SCORING: Final = Scoring("yes or no", _correct, _summary, _lines_of)
