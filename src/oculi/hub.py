"""Where a checkpoint is: shipped with oculi, in a folder, or on the Hugging Face hub."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from oculi.errors import CheckpointError


def resolve(name: str) -> str:
    """Folder of a checkpoint named by ``testbed:NAME``, a path, or a hub id (downloaded if need be).

    Raises:
        CheckpointError: there is none.
    """
    if name.startswith("testbed:"):
        from oculi.testbed import checkpoint

        return str(checkpoint(name.removeprefix("testbed:")))
    path = Path(name)
    if path.is_dir():
        if not (path / "config.json").exists():
            raise CheckpointError(f"{name} has no config.json, so it is no checkpoint folder")
        return str(path)
    if path.is_absolute() or name.startswith(".") or name.count("/") != 1:
        raise CheckpointError(f"{name} is no folder (and no hub id, which is OWNER/NAME)")
    try:
        return _download(name)
    except Exception as error:  # the hub raises a dozen kinds; all mean that there are no weights
        raise CheckpointError(
            f"{name} is no folder here, and the hub did not give it ({type(error).__name__}): "
            "check the spelling, the network and, for gated models, your login"
        ) from None


def resolve_part(name: str, part: str) -> str:
    """Folder of one part of a pipeline: ``part`` in a folder or a hub id, of which no other is fetched.

    Raises:
        CheckpointError: there is none.
    """
    if Path(name).is_dir():
        return resolve(str(Path(name) / part))
    if name.count("/") != 1 or Path(name).is_absolute() or name.startswith("."):
        raise CheckpointError(f"{name} is no folder (and no hub id, which is OWNER/NAME)")
    try:
        from huggingface_hub import snapshot_download

        return str(Path(snapshot_download(name, allow_patterns=[f"{part}/*"])) / part)
    except Exception as error:  # the hub raises a dozen kinds; all mean that there are no weights
        raise CheckpointError(
            f"{name} is no folder here, and the hub did not give its {part} ({type(error).__name__}): "
            "check the spelling, the network and, for gated models, your login"
        ) from None


def _download(name: str) -> str:
    """Folder of a hub id: its safetensors, or where it has none (as CLIP and Vicuna) its .bin files.

    transformers reads those with ``weights_only``, so that no code in them is run.
    """
    from huggingface_hub import snapshot_download

    wanted = ["*.json", "*.safetensors", "*.txt", "*.jinja", "*.model"]
    folder = str(snapshot_download(name, allow_patterns=wanted))
    if not any(Path(folder).glob("*.safetensors")):
        folder = str(snapshot_download(name, allow_patterns=[*wanted, "pytorch_model*.bin"]))
    return folder


@contextmanager
def readable(name: str) -> Iterator[None]:
    """Turn what libraries raise for missing, damaged or unknown files into one line.

    Raises:
        CheckpointError: naming the checkpoint.
    """
    from safetensors import SafetensorError

    try:
        yield
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        said = " ".join(str(error).split())
        raise CheckpointError(f"{name} cannot be loaded: {said[:300]}") from None


def load_weights(
    model_class: Any, path: str, name: str, *, exact: bool = False, **arguments: Any
) -> Any:
    """``from_pretrained`` that does not fill in weights which the checkpoint lacks.

    Args:
        model_class: a transformers model or Auto class. path: the folder. name: for messages.
        exact: the checkpoint may not hold other weights either.
        arguments: passed on.

    Raises:
        CheckpointError: files are missing or damaged, or weights are missing in them.
    """
    with readable(name):
        model, found = model_class.from_pretrained(path, output_loading_info=True, **arguments)
    if missing := sorted(found["missing_keys"]):
        raise CheckpointError(
            f"{name} lacks {len(missing)} weights of {type(model).__name__}, the first is {missing[0]}"
        )
    if exact and (others := sorted(found["unexpected_keys"])):
        raise CheckpointError(
            f"{name} holds {len(others)} foreign weights, the first is {others[0]}"
        )
    return model
