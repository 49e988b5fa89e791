"""What the readers share: names that occur twice are found in one pass."""

from __future__ import annotations

from pathlib import Path

import pytest

from oculi.data.csvrows import CsvRows
from oculi.data.grouped import Member, assemble
from oculi.data.rows import _no_duplicates
from oculi.data.sample import ImageRef, RowError


class Name(str):
    """A name that counts how often it is compared with another one."""

    compared = 0

    def __eq__(self, other: object) -> bool:
        Name.compared += 1
        return str.__eq__(self, other)

    __hash__ = str.__hash__


def in_json(names: list[Name]) -> None:
    _no_duplicates([(name, 0) for name in names])


def in_a_header(names: list[Name]) -> None:
    table = CsvRows(Path(__file__))
    table._fields = lambda raw: list(names)  # type: ignore[method-assign]
    table._begin(b"")


def in_an_archive(names: list[Name]) -> None:
    assemble("key", [Member(name, 1, lambda: b"{}", ImageRef(data=b"")) for name in names])


@pytest.mark.parametrize("given", [in_json, in_a_header, in_an_archive])
def test_the_first_name_that_is_there_twice_is_found_in_one_pass(
    given: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert callable(given)
    names = [Name(f"{n}.json") for n in range(500)]
    monkeypatch.setattr(Name, "compared", 0)
    with pytest.raises(RowError, match=r'"498.json".* twice'):
        given([*names, Name("499.json"), Name("498.json")])
    assert Name.compared < 10 * len(names)
