"""Lines that are only added: whole after a kill, from many threads, on a full disk."""

import threading
from pathlib import Path

import pytest

from oculi import durable
from oculi.data.synth.records import Journal
from oculi.errors import DataError, DiskError


def lines(path: Path) -> list[int]:
    with Journal(path) as journal:
        return [value["n"] for _, value in journal]


def test_lines_are_read_in_order_and_by_their_places(tmp_path: Path) -> None:
    path = tmp_path / "below" / "j"
    with Journal(path) as journal:
        places = [journal.add({"n": n, "text": "é\n" * n}) for n in range(5)]
    with Journal(path) as journal:
        assert [place for place, _ in journal] == places
        assert journal.read(places[3]) == {"n": 3, "text": "é\n" * 3}
        journal.add({"n": 5})
    assert lines(path) == [0, 1, 2, 3, 4, 5]


def test_a_line_is_on_the_disk_before_its_place_is_known(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    order: list[str] = []
    with Journal(tmp_path / "j") as journal:
        monkeypatch.setattr(durable, "observer", lambda place, *_: order.append(place))
        real = __import__("os").fsync
        monkeypatch.setattr("os.fsync", lambda fd: (order.append("fsync"), real(fd)))
        journal.add({"n": 1})
    assert order == ["append", "fsync", "appended"]


@pytest.mark.parametrize("cut", range(1, 12))
def test_a_line_without_its_end_is_taken_off(tmp_path: Path, cut: int) -> None:
    path = tmp_path / "j"
    with Journal(path) as journal:
        journal.add({"n": 1})
        second = journal.add({"n": 2000})
    data = path.read_bytes()
    path.write_bytes(data[: second + cut])
    assert lines(path) == ([1, 2000] if second + cut == len(data) else [1])
    with Journal(path) as journal:
        journal.add({"n": 3})
    assert lines(path)[-1] == 3 and lines(path)[0] == 1


def test_a_file_of_one_long_line_without_an_end(tmp_path: Path) -> None:
    (tmp_path / "j").write_bytes(b"{" * 200_000)
    assert lines(tmp_path / "j") == []


@pytest.mark.parametrize("damage", [b"\xff\x00", b"[1]", b'{"n": ', b""])
def test_a_damaged_line_in_the_middle_is_named(tmp_path: Path, damage: bytes) -> None:
    (tmp_path / "j").write_bytes(b'{"n":1}\n' + damage + b'\n{"n":2}\n')
    with pytest.raises(DataError, match="j: line 2 is damaged"):
        lines(tmp_path / "j")


def test_threads_do_not_mix_their_lines(tmp_path: Path) -> None:
    with Journal(tmp_path / "j") as journal:

        def add(first: int) -> None:
            for n in range(first, first + 25):
                assert journal.read(journal.add({"n": n, "x": "y" * 3000}))["n"] == n

        threads = [threading.Thread(target=add, args=(25 * i,)) for i in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert sorted(lines(tmp_path / "j")) == list(range(100))


def test_a_full_disk_leaves_no_half_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import os

    path = tmp_path / "j"
    with Journal(path) as journal:
        journal.add({"n": 1})
        real = os.write

        def full(fd: int, data: bytes) -> int:
            real(fd, data[:4])
            raise OSError(28, "No space left on device")

        monkeypatch.setattr("os.write", full)
        with pytest.raises(DiskError, match="make room"):
            journal.add({"n": 2})
        monkeypatch.undo()
        journal.add({"n": 3})
    assert lines(path) == [1, 3]
