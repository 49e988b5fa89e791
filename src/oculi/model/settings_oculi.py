"""Settings from a model's configuration files to what they build, refused by name where they do not fit.

The files are anyone's: edited by hand, or of another version of oculi, whose parts take other settings.
"""

import inspect
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

Made = TypeVar("Made")


def chosen(
    field: str, kinds: Mapping[str, Made], settings: Mapping[str, Any]
) -> tuple[Made, dict[str, Any]]:
    """What ``settings["kind"]`` names, and the other settings.

    Raises:
        ValueError: there is no such kind; ``field`` is where it was asked for.
    """
    if not isinstance(settings, Mapping):
        raise ValueError(f"{field}: {settings!r} is no set of settings")
    rest = dict(settings)
    kind = rest.pop("kind", None)
    if not isinstance(kind, str) or kind not in kinds:
        raise ValueError(f'{field}: kind "{kind}" is none of {", ".join(kinds)}')
    return kinds[kind], rest


def called(field: str, make: Callable[..., Made], *given: Any, **settings: Any) -> Made:
    """``make(*given, **settings)``.

    Raises:
        ValueError: a setting is missing, or one that ``make`` does not take; or as ``make`` does.
    """
    try:
        inspect.signature(make).bind(*given, **settings)
    except (
        TypeError
    ) as error:  # caught around the binding alone: within make it is a mistake of ours
        raise ValueError(f"{field}: {error}") from None
    return make(*given, **settings)
