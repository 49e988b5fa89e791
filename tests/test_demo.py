"""``make demo`` with few steps: what the Makefile prints for a recipe is run, line by line."""

import shlex
import shutil
import subprocess
from pathlib import Path

import pytest
from typer.testing import CliRunner

from oculi.cli import app
from oculi.edge.__main__ import main as edge

ROOT = Path(__file__).parent.parent
FEW = [f"stages.{n}.{key}" for n in range(3) for key in ("steps=2", "batch=4", "warmup_steps=1")]
pytestmark = pytest.mark.skipif(shutil.which("make") is None, reason="there is no make here")


def commands(recipe: str, run: Path, *settings: str) -> list[list[str]]:
    """The demo's commands behind the environment's."""
    words = ["make", "-n", "demo", f"RECIPE={recipe}", f"RUN={run}", *settings]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=True)
    lines = [shlex.split(line, comments=True) for line in done.stdout.splitlines()]
    tools = {"oculi": 1, "python": 3}  # python -m oculi.edge
    return [
        [Path(line[0]).name, *line[tools[Path(line[0]).name] :]]
        for line in lines
        if line and Path(line[0]).name in tools
    ]


def test_aurora_tiny_goes_the_demos_way(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Train, evaluate, ask, export, ask the export."""
    run = tmp_path / "run"
    found = commands("aurora_tiny", run, f"DEMO_SET={' '.join(FEW)} evals=[]")
    assert [words[1] for words in found if words[0] == "oculi"] == [
        "train", "eval", "testbed", "chat", "chat", "export",
    ]  # fmt: skip
    assert found[-1][:2] == ["python", "answer"]
    for tool, *words in found:
        if tool == "python":
            capsys.readouterr()
            assert edge([*words, "--max-new-tokens", "4"]) == 0
            assert capsys.readouterr().out.endswith("\n")
            continue
        if words[0] == "eval":  # after so few steps it is not above a blind model
            words = [word for word in words if word != "--above-blind"]
            words += ["--limit", "4", "--max-new-tokens", "3"]
        if words[0] == "chat":
            words += ["--max-new-tokens", "3"]
        result = CliRunner().invoke(app, words)
        assert result.exit_code == 0, f"{shlex.join(words)}\n{result.output}"
    assert (run / "edge" / "decoder.onnx").is_file() and (run / "report.html").is_file()


def test_the_demo_is_vora_tinys_unless_asked_otherwise(tmp_path: Path) -> None:
    train, score = commands("vora_tiny", tmp_path)[:2]
    plain = subprocess.run(
        ["make", "-n", "demo"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout
    assert f"oculi {shlex.join(train[1:])}".replace(str(tmp_path), "runs/demo") in plain
    assert train[1:3] == ["train", "vora_tiny"] and "stages.0.steps=300" in train
    assert score[1:3] == ["eval", f"{tmp_path}/stages/1-finetune"] and "--above-blind" in score
