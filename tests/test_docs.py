"""Every command in README and docs is run, in order, in one folder; heavy ones with fewer steps.

Programs under ``examples/`` are run as they are, with ``--quick``.

A command that this file does not know how to run fails the test: docs cannot drift unnoticed.
"""

import json
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

import endpoint
from oculi.cli import app
from oculi.edge.__main__ import main as edge
from oculi.recipes import find_recipe
from oculi.testbed import playroom

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
LINKS = re.compile(r"\]\(([^)#:]+)(?:#[^)]*)?\)")

SHORT = ("steps=2", "batch=4", "workers=0")  # of every stage
SMALL_PAPER = [
    *["model.images.size=84", "model.dtype=float32"],
    *["stages.0.length=640", "stages.1.length=640"],
    *["stages.0.pack_length=640", "stages.1.pack_length=640"],
]
SMALL_AURORA = [  # with a tower that sees 6 x 6 patches of 14 pixels
    *["model.dtype=float32", "model.vision.patch_size=14", "model.images.min_patches=36"],
    *[f"stages.{n}.{key}" for n in range(3) for key in ("length=640", "pack_length=640")],
]
SMALL_RECONSTRUCT = [
    *SMALL_AURORA,
    *[f"stages.{n}.objectives.1.denoiser=testbed:sd3" for n in range(3)],
    *[f"stages.{n}.objectives.1.vae=testbed:vae" for n in range(3)],
    *[f"stages.{n}.objectives.1.size=96" for n in range(3)],
]
SMALL_VIDEO = [
    *SMALL_AURORA,
    "stages.3.length=640",
]
SMALL_VORA = [*SMALL_PAPER, "model.lora.rank=4", "model.lora.blocks=5"]
SMALL = {  # of recipes at the size of a paper
    "aurora": SMALL_AURORA,
    "aurora_16": SMALL_AURORA,
    "aurora_reconstruct": SMALL_RECONSTRUCT,
    "aurora_video": SMALL_VIDEO,
    "vora": SMALL_VORA,
    "vora_8m": SMALL_VORA,
    "vora_anyres": SMALL_VORA,
    "llava": SMALL_PAPER,
    "llava_aimv2": SMALL_PAPER,
}
# Of the same kind, but here: a hub id, the user's own folders and files, numbers of a full run.
STANDS_FOR = {
    "Qwen/Qwen2.5-7B-Instruct": "testbed:llm",
    "Qwen/Qwen2.5-1.5B": "testbed:llm",
    "lmsys/vicuna-7b-v1.5": "testbed:llm",
    "DIR": "testbed:aimv2",
    "Hon-Wong/VoRA-7B-Instruct": str(ROOT / "tests/golden/vora_checkpoint/merged"),
    "RELEASED_RUN": str(ROOT / "tests/golden/vora_checkpoint/unmerged"),
    "QWEN_DIR": str(ROOT / "tests/golden/vora_checkpoint/llm"),
    "runs/mine/checkpoints/step-0000500": "runs/mine/checkpoints/step-0000003",
    "FILE...": "train.json",
    "449": "9",  # pixels: pictures here are small
    "http://localhost:8000/v1": "",  # of `folder`
    "examples/audio/recipe.py:vora_audio": str(ROOT / "examples/audio/recipe.py") + ":vora_audio",
    "examples/audio/recipe.py:audio_beside": str(ROOT / "examples/audio/recipe.py")
    + ":audio_beside",
}
DATA = (  # files of a user
    "train.json",
    "captions.json",
    "text.json",
    "videos.json",
    "blip_laion_cc_sbu_558k.json",
    "llava_v1_5_mix665k.json",
)
SKIPPED = (
    "oculi ablate",
    "oculi testbed build",
    "oculi bench kills",
    "oculi bench train",
    "oculi data codes",
    "oculi bench edge",
    "make",
    "pip",
    "git",
)  # run by tests of their own, or by CI itself


def commands(page: Path) -> list[list[str]]:
    """The ``oculi`` and ``make`` lines of a page's fenced blocks, comments taken off."""
    found = []
    # Blocks of any language are matched, or the end of one would be taken for the begin of a next.
    for language, block in re.findall(r"^```(\w*)\n(.*?)^```", page.read_text(), re.M | re.S):
        for line in block.splitlines() if language in ("", "sh", "bash") else ():
            words = shlex.split(line, comments=True)
            if words and words[0] == "torchrun":  # the same command in each of several processes
                words = ["oculi", *words[words.index("-m") + 2 :]]
            if words and words[0] in ("oculi", "make", "pip", "git", "python"):
                found.append(words)
    return found


