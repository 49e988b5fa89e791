"""The commands as people type them: they work together, and a mistake is one line."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from helpers import HOSTILE, Drawn, Tiny, finished, metrics, put, recipe_data, tiny, write_rows
from oculi.cli import app
from oculi.recipe import load, validate
from oculi.recipes import BUILTIN, find_recipe

__all__ = ["finished", "tiny"]


def invoke(*arguments: object, input: str | None = None) -> Any:
    return CliRunner().invoke(app, [str(argument) for argument in arguments], input=input)


def works(*arguments: object, input: str | None = None) -> str:
    done = invoke(*arguments, input=input)
    assert done.exit_code == 0, (done.stderr, done.exception)
    return str(done.stdout)


def fails(*arguments: object) -> str:
    """The one line of a mistake; anything else is a bug."""
    done = invoke(*arguments)
    assert done.exit_code == 2, (done.exit_code, done.stdout, done.exception)
    assert done.stdout == ""
    (line,) = done.stderr.splitlines()
    assert line.startswith("oculi: ")
    return str(line.removeprefix("oculi: "))


@pytest.fixture
def recipe(tiny: Tiny, tmp_path: Path) -> Path:
    """recipe.yaml of a run of one step in each of two stages."""
    data = recipe_data(tiny, **{"stages.0.steps": 1, "stages.1.steps": 1})
    file = tmp_path / "recipe.yaml"
    file.write_text(validate(data, "test").to_yaml())
    return file


def copy_of(run: Path, place: Path) -> Path:
    return Path(shutil.copytree(run, place / "run"))


# ------------------------------------------------------------------------------- the whole way


def test_train_eval_chat_merge(recipe: Path, tiny: Tiny, tmp_path: Path) -> None:
    run = tmp_path / "run"
    assert f"report: {run / 'report.html'}" in works(
        "train", recipe, "stages.0.steps=3", "stages.0.lr=1e-3", "--out", run
    )
    assert load(run / "recipe.yaml").stages[0].lr == 1e-3
    assert [step for _, step in metrics(run)] == [1, 2, 3, 1]

    said = works("eval", run, "--task", tiny.data, "--limit", 3, "--max-new-tokens", 3)
    assert said.startswith("rows, seeing: ") and f"answers: {run / 'evals' / 'rows'}" in said
    assert len((run / "evals" / "rows" / "answers.jsonl").read_text().splitlines()) == 3
    out = tmp_path / "out"
    result = json.loads(works("eval", run, "--task", tiny.data, "--blind", "--json", "--out", out))
    assert result["blind"] is True and result["exact"]["n"] == 8
    assert (out / "answers.jsonl").exists()

    picture = tmp_path / "picture.png"
    Drawn(12, 8).load().save(picture)
    assert works("chat", run, "--image", picture, "What colour?", "--max-new-tokens", 3)

    merged = tmp_path / "merged"
    said = works("merge", run / "checkpoints" / "step-0000003", "--out", merged)
    assert f"{merged}: merged" in said
    works("eval", merged, "--task", "playroom:1", "--limit", 2, "--max-new-tokens", 2)
    works("chat", merged, "Hello", "--max-new-tokens", 2)

    assert works("train", recipe, "stages.0.steps=3", "stages.0.lr=1e-3", "--out", run, "--resume")
    assert "merged after an earlier stage" in fails("merge", run, "--out", tmp_path / "again")


def test_a_conversation_ends_with_an_empty_line(finished: Path) -> None:
    done = invoke("chat", finished, "--max-new-tokens", 2, input="Hello\nAgain\n\nnot read\n")
    assert done.exit_code == 0
    assert "ends the conversation" in done.stderr
    assert done.stdout.count("> ") == 3
    assert invoke("chat", finished, input="").exit_code == 0


def test_above_blind_decides_the_exit_code(
    finished: Path, tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from oculi.eval import evaluate

    rows = json.loads(tiny.data.read_text())
    answers = {row["id"]: row["conversations"][1]["value"] for row in rows}
    colours = [answers[row["id"]] for row in rows if "image" in row] * 2
    data = tmp_path / "rows.json"
    data.write_text(json.dumps([row for row in rows if "image" in row] * 2))
    seen: list[str] = []

    def right_if_it_sees(model: Any, processor: Any, prompts: Any, length: int) -> list[str]:
        seen.extend(["yes" if prompt.grids else "no" for prompt in prompts])
        ordered = sorted(range(len(colours)), key=lambda i: lengths[i])
        return [colours[i] if prompts[0].grids else "?" for i in ordered]

    from oculi.data.index import measure
    from oculi.data.source import open_source
    from oculi.recipe import FileSource
    from oculi.training.build import build_processor

    processor = build_processor(load(finished / "recipe.yaml").model)
    arguments = [
        "eval",
        finished,
        "--task",
        data,
        "--image-root",
        tiny.data.parent,
        "--above-blind",
    ]
    source = open_source(FileSource(path=str(data), image_root=str(tiny.data.parent)))
    lengths = measure(source, processor).tolist()
    monkeypatch.setattr(evaluate, "answer", right_if_it_sees)
    done = invoke(*arguments, "--out", tmp_path / "a")
    assert (done.exit_code, seen.count("yes"), seen.count("no")) == (0, 12, 12), done.stdout
    assert "seeing is clearly above blind" in done.stdout
    monkeypatch.setattr(evaluate, "answer", lambda m, p, prompts, n: ["?"] * len(prompts))
    done = invoke(*arguments, "--out", tmp_path / "b")
    assert done.exit_code == 1 and "seeing is NOT clearly above blind" in done.stdout


def test_hostile_text_is_learnt_and_said_as_text(tiny: Tiny, tmp_path: Path) -> None:
    """Control tokens spelled in questions and answers: through training, eval and chat."""
    question, answer = f"what {HOSTILE}", f"no, {HOSTILE}"
    row = {
        "id": "x", "image": "0.png",
        "conversations": [
            {"from": "human", "value": "<image>\nwhat <|image_pad|> or <|im_end|>?"},
            {"from": "gpt", "value": answer},
        ],
    }  # fmt: skip
    text = {
        "id": "y",
        "conversations": [
            {"from": "human", "value": question}, {"from": "gpt", "value": "<|im_end|>"}
        ],
    }  # fmt: skip
    data = write_rows(tmp_path).with_name("hostile.json")
    data.write_text(json.dumps([row, text]))
    content = recipe_data(tiny, **{"stages.0.data": [{"kind": "file", "path": str(data)}]})
    content["stages"] = content["stages"][:1]
    for key, value in {
        "steps": 80, "batch": 2, "lr": 1e-2, "schedule": "constant", "trainable": {"*": None},
        "objectives": [{"kind": "lm"}], "checkpoint_every": 1000,
    }.items():  # fmt: skip
        put(content, f"stages.0.{key}", value)
    file = tmp_path / "recipe.yaml"
    file.write_text(validate(content, "test").to_yaml())
    run = tmp_path / "run"
    works("train", file, "--out", run)
    works("eval", run, "--task", data, "--max-new-tokens", 100)
    lines = (run / "evals" / "hostile" / "answers.jsonl").read_text().splitlines()
    found = [json.loads(line) for line in lines]
    assert [row["prediction"] for row in found] == [answer, "<|im_end|>"]
    assert [row["question"] for row in found] == ["what <|image_pad|> or <|im_end|>?", question]
    assert all(row["correct"] for row in found)
    assert works("chat", run, question) == "<|im_end|>\n"
    asked = "what <|image_pad|> or <|im_end|>?"
    assert works("chat", run, "--image", tmp_path / "0.png", asked) == f"{answer}\n"


# --------------------------------------------------------------------------------------- recipes


def test_recipes_are_listed_by_name() -> None:
    lines = works("recipes").splitlines()
    assert [line.split()[0] for line in lines] == list(BUILTIN)
    assert all(len(line.split()) > 4 for line in lines)


def test_a_printed_recipe_runs(tiny: Tiny, tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text(works("recipes", "vora_tiny"))
    assert load(file) == find_recipe("vora_tiny")
    changes = [
        "model.vision.patch_size=4", "model.images.max_patches=16", "model.images.min_patches=4",
        "model.lora.blocks=2", "model.lora.rank=2",
        *(f"stages.{i}.{key}" for i in (0, 1) for key in ("steps=1", "batch=2", "workers=0")),
    ]  # fmt: skip
    flags = ["--llm", tiny.llm, "--teacher", tiny.teacher, "--data", tiny.data, "--seed", 3]
    works("train", file, *changes, *flags, "--out", tmp_path / "run")
    found = load(tmp_path / "run" / "recipe.yaml")
    assert (found.seed, found.model.llm) == (3, str(tiny.llm))
    again = tmp_path / "again"  # and what the run has written runs too
    works("train", tmp_path / "run" / "recipe.yaml", "--out", again)
    assert (again / "recipe.yaml").read_text() == (tmp_path / "run" / "recipe.yaml").read_text()
    assert metrics(again).keys() == metrics(tmp_path / "run").keys()
    for step, entry in metrics(again).items():
        assert entry["loss"] == metrics(tmp_path / "run")[step]["loss"]


def test_flags_come_before_overrides(tiny: Tiny, recipe: Path, tmp_path: Path) -> None:
    said = fails("train", recipe, "model.llm=there", "--llm", tiny.llm, "--out", tmp_path / "r")
    assert said.startswith("there is no folder")


# -------------------------------------------------------------------------------------- mistakes


def test_mistakes_in_a_recipe_are_one_line(recipe: Path, tmp_path: Path) -> None:
    out = ["--out", tmp_path / "run"]
    said = {
        fails("train", "vora_tinny", *out): 'did you mean "vora_tiny"?',
        fails("recipes", "vorra"): 'did you mean "vora"?',
        fails("train", "none.yaml", *out): "cannot read the recipe none.yaml",
        fails("train", "none.py:f", *out): "there is no file none.py",
        fails("train", recipe, "stages.0.lrr=1", *out): 'unknown key "stages.0.lrr"; did you mean "lr"?',
        fails("train", recipe, "stages.0.lr=nan", *out): "stages.0.lr: Input should be a finite number",
        fails("train", recipe, "stages.0.lr", *out): "is no override: write key=value",
        fails("train", recipe, "--seed", "-1", *out): "seed: Input should be greater than or equal",
        fails("train", recipe, "stages.0.trainable.vison.*=1e-4", *out): 'the glob "vison.*" matches no',
        fails("train", recipe, "model.lora.blocks=7", *out): "LoRA on the first 7 blocks",
        fails("train", recipe, "model.vision.patch_size=7", *out): "patch.weight is (24, 147) here",
        fails("train", recipe, "--llm", tmp_path / "none", *out): "is no folder",
        fails("train", recipe, "--teacher", tmp_path / "none", *out): "is no folder",
        fails("train", recipe, "--data", tmp_path / "none.json", *out): "there is no data file",
        fails("train", recipe, "stages.1.data.0.path=none.json", *out): "none.json: No such file",
        fails("train", recipe, "evals=[{task: playroom:9}]", *out): 'no task "playroom:9"',
        fails("train", recipe, "--out", recipe.parent): "is not empty",
        fails("train", recipe, "--resume", *out): "began with another recipe",
    }  # fmt: skip
    for line, wanted in said.items():
        assert wanted in line


def test_mistakes_with_checkpoints_are_one_line(finished: Path, tiny: Tiny, tmp_path: Path) -> None:
    none, task = tmp_path / "none", ["--task", tiny.data]
    run = copy_of(finished, tmp_path)
    (run / "checkpoints" / "step-0000002" / "optimizer.pt").unlink()
    said = {
        fails("eval", none, *task): "is no folder",
        fails("eval", tiny.llm, *task): 'a model of the kind "qwen2"',
        fails("eval", finished, "--task", "playrom:1"): 'did you mean "playroom:1"?',
        fails("eval", finished, "--task", none): "neither a task nor a file",
        fails("eval", run / "checkpoints" / "step-0000002", *task): "optimizer.pt is missing",
        fails("chat", none, "hi"): "is no folder",
        fails("chat", finished, "--image", none, "hi"): "does not exist",
        fails("merge", none, "--out", tmp_path / "m"): "neither an exported folder nor a run",
        fails("merge", finished, "--out", tmp_path / "m"): "no LoRA left to merge",
        fails("merge", finished / "checkpoints" / "step-0000003", "--out", finished): "no empty folder",
        fails(
            "merge", finished / "checkpoints" / "step-0000003", "--out", tmp_path / "m",
            "--base", tiny.teacher,
        ): "cannot be loaded",
    }  # fmt: skip
    for line, wanted in said.items():
        assert wanted in line


def test_a_picture_that_breaks_in_training_is_left_out_in_one_line(
    recipe: Path, tmp_path: Path, tiny: Tiny
) -> None:
    data = write_rows(tmp_path / "rows")
    picture = tmp_path / "rows" / "0.png"
    Drawn(64, 64).load().save(picture)
    picture.write_bytes(picture.read_bytes()[:6000])
    arguments = ["stages.0.workers=1", "stages.0.batch=8", "--data", data, "--out", tmp_path / "r"]
    done = invoke("train", recipe, *arguments)
    assert done.exit_code == 0, done.stderr
    (line,) = (line for line in done.stderr.splitlines() if line.startswith("left out: "))
    assert "0.png" in line and "row-0" in line and "bad-samples.jsonl" in line
    assert (tmp_path / "r" / "bad-samples.jsonl").read_text().count("row-0") >= 1
    # --data evaluates on the same rows; the picture is met there again, and the run goes on.
    assert "rows is not scored after pretrain: " in done.stderr
    assert (tmp_path / "r" / "stages" / "1-finetune").is_dir()


def test_a_bug_keeps_its_traceback(
    monkeypatch: pytest.MonkeyPatch, recipe: Path, tmp_path: Path
) -> None:
    from oculi.training import run

    def broken(*arguments: Any, **settings: Any) -> None:
        raise ZeroDivisionError("a bug")

    monkeypatch.setattr(run, "train", broken)
    done = invoke("train", recipe, "--out", tmp_path / "run")
    assert done.exit_code == 1 and isinstance(done.exception, ZeroDivisionError)


def test_an_interruption_is_one_line(
    monkeypatch: pytest.MonkeyPatch, recipe: Path, tmp_path: Path
) -> None:
    from oculi.training import run

    def interrupted(*arguments: Any, **settings: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(run, "train", interrupted)
    done = invoke("train", recipe, "--out", tmp_path / "run")
    assert (done.exit_code, done.stderr) == (130, "oculi: interrupted\n")


def process(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "oculi", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["trian"], "No such command 'trian'. Did you mean 'train'?"),
        (["train", "vora_tiny"], "Missing option '--out'"),
        (["train", "vora_tiny", "--out", "x", "--sed", "1"], "No such option: --sed"),
        (["train", "vora_tiny", "--out", "x", "--seed", "one"], "Invalid value for '--seed'"),
        (["eval", "x", "--task", "y", "--limit", "0"], "Invalid value for '--limit'"),
        (["train", "vora_tinny", "--out", "x"], 'unknown recipe "vora_tinny"'),
    ],
)  # fmt: skip
def test_wrong_usage_of_the_real_command_is_one_line(arguments: list[str], said: str) -> None:
    done = process(*arguments)
    assert (done.returncode, done.stdout) == (2, "")
    (line,) = done.stderr.splitlines()
    assert line.startswith("oculi: ") and said in line


def test_the_libraries_of_the_real_command_are_quiet(recipe: Path, tmp_path: Path) -> None:
    """In a process of its own, with torch and transformers and all they like to say."""
    glob = "stages.1.trainable.lm.*=1"
    done = process("train", recipe, glob, "--out", tmp_path / "run")
    assert (done.returncode, done.stdout) == (2, "")
    (line,) = done.stderr.splitlines()
    assert 'the glob "lm.*" matches no parameter' in line


# ----------------------------------------------------------------------------------- data, testbed


def test_data_check(tiny: Tiny, tmp_path: Path) -> None:
    said = works("data", "check", tiny.data)
    assert "rows 8: 8 good, 0 bad" in said
    rows = json.loads(tiny.data.read_text())
    rows[1]["image"] = "none.png"
    bad = tmp_path / "bad.json"
    bad.write_text(json.dumps(rows))
    arguments = ["data", "check", bad, "--image-root", tiny.data.parent]
    done = invoke(*arguments)
    assert done.exit_code == 1 and done.stderr == ""
    assert 'row "row-1": image "none.png" does not exist' in done.stdout
    done = invoke(*arguments, "--json")
    report = json.loads(done.stdout)
    assert done.exit_code == 1
    assert (report["ok"], report["good"], report["bad_rows"][0]["id"]) == (False, 7, "row-1")
    assert invoke("data", "check", tmp_path / "none.json").exit_code == 1
    assert json.loads(works("data", "check", tiny.data, "--json"))["ok"] is True


def test_testbed_sample(tmp_path: Path) -> None:
    from PIL import Image

    said = works("testbed", "sample", "--level", 2, "--n", 3, "--out", tmp_path / "a.png")
    assert said.strip() == str(tmp_path / "a.png")
    lines = (tmp_path / "a.txt").read_text().splitlines()
    assert sum(line.startswith("-> ") for line in lines) == 3
    works("testbed", "sample", "--split", "pairs", "--n", 1, "--out", tmp_path / "one.png")
    with Image.open(tmp_path / "one.png") as picture:
        assert picture.size == (84, 84)
    works("testbed", "sample", "--n", 1, "--out", tmp_path / "new" / "one")
    assert (tmp_path / "new" / "one.png").exists()
    (tmp_path / "file").write_text("x")
    done = invoke("testbed", "sample", "--n", 1, "--out", tmp_path / "file" / "one.png")
    assert done.exit_code == 6 and "cannot be written" in done.stderr
    assert invoke("testbed", "sample", "--n", 0, "--out", tmp_path / "b.png").exit_code == 2
    assert "no level 7" in fails("testbed", "sample", "--level", 7, "--out", tmp_path / "b.png")


@pytest.fixture(autouse=True)
def _dice() -> Any:
    state = torch.random.get_rng_state()
    yield
    torch.random.set_rng_state(state)


def test_the_library_is_the_commands(recipe: Path, tmp_path: Path) -> None:
    """The function ``oculi.train`` stays one, whatever of the package was imported before."""
    import oculi as library
    import oculi.training.run

    for name in ("one", "two"):
        train: Callable[..., Path] = library.train
        run = train(load(recipe), out=tmp_path / name, quiet=True)
        model, processor = library.load(run)
    assert run == tmp_path / "two"
    assert type(model).__name__ == "OculiForConditionalGeneration"
    assert type(processor).__name__ == "OculiProcessor"
    assert callable(library.train)
