"""``oculi ablate`` as it is typed; its quick form runs everything there is but the time."""

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from oculi.ablate.catalogue import ABLATIONS
from oculi.cli import app


def invoke(*arguments: object) -> Any:
    return CliRunner().invoke(app, ["ablate", *(str(argument) for argument in arguments)])


def test_the_list() -> None:
    lines = invoke("--list").stdout.splitlines()
    assert [line.split()[0] for line in lines] == list(ABLATIONS)
    assert invoke().stdout.splitlines() == lines


def test_mistakes_are_one_line(tmp_path: Path) -> None:
    done = invoke("vora-table3", "--out", tmp_path / "out")
    assert done.exit_code == 2 and 'did you mean "vora-table2"' in done.stderr
    assert len(done.stderr.splitlines()) == 1
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "file").write_text("")
    done = invoke("vora-fig7", "--out", tmp_path / "taken")
    assert done.exit_code == 2 and "choose another --out" in done.stderr
    assert invoke("vora-fig7", "--seeds", 1).exit_code == 2
    done = invoke("vora-fig7", "stages.0.precison=float32", "--out", tmp_path / "out")
    assert done.exit_code == 2 and 'did you mean "precision"' in done.stderr
    assert not (tmp_path / "out").exists()


def check_quick(name: str, folder: Path) -> dict[str, Any]:
    """Run one quickly; everything that a report has must be there."""
    done = invoke(
        name, "--quick", "--json", "--out", folder / "out", "--report", folder / "page.md"
    )
    assert done.exit_code == 0, (done.stderr, done.exception)
    numbers: dict[str, Any] = json.loads(done.stdout)
    ablation = ABLATIONS[name]
    assert len(numbers["runs"]) == 2 * len(ablation.rows)
    assert {claim["verdict"] for claim in numbers["claims"]} == {"quick: not a result"}
    assert all("why" not in claim for claim in numbers["claims"]), numbers["claims"]
    page = (folder / "page.md").read_text()
    assert "quick: not a result" in page and str(folder) not in page
    for figure in ablation.figures:
        assert (folder / f"page-{figure.name}.svg").read_text().count("<path") > 5
    claims = json.loads((folder / "out" / "claims.json").read_text())
    assert claims["quick"] and len(claims["claims"]) == len(ablation.claims)
    said = done.stderr.splitlines()
    first_run = next(n for n, line in enumerate(said) if line.startswith("run 1 of"))
    assert sum(line.startswith("claim ") for line in said[:first_run]) == len(ablation.claims)
    return numbers


def test_the_quick_form(tmp_path: Path) -> None:
    numbers = check_quick("vora-fig7", tmp_path)
    assert all("steps@late" in run["values"] for run in numbers["runs"])
    # The runs are those of figure 5 and of table 2: taken, where the recipe is the same.
    done = invoke("vora-fig7", "--quick", "--out", tmp_path / "out")
    assert done.exit_code == 2 and "add --resume" in done.stderr
    done = invoke("vora-fig7", "--quick", "--resume", "--out", tmp_path / "out")
    assert done.exit_code == 0 and "quick: not a result" in done.stdout


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in ABLATIONS if name != "vora-fig7"])
def test_the_quick_form_of_all(name: str, tmp_path: Path) -> None:
    check_quick(name, tmp_path)