def runnable(words: list[str]) -> list[str]:
    """The command's arguments, made small."""
    words = [STANDS_FOR.get(word, word) for word in words[1:]]
    if words[0] == "train":
        stages = len(find_recipe(words[1]).stages)
        short = SHORT[1:] if "--epochs" in words else SHORT  # steps are counted then
        words += [f"stages.{n}.{change}" for n in range(stages) for change in short]
        words += ["stages.0.checkpoint_every=2"]
        words += [] if "--epochs" in words else ["stages.0.steps=3"]
        words += SMALL.get(words[1], [])
        if "--data" not in words:
            words += ["evals=[]"]
    if words[0] == "eval":
        words += ["--limit", "3", "--max-new-tokens", "3"]
    if words[0] == "reconstruct":
        words += ["--steps", "1", "--pictures", "2", "--train-pictures", "2"]
    if words[0] == "bench":
        words += ["--quick"]
    if words[0] == "chat":
        words += ["--max-new-tokens", "3"]
    return words


@pytest.fixture
def served() -> Iterator[str]:
    """The address of an endpoint that answers two questions, or a caption."""
    with endpoint.serving() as server:
        two = endpoint.pairs(("What is it?", "a star"), ("Which colour?", "red"))
        server.answer = lambda asked: two if "Pairs" in asked.prompt else endpoint.caption(84)
        yield server.url


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, served: str) -> Path:
    """A user's folder: a data file with pictures, a test file, one picture."""
    rows = []
    for index in range(6):
        item = playroom.item(1, "train", index)
        item.picture.load().save(tmp_path / f"{index}.png")
        turns = [("human", f"<image>\n{item.question.text}"), ("gpt", item.question.answer)]
        talk = [{"from": role, "value": text} for role, text in turns]
        rows.append({"id": str(index), "image": f"{index}.png", "conversations": talk})
    monkeypatch.setitem(STANDS_FOR, "http://localhost:8000/v1", served)
    for name in DATA:
        (tmp_path / name).write_text(json.dumps(rows))
    (tmp_path / "test.json").write_text(json.dumps(rows[:3]))
    playroom.item(1, "test", 0).picture.load().save(tmp_path / "picture.png")
    data = (tmp_path / "picture.png").read_bytes()
    asked = {"question_id": "1", "image": {"bytes": data, "path": None}, "category": "posters"}
    both = [{**asked, "question": f"{word}?", "answer": word} for word in ("Yes", "No")]
    pq.write_table(pa.Table.from_pylist(both), tmp_path / "mme.parquet")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def check_program(words: list[str]) -> None:
    """Run a program of the examples in the current folder."""
    assert words[0].startswith("examples/"), f"no way to run {words}"
    command = [sys.executable, str(ROOT / words[0]), *words[1:], "--quick"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_command_of_a_page_runs(page: Path, folder: Path) -> None:
    runner = CliRunner()
    for words in commands(page):
        if " ".join(words).startswith(SKIPPED):
            continue
        if words[:3] == ["python", "-m", "oculi.edge"]:
            assert edge(words[3:]) == 0, f"{page.name}: {shlex.join(words)}"
            continue
        if words[0] == "python":
            check_program(words[1:])
            continue
        assert words[0] == "oculi", f"{page.name}: no way to run {words}"
        result = runner.invoke(app, runnable(words))
        assert result.exit_code == 0, f"{page.name}: {shlex.join(words)}\n{result.output}"


def test_the_examples_in_python_run(folder: Path) -> None:
    """The README's, one after the other, on what its commands before made."""
    from transformers.utils import logging

    logging.set_verbosity_error()
    readme = ROOT / "README.md"
    train = next(words for words in commands(readme) if "runs/mine" in words and "train" in words)
    assert CliRunner().invoke(app, runnable(train)).exit_code == 0
    examples = re.findall(r"```python\n(.*?)```", readme.read_text(), re.DOTALL)
    assert len(examples) == 2
    example = "".join(examples).replace("max_new_tokens=64", "max_new_tokens=3")
    example = example.replace("return_full_text=False", "return_full_text=False, max_new_tokens=3")
    exec(compile(example, str(readme), "exec"), {})


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    for target in LINKS.findall(page.read_text()):
        assert (page.parent / target).exists(), f"{page.name} links to {target}"


def test_make_targets_in_the_docs_exist() -> None:
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for page in [*PAGES, ROOT / "CONTRIBUTING.md"]:
        for words in commands(page):
            if words[0] == "make":
                assert set(words[1:]) <= targets, f"{page.name}: {words}"
