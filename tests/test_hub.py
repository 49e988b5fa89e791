"""What is fetched for a hub id, and what is said when nothing is."""

from __future__ import annotations

from fnmatch import fnmatch
from pathlib import Path

import huggingface_hub
import pytest

from oculi.errors import CheckpointError
from oculi.hub import resolve


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, list[str]]:
    """A hub of file names; what is fetched of a repository lies in a folder of its name."""
    repositories: dict[str, list[str]] = {}

    def fetch(name: str, allow_patterns: list[str]) -> str:
        folder = tmp_path / name.replace("/", "--")
        folder.mkdir(exist_ok=True)
        for file in repositories[name]:
            if any(fnmatch(file, pattern) for pattern in allow_patterns):
                (folder / file).write_text("")
        return str(folder)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fetch)
    return repositories


def fetched(name: str) -> set[str]:
    return {path.name for path in Path(resolve(name)).iterdir()}


def test_weights_as_safetensors_where_there_are_any(hub: dict[str, list[str]]) -> None:
    files = ["config.json", "model-1.safetensors", "tokenizer.json", "merges.txt"]
    hub["owner/llm"] = [*files, "pytorch_model.bin", "tf_model.h5", "README.md"]
    assert fetched("owner/llm") == set(files)


def test_bin_files_where_there_is_nothing_else(hub: dict[str, list[str]]) -> None:
    """vicuna-7b-v1.5 and clip-vit-large-patch14-336, which LLaVA starts from."""
    files = ["config.json", "tokenizer.model", "pytorch_model-00001-of-00002.bin"]
    hub["owner/vicuna"] = [*files, "training_args.bin", "tf_model.h5"]
    assert fetched("owner/vicuna") == set(files)


def test_what_is_neither_folder_nor_id(hub: dict[str, list[str]], tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no hub id, which is OWNER/NAME"):
        resolve("no/such/folder")
    with pytest.raises(CheckpointError, match=r"the hub did not give it \(KeyError\)"):
        resolve("owner/misspelt")
    with pytest.raises(CheckpointError, match=r"has no config\.json"):
        resolve(str(tmp_path))
