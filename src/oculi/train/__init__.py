"""One loop, its optimizer, its checkpoints, and the run that strings stages together.

``oculi.train(recipe, out=...)`` is this package called: importing it replaces the function of that
name in ``oculi``, so it has to do the same.
"""

import sys
from pathlib import Path
from types import ModuleType
from typing import Any


class _Callable(ModuleType):
    def __call__(self, recipe: Any, out: str | Path, resume: bool = False, **options: Any) -> Path:
        """Run a recipe; see ``oculi.train.run.train``. Returns the run's folder."""
        from oculi.train.run import train

        return train(recipe, Path(out), resume=resume, **options)


sys.modules[__name__].__class__ = _Callable
