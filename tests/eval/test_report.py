"""The report works for any state of a run folder, loads nothing and believes nothing it reads."""

from __future__ import annotations

import json
import math
import os
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from oculi.errors import DataError
from oculi.eval import folder as eval_folder
from oculi.eval import report
from oculi.eval.folder import MAX_PICTURE
from oculi.eval.report import write_report
from oculi.eval.templates import curves, scores, values
from oculi.eval.templates.contents import Eval, Part

HOSTILE = "\"><script>alert(1)</script>'<img src=x onerror=y>$\\frac{$&amp;\ud800\x00\u202e"
VOID = {"meta", "img", "br"}
LOADS = {
    "src",
    "href",
    "srcset",
    "data",
    "action",
    "poster",
    "background",
    "xlink:href",
    "formaction",
}
RECIPE = """\
name: tiny
summary: Two stages & little of each.
stages:
- {name: pretrain, steps: 100}
- {name: finetune, steps: 50}
evals:
- {task: 'playroom:1'}
"""


class Page(HTMLParser):
    """Checks that tags nest and that nothing is loaded; keeps text and tags."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.source = path.read_text(encoding="utf-8")
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(self.source)
        self.close()
        assert not self.open
        assert "@import" not in self.source
        assert set(re.findall(r"url\((.)", self.source)) <= {"#"}

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_startendtag(tag, attrs)
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert tag not in {"script", "link", "iframe", "object", "embed", "base", "form"}
        for name, value in attrs:
            assert not name.startswith("on")
            if name in LOADS:
                assert re.match(r"#|data:image/(png|jpeg);base64,", value or ""), (tag, name, value)
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data + " "

    def count(self, tag: str, name: str = "", value: str = "") -> int:
        return sum(t == tag and (not name or a.get(name) == value) for t, a in self.tags)


def line(stage: str = "pretrain", step: int = 1, **more: Any) -> dict[str, Any]:
    entry = {
        "stage": stage, "step": step, "steps": 100 if stage == "pretrain" else 50,
        "loss": 3.0 / step, "lm": 2.5 / step, "distill": 0.5 / step,
        "objectives": ["lm", "distill"], "lr": 1e-3, "grad_norm": 0.9, "samples": step * 64,
        "samples_per_second": 88.1, "tokens_per_second": 6000.0, "useful_tokens": 0.95,
        "elapsed": step * 2.0,
    }  # fmt: skip
    return {**entry, **more}


def log(run: Path, *entries: dict[str, Any], end: str = "") -> None:
    text = "".join(json.dumps(entry) + "\n" for entry in entries)
    (run / "metrics.jsonl").write_text(text + end, encoding="utf-8")


def score(correct: int, n: int) -> dict[str, Any]:
    p = correct / n
    return {
        "score": p,
        "low": max(0, p - 0.03),
        "high": min(1, p + 0.03),
        "correct": correct,
        "n": n,
    }


def answers(n: int, images: int = 0, **more: Any) -> list[dict[str, Any]]:
    return [
        {
            "id": f"q{i}", "turn": 1, "group": "colour", "question": f"Question {i}?",
            "answer": "red", "prediction": "red" if i % 4 else "blue", "correct": bool(i % 4),
            "image": f"images/{i:03d}.png" if i < images else None, **more,
        }
        for i in range(n)
    ]  # fmt: skip


def evaluation(
    run: Path, name: str, rows: list[dict[str, Any]], stage: str = "pretrain", **more: Any
) -> Path:
    folder = run / "evals" / name
    (folder / "images").mkdir(parents=True)
    for row in rows:
        if str(row["image"]).startswith("images/"):
            Image.new("RGB", (84, 84), "red").save(folder / row["image"])
    result = {
        "task": "playroom:1", "stage": stage, "checkpoint": "x", "blind": False,
        "exact": score(498, 600), "groups": {"colour": {**score(90, 100), "majority": 0.25}},
        "majority": {"score": 0.12, "answer": "red"}, "seconds": 12.3,
    }  # fmt: skip
    (folder / "result.json").write_text(json.dumps({**result, **more}, indent=1))
    (folder / "answers.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


@pytest.fixture
def run(tmp_path: Path) -> Path:
    folder = tmp_path / "run-1"
    folder.mkdir()
    return folder


@pytest.fixture
def whole(run: Path) -> Path:
    (run / "recipe.yaml").write_text(RECIPE)
    steps = [line(step=i) for i in range(1, 101)]
    log(run, *steps, *(line("finetune", i, objectives=["lm"]) for i in range(1, 51)))
    for stage in ("pretrain", "finetune"):
        evaluation(run, f"{stage}-playroom-1", answers(60, 24), stage)
        blind = {"blind": True, "exact": score(72, 600)}
        evaluation(run, f"{stage}-playroom-1-blind", answers(60), stage, **blind)
    return run


def test_a_complete_run_has_every_part(whole: Path) -> None:
    path = write_report(whole)
    assert path == whole / "report.html"
    page = Page(path)
    assert "Not complete" not in page.text
    assert page.source.count("<h1>tiny</h1>") == 1
    for said in ("Two stages & little of each.", "run-1", "9,600", "5 min 00 s", "step 100 of 100"):
        assert said in page.text, said
    assert page.text.count("83.0 %") == 2
    assert page.text.count("80.0 to 86.0 %") == 2
    assert page.text.count("12.0 %") == 4  # blind, and the constant
    assert "by kind of question" in page.text
    # loss, lm, distill per stage; learning rate, speed, gradient norm once
    assert page.count("figure") == 9
    assert page.count("img") == 24
    assert page.count("div", "class", "card") == 4 * 6
    assert page.count("div", "class", "card wrong") == 4 * 6
    assert page.text.count("✗ wrong") == 24
    assert "- {name: pretrain, steps: 100}" in page.text
    assert [p.name for p in whole.glob(".report*")] == []


def test_an_empty_run_says_what_is_missing(run: Path) -> None:
    page = Page(write_report(run))
    for said in ("no recipe.yaml", "No step has been logged", "No evaluation has finished"):
        assert said in page.text
    assert page.count("figure") == 0


def test_a_run_that_goes_on_says_how_far_it_is(run: Path) -> None:
    (run / "recipe.yaml").write_text(RECIPE)
    log(run, *(line(step=i) for i in range(1, 4)))
    (run / "evals/pretrain-playroom-1/images").mkdir(parents=True)
    page = Page(write_report(run))
    for said in (
        "Stage pretrain is at step 3 of 100", "Stage finetune has not begun",
        "evals/pretrain-playroom-1 has no result.json",
    ):  # fmt: skip
        assert said in page.text


def test_a_missing_task_is_named(whole: Path) -> None:
    (whole / "recipe.yaml").write_text(RECIPE + "- {task: data/mine.jsonl}\n")
    assert (
        "data/mine.jsonl has not been scored after stage pretrain" in Page(write_report(whole)).text
    )


def test_a_cut_last_line_is_left_out(run: Path) -> None:
    log(run, line(step=1), line(step=2), end='{"stage": "pretrain", "step": 3, "lo')
    page = Page(write_report(run))
    assert "1 of 3 lines of metrics.jsonl cannot be used" in page.text
    assert "step 2 of 100" in page.text


def test_lines_of_any_kind_are_survived(run: Path) -> None:
    bad = '[1]\nnull\n{}\n{"stage": 3, "step": 1}\n{"stage": "s", "step": true}\n'
    bad += '{"stage": "s", "step": -1}\n' + "[" * 100_000 + "\n\xff\n"
    log(run, line(step=1, loss=10**400, lm=1e308, extra={"a": 1}), line(step=2, lm=-1e308), end=bad)
    assert "8 of 10 lines" in Page(write_report(run)).text


def test_values_that_are_no_numbers_are_not_drawn(run: Path) -> None:
    log(
        run,
        line(step=1, lm=math.nan),
        line(step=2, lm=math.inf),
        line(step=3, lr=None),
        line(step=4),
    )
    page = Page(write_report(run))
    assert "2 logged values are not finite" in page.text
    log(run, *(line(step=i, lm=math.nan) for i in range(1, 9)))
    page = Page(write_report(run))
    assert "no finite value" in page.text
    assert " nan" not in page.source.lower()


def test_after_a_resume_the_last_value_of_a_step_counts(run: Path) -> None:
    first = [line(step=i, elapsed=float(i)) for i in (10, 20, 30)]
    again = [line(step=i, lm=7.25, elapsed=float(i - 10)) for i in (20, 30, 40)]
    log(run, *first, *again)
    [stage] = values.stage_logs([*first, *again])
    assert stage.steps.tolist() == [10, 20, 30, 40]
    assert stage.values["lm"].tolist() == [0.25, 7.25, 7.25, 7.25]
    assert stage.objectives == ("lm", "distill")
    page = Page(write_report(run))
    assert "2,560" in page.text  # samples of step 40: repeated steps show the same samples
    assert "1 min 00 s" in page.text  # 30 s and, after the resume, 30 s


def test_hostile_text_stays_text(run: Path) -> None:
    recipe = {"name": HOSTILE, "summary": HOSTILE, "stages": [{"name": HOSTILE}]}
    (run / "recipe.yaml").write_text(json.dumps(recipe))
    log(run, line(HOSTILE, 1, **{HOSTILE: 1.0}, device=HOSTILE), line("$x_{", 1), line("$x_{", 2))
    rows = answers(8, question=HOSTILE, answer=HOSTILE, prediction=HOSTILE, group=HOSTILE)
    odd = {"groups": {HOSTILE: score(1, 2)}, "majority": {"score": HOSTILE}, "task": HOSTILE}
    evaluation(run, "a&<b>'\"", rows, HOSTILE, **odd)
    page = Page(write_report(run))
    assert "<script" not in page.source
    assert page.count("img") == 0
    assert page.text.count("<script>alert(1)</script>") > 10
    assert not re.search("[\x00\u202e]", page.source)


@pytest.mark.parametrize(
    "image",
    [
        "../../../secret.png", "/etc/passwd", "images/link.png", "http://x/y.png", "images", "",
        "images/none.png", "a\0b", "x" * 5000, "images/page.png", "images/pipe.png", "\ud800.png",
        "data:image/png;base64,AAAA", 7, {"a": 1}, "images/loop.png",
    ],
)  # fmt: skip
def test_a_picture_that_leads_elsewhere_is_not_shown(run: Path, image: object) -> None:
    Image.new("RGB", (8, 8)).save(run.parent / "secret.png")
    folder = evaluation(run, "e", answers(1))
    (folder / "images/link.png").symlink_to(run.parent / "secret.png")
    (folder / "images/loop.png").symlink_to("loop.png")
    (folder / "images/page.png").write_text("<svg xmlns='http://www.w3.org/2000/svg'/>")
    os.mkfifo(folder / "images/pipe.png")
    rows = answers(1, image=image)
    (folder / "answers.jsonl").write_text(json.dumps(rows[0]) + "\n")
    page = Page(write_report(run))
    assert page.count("img") == 0
    assert "Question 0?" in page.text


def test_links_out_of_the_folder_are_not_followed(run: Path) -> None:
    outside = run.parent / "outside"
    outside.mkdir()
    (outside / "recipe.yaml").write_text("name: secret\n")
    log(outside, line("secret"))
    evaluation(outside, "e", answers(1, task="secret"))
    for name in ("recipe.yaml", "metrics.jsonl", "evals"):
        (run / name).symlink_to(outside / name)
    page = Page(write_report(run))
    assert "secret" not in page.source
    assert page.text.count("leads out of the run folder") == 3


def test_a_link_in_place_of_the_report_is_replaced(run: Path) -> None:
    precious = run.parent / "precious"
    precious.write_text("mine")
    (run / "report.html").symlink_to(precious)
    (run / f".report.html.{os.getpid()}").symlink_to(precious)
    write_report(run)
    assert precious.read_text() == "mine"
    assert not (run / "report.html").is_symlink()


def test_the_old_report_stays_when_the_new_one_fails(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = write_report(run).read_bytes()

    def full(*_: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(OSError, match="disk full"):
        write_report(run)
    assert (run / "report.html").read_bytes() == before
    assert [p.name for p in run.iterdir()] == ["report.html"]


def test_no_folder_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no folder"):
        write_report(tmp_path / "none")


def test_broken_files_are_named(run: Path) -> None:
    (run / "recipe.yaml").write_text("a: [b\n")
    (run / "metrics.jsonl").mkdir()
    folder = evaluation(run, "e", [])
    (folder / "answers.jsonl").unlink()
    (run / "evals/f").mkdir()
    (run / "evals/f/result.json").write_text('{"task": "x"')
    page = Page(write_report(run))
    for said in ("recipe.yaml holds no recipe", "e has no answers", "evals/f has no result.json"):
        assert said in page.text
    assert "83.0 %" in page.text


def test_wrong_and_right_answers_are_mixed() -> None:
    rows = answers(100, 24)
    shown, failed = values.choice(rows)
    assert [row["correct"] for row in shown].count(False) == 6
    assert len(shown) == 12
    assert all(row["image"] for row in shown)
    assert [row["id"] for row in failed] == [f"q{i}" for i in range(24, 72, 4)]
    all_right, none = values.choice([row for row in rows if row["correct"]])
    assert (len(all_right), none) == (12, [])
    assert len(values.choice([row for row in rows if not row["correct"]])[0]) == 12
    assert values.choice([]) == ([], [])


def test_an_answer_with_a_line_separator_is_one_answer(run: Path) -> None:
    folder = evaluation(run, "e", answers(1))
    row = {**answers(1)[0], "prediction": "a\u2028b"}
    (folder / "answers.jsonl").write_text(json.dumps(row, ensure_ascii=False) + "\n")
    assert "first 1 answers" in Page(write_report(run)).text


def test_a_long_run_makes_no_long_report(whole: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Bounded by what is read, drawn and written; a clock would fail on a busy machine."""
    small = write_report(whole).stat().st_size
    drawn: list[int] = []
    real = curves.thinned

    def watched(*given: Any) -> Any:
        points = real(*given)
        drawn.append(len(points[0]))
        return points

    monkeypatch.setattr(curves, "thinned", watched)
    monkeypatch.setattr(report, "MAX_LINES", 5000)
    log(whole, *(line(step=i, lm=2 + math.sin(i * i)) for i in range(1, 20_001)))
    for folder in (whole / "evals").iterdir():
        text = (folder / "answers.jsonl").read_text()
        (folder / "answers.jsonl").write_text(text * 100)
    path = write_report(whole)
    assert max(drawn) <= 2 * curves.BINS
    assert path.stat().st_size < small + 250_000
    page = Page(path)
    assert "one in 4 is drawn" in page.text
    assert "step 20000 of 100" in page.text  # the newest line is among them


