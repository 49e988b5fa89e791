"""The embedded world and its tiny checkpoints: oculi at work without network or downloads.

Importing this package loads neither torch nor transformers; only building checkpoints does.
"""

from __future__ import annotations

from pathlib import Path

from oculi.errors import CheckpointError, nearest

CHECKPOINTS = Path(__file__).parent / "checkpoints"


def checkpoints() -> tuple[str, ...]:
    """Return the names of the tiny checkpoints that are shipped with the package."""
    return tuple(sorted(path.parent.name for path in CHECKPOINTS.glob("*/config.json")))


def checkpoint(name: str) -> Path:
    """Return the folder of the shipped tiny checkpoint `name`, ready for `from_pretrained`.

    Raises CheckpointError, with the names there are, when none is called so.
    """
    known = checkpoints()
    if name not in known:
        raise CheckpointError(
            f'testbed: no tiny checkpoint "{name}"{nearest(name, known)}; '
            f"there is {', '.join(known) or 'none'} (oculi testbed build makes them)"
        )
    return CHECKPOINTS / name
