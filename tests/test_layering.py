"""Rules of the house that no single test of a part would notice."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import oculi

ROOT = Path(oculi.__file__).parent
FILES = sorted(ROOT.rglob("*.py"))
MODEL = sorted((ROOT / "model").glob("*.py"))


def name(path: Path) -> str:
    return str(path.relative_to(ROOT))


def imports(path: Path) -> Iterator[tuple[str, int]]:
    """Dotted modules that a file imports anywhere, with how many levels up they start."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from ((alias.name, 0) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield (node.module or "", node.level)


def test_the_rules_see_the_files() -> None:
    assert len(MODEL) > 5 and len(FILES) > 40
    assert ("oculi.model", 0) in imports(ROOT / "training" / "module.py")


@pytest.mark.parametrize("path", MODEL, ids=name)
def test_the_model_imports_nothing_else_of_oculi(path: Path) -> None:
    """Export copies the folder, so it must stand alone: no ``oculi``, no relative import upwards."""
    for module, level in imports(path):
        assert module.split(".")[0] != "oculi", f"{name(path)} imports {module}"
        assert level <= 1, f"{name(path)} imports from above: {module}"
        if level == 1:
            assert (path.parent / f"{module}.py").is_file(), f"{name(path)}: .{module}"


ALLOWED = {  # who may import whom; what is not listed may be imported by all
    "data": {"training", "eval", "export", "objectives", "cli", "recipes", "ablate"},
    "objectives": {"training", "eval", "export", "data", "cli", "recipes", "ablate"},
    "eval": {"training", "objectives", "cli", "recipes", "ablate"},
}


@pytest.mark.parametrize("part", ALLOWED)
def test_lower_parts_do_not_know_higher_ones(part: str) -> None:
    for path in sorted((ROOT / part).rglob("*.py")):
        for module, _ in imports(path):
            parts = module.split(".")
            if parts[0] == "oculi" and len(parts) > 1:
                assert parts[1] not in ALLOWED[part], f"{name(path)} imports {module}"


FORBIDDEN = {
    ("strict", False),  # weights that do not fit would be left out in silence
    ("trust_remote_code", True),
    ("weights_only", False),
    ("allow_pickle", True),
}


def forbidden(path: Path) -> list[str]:
    """What a file does that no file may do."""
    found = [module for module, _ in imports(path) if module.split(".")[0] == "torchvision"]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if not isinstance(node, ast.Call) or getattr(node.func, "id", "") == "zip":
            continue
        for keyword in node.keywords:
            if isinstance(keyword.value, ast.Constant):
                pair = keyword.arg, keyword.value.value
                found += [f"{pair[0]}={pair[1]}"] if pair in FORBIDDEN else []
    return found


@pytest.mark.parametrize("path", FILES, ids=name)
def test_nothing_forbidden(path: Path) -> None:
    assert forbidden(path) == []


def test_the_rules_would_find_something(tmp_path: Path) -> None:
    file = tmp_path / "bad.py"
    file.write_text(
        "import torchvision.io\nm.load(x, strict = False)\nf(trust_remote_code=True)\n"
        "zip(a, b, strict=False)\ntorch.load(f, weights_only=False)\n"
    )
    wanted = ["torchvision.io", "strict=False", "trust_remote_code=True", "weights_only=False"]
    assert forbidden(file) == wanted


@pytest.mark.parametrize("path", FILES, ids=name)
def test_files_can_be_read_at_one_go(path: Path) -> None:
    assert len(path.read_text(encoding="utf-8").splitlines()) <= 400
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.FunctionDef):
            docstring = ast.get_docstring(node, clean=False) or ""
            lines = (node.end_lineno or 0) - node.body[0].lineno - docstring.count("\n")
            assert lines <= 60, f"{name(path)}:{node.lineno} {node.name} has {lines} lines"


HEAVY = "torch", "transformers", "peft", "matplotlib", "torchvision", "datasets"
RUN = """
import sys
from oculi.cli import app
try:
    app(sys.argv[1:])
except SystemExit as end:
    assert not end.code, end.code
print("loaded:", *[m for m in {heavy!r} if m in sys.modules], file=sys.stderr)
"""


@pytest.mark.parametrize(
    "arguments",
    [
        ["--help"], ["train", "--help"], ["recipes"], ["recipes", "vora"], ["data", "--help"],
        ["eval", "--help"], ["ablate", "--list"],
    ],
    ids=" ".join,
)  # fmt: skip
def test_answers_that_need_no_torch_load_none(arguments: list[str]) -> None:
    command = [sys.executable, "-c", RUN.format(heavy=HEAVY), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stderr.strip() == "loaded:"
    assert len(done.stdout.splitlines()) >= 2


def test_every_command_shows_an_example() -> None:
    from typer.main import get_command
    from typer.testing import CliRunner

    from oculi.cli import app

    runner = CliRunner()
    leaves = []
    for key, command in get_command(app).commands.items():  # type: ignore[attr-defined]
        leaves += [(key, sub) for sub in getattr(command, "commands", {})] or [(key,)]
    assert {("train",), ("data", "check")} <= set(leaves)
    for command in leaves:
        text = runner.invoke(app, [*command, "--help"]).stdout
        assert f"Example: oculi {' '.join(command)}" in text, command