def test_many_of_everything_is_bounded(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(report, "MAX_EVALS", 3)
    (run / "recipe.yaml").write_text("stages:\n" + "- {name: s}\n" * 9000)
    log(run, *(line(f"s{i}", 1, **{f"o{j}": 1.0 for j in range(99)}) for i in range(20)))
    for i in range(5):
        evaluation(run, f"e{i}", answers(1), task=f"task-{i}")
    page = Page(write_report(run))
    assert page.count("figure") == 24
    assert "first 12 are shown" in page.text
    assert "of 5 evaluations the last 3" in page.text.lower()
    assert "recipe.yaml is longer than 64 KiB" in page.text
    assert page.source.count("<li>") <= report.MAX_NOTES + 1


def restored(run: Path) -> dict[str, Any]:
    """As ``oculi reconstruct`` writes it."""
    folder = run / "restored"
    folder.mkdir()
    Image.new("RGB", (400, 300), "blue").save(folder / "pictures.png")
    bounds = {"mean": 20.25, "low": 19.5, "high": 21.125, "values": [20.25]}
    kinds = {"own": bounds, "shuffled": {**bounds, "mean": 12.0}}
    sides = {
        "of": {"checkpoint": "a", "tokens": "own"},
        "minus": {"checkpoint": "b", "tokens": "own"},
    }
    found = {
        "command": "oculi reconstruct a b", "pictures": 64, "checkpoints": {"a": {"PSNR": kinds}},
        "differences": [{"measure": "SSIM", **sides, **bounds, "mean": 0.125}],
    }  # fmt: skip
    (folder / "scores.json").write_text(json.dumps(found))
    return found


def test_restored_pictures_are_shown_where_there_are_any(run: Path) -> None:
    assert "Restored pictures" not in Page(write_report(run)).text
    found = restored(run)
    page = Page(write_report(run))
    assert page.count("img", "alt", "originals and restorations") == 1
    for said in ("oculi reconstruct a b", "means over 64 pictures", "a, own", "20.250", "12.000",
                 "19.500 to 21.125", "a, own - b, own", "0.125", "SSIM"):  # fmt: skip
        assert said in page.text, said
    (run / "restored" / "pictures.png").write_bytes(b"no picture")
    page = Page(write_report(run))
    assert page.count("img") == 0 and "20.250" in page.text
    (run / "restored" / "scores.json").write_text(json.dumps({**found, "checkpoints": [HOSTILE]}))
    assert "a, own - b, own" in Page(write_report(run)).text
    (run / "restored" / "scores.json").write_text("{}")
    page = Page(write_report(run))
    assert "restored has no scores.json that can be read" in page.text
    assert "Restored pictures" not in page.text


def shown(run: Path, count: int) -> list[dict[str, Any]]:
    """As a run writes it at checkpoints."""
    (run / "shown").mkdir(exist_ok=True)
    lines = [
        {
            "stage": "read", "step": 10 * step, "objective": "reconstruct", "images": 8,
            "picture": f"{step}.png", "rows": ["picture", "own tokens"],
            "scores": {"PSNR, own at 0.9": 10 + step, "PSNR, shuffled at 0.9": 9.5},
        }
        for step in range(1, count + 1)
    ]  # fmt: skip
    for line in lines:
        Image.new("RGB", (40, 30), "blue").save(run / "shown" / line["picture"])
    (run / "shown.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return lines


def test_what_checkpoints_show_is_a_table_and_some_pictures(run: Path) -> None:
    assert "Shown at checkpoints" not in Page(write_report(run)).text
    lines = shown(run, 3)
    page = Page(write_report(run))
    assert page.count("img", "alt", "pictures of 8 images") == 3
    for said in ("read, step 30: reconstruct", "PSNR, shuffled at 0.9", "13.000", "own tokens"):
        assert said in page.text, said
    # Many: all scores up to a limit, the first and the last picture among a few.
    shown(run, 100)
    page = Page(write_report(run))
    assert page.count("img") == report.MAX_SHEETS
    assert "Of 100 lines of shown.jsonl 60 are shown" in page.text
    assert page.source.count("<summary>read, step 10: ") == 1
    assert page.source.count("<summary>read, step 1000: ") == 1
    # A line that a resume wrote again counts once; what cannot be read is left out, and a picture named.
    bad = [{**lines[0], "scores": HOSTILE}, {**lines[1], "step": "x"}, {**lines[2], "rows": 3}, 7]
    again = [lines[0], {**lines[0], "scores": {"PSNR, own at 0.9": 77.125}}, *bad]
    (run / "shown.jsonl").write_text("".join(json.dumps(line) + "\n" for line in again))
    (run / "shown" / "1.png").write_bytes(b"no picture")
    page = Page(write_report(run))
    assert "77.125" in page.text and "11.000" not in page.text
    assert page.source.count('<tr><td class="text">read, step') == 2


def test_a_picture_shown_lies_in_the_folder(run: Path) -> None:
    (line,) = shown(run, 1)
    Image.new("RGB", (40, 30)).save(run.parent / "secret.png")
    (run / "shown.jsonl").write_text(json.dumps({**line, "picture": "../../secret.png"}))
    page = Page(write_report(run))
    assert page.count("img") == 0 and "11.000" in page.text


def test_large_pictures_become_small_ones(run: Path) -> None:
    folder = evaluation(run, "e", answers(2, 2))
    noise = np.random.default_rng(0).integers(0, 255, (1000, 1500, 3), dtype=np.uint8)
    Image.fromarray(noise).save(folder / "images/000.png", compress_level=0)
    Image.new("L", (5000, 5000)).save(folder / "images/001.png")
    path = write_report(run)
    assert path.stat().st_size < MAX_PICTURE * 4 / 3
    page = Page(path)
    assert page.count("img") == 1
    assert "too many pixels" in page.text


def test_pixels_are_rationed(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(eval_folder, "MAX_PIXELS", 3 * 84 * 84)
    evaluation(run, "e", answers(6, 6))
    page = Page(write_report(run))
    assert page.count("img") == 3
    assert page.text.count("the report has many already") == 3


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3)
    ),
    max_leaves=6,
)


@settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.data())
def test_no_content_of_any_file_stops_the_report(tmp_path: Path, data: st.DataObject) -> None:
    def mutated(good: dict[str, Any]) -> dict[str, Any]:
        changes = data.draw(st.dictionaries(st.sampled_from(sorted(good)), JSON, max_size=3))
        return {**good, **changes}

    run = tmp_path / "run"
    if not run.exists():
        run.mkdir()
        evaluation(run, "e", answers(3, 1))
        restored(run)
        shown(run, 2)
    log(run, *(mutated(line(step=i)) for i in range(1, 5)))
    recipe = {"name": "n", "summary": "s", "stages": [{"name": "pretrain"}], "evals": []}
    (run / "recipe.yaml").write_text(json.dumps(mutated(recipe)))
    result = json.loads((run / "evals/e/result.json").read_text())
    (run / "evals/e/result.json").write_text(json.dumps({**result, **mutated(result)}))
    scores = json.loads((run / "restored/scores.json").read_text())
    (run / "restored/scores.json").write_text(json.dumps({**scores, **mutated(scores)}))
    lines = [mutated(json.loads(line)) for line in (run / "shown.jsonl").read_text().splitlines()]
    (run / "shown.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    rows = [mutated(row) for row in answers(3, 1)]
    (run / "evals/e/answers.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    Page(write_report(run))


def test_thinning_keeps_spikes() -> None:
    x, y = np.arange(10_000.0), np.zeros(10_000)
    y[5432], y[77] = 9.0, -9.0
    few_x, few_y = curves.thinned(x, y, curves.BINS)
    assert len(few_x) <= 2 * curves.BINS
    assert (few_y.max(), few_y.min(), few_x[0], few_x[-1]) == (9.0, -9.0, 0.0, 9999.0)


def test_the_running_mean_is_one() -> None:
    y = np.arange(100.0)
    mean = curves.running_mean(y)
    np.testing.assert_allclose(mean[2:-2], y[2:-2])
    np.testing.assert_allclose(mean[[0, -1]], [1.0, 98.0])
    assert curves.running_mean(np.array([3.0])).tolist() == [3.0]


@pytest.mark.parametrize(
    "y", [[], [1.0], [0.0, 0.0, 0.0], [1e-300, 1.0, 2.0], [-1e308, 1e308, 1.0], [math.inf] * 3,
          [1e29, -1e29, 3.0], [1e-9, 1.0, 1e9]]
)  # fmt: skip
@pytest.mark.filterwarnings("error")
def test_curves_of_any_values(y: list[float]) -> None:
    svg = curves.curve(np.arange(1.0, len(y) + 1), np.array(y), may_log=True, breaks=[1.5])
    assert bool(svg) == any(abs(v) <= 1e30 for v in y)
    assert "#0" not in svg.replace('"#', "")  # no colour but the page's own
    assert "nan" not in svg
    assert "inf" not in svg


def test_labels_of_an_axis_are_whole() -> None:
    svg = curves.curve(np.arange(1.0, 9.0), np.linspace(0, 0.0005, 8), exact=True)
    labels = re.findall(r">(0\.000[\d.]*)<", svg)
    assert len(set(labels)) == len(labels) >= 2


def test_nothing_is_averaged_across_stages(monkeypatch: pytest.MonkeyPatch) -> None:
    averaged: list[list[float]] = []
    real = curves.running_mean

    def watched(y: Any) -> Any:
        averaged.append(y.tolist())
        return real(y)

    monkeypatch.setattr(curves, "running_mean", watched)
    curves.curve(np.arange(1.0, 7.0), np.array([1.0, 1, 1, 9, 9, 9]), breaks=[3.0])
    assert averaged == [[1, 1, 1], [9, 9, 9]]


def test_files_of_one_name_are_paired_by_their_folders() -> None:
    """Their tasks have one name, and blind ones sort before others."""

    def made(name: str) -> Eval:
        return Eval(name, "test", "fine", name.endswith("blind"), Part(None), {})

    names = ["fine-test-2", "fine-test-2-blind", "fine-test", "fine-test-blind", "fine-test-3"]
    pairs = scores._pairs([made(name) for name in names])
    assert [(a and a.name, b and b.name) for _, _, a, b in pairs] == [
        ("fine-test-2", "fine-test-2-blind"), ("fine-test", "fine-test-blind"), ("fine-test-3", None)
    ]  # fmt: skip
