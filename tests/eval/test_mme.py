"""MME: both forms of its data, its scores, and the sums of VoRA's table 4."""

import io
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from typer.testing import CliRunner

import oculi
from oculi.cli import app
from oculi.data.sample import ImageSlot
from oculi.errors import DataError
from oculi.eval import evaluate as module
from oculi.eval.compare import compare
from oculi.eval.evaluate import evaluate
from oculi.eval.mme import CATEGORIES, SCORING, SPLITS, WORLD_KNOWLEDGE, open_mme, yes_or_no
from oculi.eval.tasks import open_task

ASK = "Is this a {} of {}? Please answer yes or no."


def png(side: int) -> bytes:
    out = io.BytesIO()
    Image.new("RGB", (side, side), (side, 0, 0)).save(out, "PNG")
    return out.getvalue()


def table(categories: tuple[str, ...] = CATEGORIES, pictures: int = 2) -> list[dict[str, Any]]:
    """Rows as ``lmms-lab/MME`` has them: of every picture a Yes and a No, with the picture in each."""
    return [
        {
            "question_id": f"{category}/{number}.png",
            "image": {"bytes": png(8 + number), "path": f"{number}.png"},
            "question": ASK.format(f"{category} {number}", answer),
            "answer": answer,
            "category": category,
        }
        for category in categories
        for number in range(pictures)
        for answer in ("Yes", "No")
    ]


def parquet(folder: Path, rows: list[dict[str, Any]], name: str = "test.parquet") -> Path:
    pq.write_table(pa.Table.from_pylist(rows), folder / name, row_group_size=10)
    return folder / name


def release(folder: Path, rows: list[dict[str, Any]]) -> Path:
    """The same as the original release has it: five categories keep texts and pictures apart."""
    for row in rows:
        base = folder / row["category"]
        apart = row["category"] in (*WORLD_KNOWLEDGE, "scene")
        texts, pictures = (
            base / (name if apart else "") for name in ("questions_answers_YN", "images")
        )
        texts.mkdir(parents=True, exist_ok=True)
        pictures.mkdir(parents=True, exist_ok=True)
        name = row["image"]["path"]
        (pictures / name).write_bytes(row["image"]["bytes"])
        with (texts / name).with_suffix(".txt").open("a") as file:
            file.write(f"{row['question']}\t{row['answer']}\n")
    return folder


# Data


def test_rows_of_a_file_are_questions(tmp_path: Path) -> None:
    rows = table()
    task = open_task(f"mme:{parquet(tmp_path, rows)}")
    found = task.load(None)
    assert task.name == "mme" and len(found) == len(rows) == 14 * 2 * 2
    for row, question in zip(rows, found, strict=True):
        assert question.id == row["question_id"] and question.group == row["category"]
        assert (question.text, question.answer) == (row["question"], row["answer"])
        assert question.messages[0].content == (ImageSlot(0), "\n" + row["question"])
        assert (
            question.images[0].load().tobytes()
            == Image.open(io.BytesIO(row["image"]["bytes"])).tobytes()
        )
    assert found[0].images[0] is found[1].images[0]  # in memory once
    assert [q.id for q in task.load(3)] == [q.id for q in found[:3]]


def test_both_forms_ask_the_same(tmp_path: Path) -> None:
    rows = table()
    by_file = open_mme(parquet(tmp_path, rows))
    by_folder = open_mme(release(tmp_path / "MME_Benchmark_release_version", rows))

    def said(found: Any) -> list[Any]:
        return [
            (
                row.category,
                row.sample.id,
                row.sample.messages,
                row.sample.images[0].load().tobytes(),
            )
            for row in found
        ]

    assert said(by_folder) == said(by_file)


def test_shards_and_rows_in_any_order(tmp_path: Path) -> None:
    """The two questions of a picture need not be neighbours, nor in one file."""
    rows = table(("posters", "OCR"))
    parquet(tmp_path, rows[::2], "test-0.parquet")
    parquet(tmp_path, rows[1::2], "test-1.parquet")
    whole = open_mme(tmp_path)
    assert sorted(row.sample.id for row in whole) == sorted(row["question_id"] for row in rows)
    assert [row.sample.id for row in whole[::2]] == [row.sample.id for row in whole[1::2]]


