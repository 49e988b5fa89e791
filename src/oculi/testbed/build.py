"""`oculi testbed build`: trains the tiny checkpoints anew and writes manifest and model card.

The parts are independent of one another; each is a function (folder, quick, log) -> facts, in a
file that is imported only when it is built. A part replaces its folder once it is complete.
"""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Callable, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

from oculi.errors import CheckpointError, nearest
from oculi.testbed import manifest

_PARTS = {
    "llm": ("oculi.testbed.build_llm", "build"),
    "vq": ("oculi.testbed.build_vq", "build"),
    "aimv2": ("oculi.testbed.build_teacher", "build_aimv2"),
    "clip": ("oculi.testbed.build_teacher", "build_clip"),
    "siglip2": ("oculi.testbed.build_teacher", "build_siglip2"),
    "reader": ("oculi.testbed.build_reader", "build"),
    "vae": ("oculi.testbed.build_diffusion", "build_vae"),
    "sd3": ("oculi.testbed.build_diffusion", "build_sd3"),
}
PARTS = tuple(_PARTS)


def build(
    out: Path, only: Sequence[str] | None = None, quick: bool = False, log: Path | None = None
) -> None:
    """Build the parts named in `only` (all when None) into `out`, a folder for each.

    `quick` takes a few steps only: formats without skill, for tests. `log` is a folder that
    gets one text file of progress per part. Raises CheckpointError for an unknown part.
    """
    names = PARTS if only is None else tuple(only)
    for name in names:
        if name not in _PARTS:
            raise CheckpointError(
                f'testbed build: no part "{name}"{nearest(name, PARTS)}; '
                f"the parts are {', '.join(PARTS)}"
            )
    out.mkdir(parents=True, exist_ok=True)
    if log is not None:
        log.mkdir(parents=True, exist_ok=True)
    for name in names:
        module, function = _PARTS[name]
        make: Callable[..., dict[str, Any]] = getattr(import_module(module), function)
        with tempfile.TemporaryDirectory(dir=out, prefix=f".{name}-") as staging:
            fresh = Path(staging) / name
            begin = time.process_time()
            facts = make(fresh, quick, log / f"{name}.log" if log is not None else None)
            facts["cpu_minutes"] = round((time.process_time() - begin) / 60, 1)
            if (out / name).exists():
                shutil.rmtree(out / name)
            fresh.rename(out / name)
        manifest.record(out, name, facts, quick)