def test_a_file_of_json_with_pictures_beside_it(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(png(9))
    rows = [{**row, "image": "a.png", "question_id": 7} for row in table(("count",), pictures=1)]
    file = tmp_path / "lists" / "mme.jsonl"
    file.parent.mkdir()
    file.write_text("\n".join(map(json.dumps, rows)))
    (first, _) = open_task(f"mme:{file}", str(tmp_path)).load(None)
    assert first.id == "7" and first.images[0].size() == (9, 9)


BAD: dict[str, tuple[dict[str, Any], str]] = {
    "category": ({"category": "poster"}, 'no category "poster"; did you mean "posters"?'),
    "answer": ({"answer": "maybe"}, 'the answer is "maybe"; MME\'s are Yes and No'),
    "nothing asked": ({"question": " "}, "the question is empty"),
    "no question": ({"question": None}, 'no "question"; a row of MME has question_id, image'),
    "id": ({"question_id": [1]}, '"question_id" is a list; it must name the picture'),
    "outside": ({"image": "../../secret.png"}, "lies outside the image root"),
    "picture": ({"image": 3}, '"image" is a number'),
    "alone": ({"question_id": "other"}, "has 1 questions; MME asks two of every picture"),
}


@pytest.mark.parametrize("case", BAD)
def test_a_bad_row_is_one_line(case: str, tmp_path: Path) -> None:
    change, reason = BAD[case]
    rows = [{**row, "image": "a.png"} for row in table(("posters",))]
    rows[2] |= change
    file = tmp_path / "mme.jsonl"
    file.write_text("\n".join(map(json.dumps, rows)))
    with pytest.raises(DataError) as caught:
        open_task(f"mme:{file}")
    assert reason in str(caught.value) and "\n" not in str(caught.value)
    assert str(file) in str(caught.value)


def test_a_bad_folder_is_one_line(tmp_path: Path) -> None:
    folder = release(tmp_path / "mme", table(("posters",)))
    file = folder / "posters" / "questions_answers_YN" / "0.txt"
    for text, reason in (
        ("Is it red? Yes\n", "line 1 has no tab between question and answer"),
        ("Is it red?\tYes\n", '"posters/0.png" has 1 questions'),
        ("Is it red?\tred\n", 'the answer is "red"'),
    ):
        file.write_text(text)
        with pytest.raises(DataError, match=reason):
            open_mme(folder)
    file.rename(file.with_name("9.txt"))
    with pytest.raises(DataError, match='there is no picture "9"'):
        open_mme(folder)


def test_nothing_there(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"nowhere"):
        open_task(f"mme:{tmp_path / 'nowhere'}")
    (tmp_path / "posters").mkdir()
    with pytest.raises(DataError, match="there are no questions"):
        open_mme(tmp_path)
    with pytest.raises(DataError, match="mme:PATH"):
        open_task("mm")


# Scores


@pytest.mark.parametrize(
    ("said", "read"),
    [
        ("Yes", "yes"), ("no", "no"), ("  Yes, it is.", "yes"), ("NO!", "no"), ("Not at all", "no"),
        ("The answer is yes", None), ("", None), ("red", None),
    ],
)  # fmt: skip
def test_an_answer_is_read_by_its_first_four_characters(said: str, read: str | None) -> None:
    assert yes_or_no(said) == read


def test_the_splits_are_those_of_the_papers() -> None:
    assert len(SPLITS["perception"]) == 10 and len(SPLITS["cognition"]) == 4
    assert len(set(CATEGORIES)) == 14
    assert set(WORLD_KNOWLEDGE) == {"posters", "celebrity", "landmark", "artwork"}  # VoRA, table 4
    assert set(WORLD_KNOWLEDGE) < set(SPLITS["perception"])


def judged(group: str, *pictures: tuple[bool, ...]) -> list[dict[str, Any]]:
    return [
        {"id": f"{group}/{number}", "group": group, "correct": correct}
        for number, answers in enumerate(pictures)
        for correct in answers
    ]


def test_accuracy_and_accuracy_plus() -> None:
    rows = judged("posters", (True, True), (True, False), (False, False), (True, True))
    found = SCORING.summary(rows)["mme"]
    assert found["categories"] == {
        "posters": {
            "score": 62.5 + 50, "accuracy": 62.5, "accuracy_plus": 50.0,
            "questions": 8, "pictures": 4,
        }
    }  # fmt: skip
    assert found["world_knowledge"]["score"] == 112.5 and found["world_knowledge"]["best"] == 200
    assert found["world_knowledge"]["missing"] == ["celebrity", "landmark", "artwork"]
    assert found["cognition"] == {
        "score": 0, "best": 0, "categories": {}, "missing": list(SPLITS["cognition"]),
    }  # fmt: skip


def test_a_constant_has_50_and_a_perfect_model_200_a_category() -> None:
    constant = [row for c in CATEGORIES for row in judged(c, *[(True, False)] * 3)]
    perfect = [row for c in CATEGORIES for row in judged(c, *[(True, True)] * 3)]
    sums = {"perception": 2000, "cognition": 800, "world_knowledge": 800}
    for rows, share in ((constant, 0.25), (perfect, 1.0)):
        found = SCORING.summary(rows)["mme"]
        assert {name: found[name]["score"] for name in sums} == {
            name: share * best for name, best in sums.items()
        }
        for name, best in sums.items():
            assert found[name]["best"] == best and not found[name]["missing"]


def test_a_picture_of_which_a_limit_left_one_question_has_no_accuracy_plus() -> None:
    rows = judged("OCR", (True, True), (True,))
    scores = SCORING.summary(rows)["mme"]["categories"]["OCR"]
    assert (scores["accuracy"], scores["accuracy_plus"], scores["pictures"]) == (100, 100, 1)


@pytest.fixture(scope="module")
def loaded(finished: Path) -> tuple[Any, Any]:
    return oculi.load(finished)


def test_a_model_is_scored(
    loaded: tuple[Any, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A model that knows the pictures with number 0, and says yes to all others."""
    rows = table(WORLD_KNOWLEDGE)

    def reply(model: Any, processor: Any, prompts: Any, max_new_tokens: int) -> list[str]:
        texts = [processor.tokenizer.decode(prompt.input_ids) for prompt in prompts]
        return ["no." if " 0 of No?" in text else "Yes, I see it" for text in texts]

    monkeypatch.setattr(module, "answer", reply)
    task = open_task(f"mme:{parquet(tmp_path, rows)}")
    result = evaluate(*loaded, task, tmp_path / "out")
    assert result["scoring"] == "yes or no" and result["exact"]["correct"] == 12
    assert result["groups"]["posters"]["majority"] == 0.5
    assert {s["score"] for s in result["mme"]["categories"].values()} == {75.0 + 50.0}
    assert result["mme"]["world_knowledge"]["score"] == 500
    assert json.loads((tmp_path / "out" / "result.json").read_text()) == result
    lines = task.scoring.lines(result)
    assert "world knowledge        500.0 of 800" in lines
    assert any(line.startswith("perception") and "without existence" in line for line in lines)
    assert not any(line.startswith("cognition") for line in lines)


def test_two_evaluations_are_compared(
    loaded: tuple[Any, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both questions of every picture, where categories have pictures of the same names."""
    task = open_task(f"mme:{release(tmp_path / 'mme', table(('posters', 'OCR')))}")
    for always in ("Yes", "No"):
        monkeypatch.setattr(
            module, "answer", lambda m, p, asked, n, said=always: [said] * len(asked)
        )
        evaluate(*loaded, task, tmp_path / always)
    (found,) = compare(tmp_path / "Yes", tmp_path / "No")
    assert {name: one.n for name, one in found.groups.items()} == {"all": 8, "OCR": 4, "posters": 4}
    assert found.groups["all"].only_first == found.groups["all"].only_second == 4


def test_the_command(finished: Path, tmp_path: Path) -> None:
    file = parquet(tmp_path, table(("posters", "artwork"), pictures=1))
    words = ["eval", str(finished), "--task", f"mme:{file}", "--out", str(tmp_path / "out")]
    done = CliRunner().invoke(app, [*words, "--max-new-tokens", "2"])
    assert done.exit_code == 0, (done.stderr, done.exception)
    assert done.stdout.startswith("mme, seeing: ") and "% yes or no (" in done.stdout
    result = json.loads((tmp_path / "out" / "result.json").read_text())
    rows = [json.loads(x) for x in (tmp_path / "out" / "answers.jsonl").read_text().splitlines()]
    assert SCORING.summary(rows) == {"mme": result["mme"]}
    done = CliRunner().invoke(app, ["eval", str(finished), "--task", "mme:nowhere"])
    assert done.exit_code == 2 and len(done.stderr.splitlines()) == 1
