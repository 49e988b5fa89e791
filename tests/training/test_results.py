"""The report of a run that goes on: how often, and what happens where it cannot be written."""

from pathlib import Path

import pytest

from oculi.training import results
from oculi.training.results import SHARE, Reports


class Clock:
    """Seconds that a test lets pass; a report takes two of them."""

    def __init__(self) -> None:
        self.now, self.written = 100.0, 0

    def __call__(self) -> float:
        return self.now

    def write(self, run: Path) -> Path:
        self.written += 1
        self.now += 2.0
        return run / "report.html"


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(results, "write_report", clock.write)
    return clock


def test_reports_take_no_more_than_their_share_of_the_time(clock: Clock, tmp_path: Path) -> None:
    reports = Reports(tmp_path, pytest.fail, clock)
    for _ in range(1000):
        clock.now += 1.0
        reports.renew()
    assert clock.written >= 2
    assert 2.0 * clock.written <= SHARE * clock.now + 2.0  # of the first one nothing is known


def test_the_last_report_is_written_whenever_the_one_before_was(
    clock: Clock, tmp_path: Path
) -> None:
    reports = Reports(tmp_path, pytest.fail, clock)
    reports.renew()
    reports.renew()
    assert clock.written == 1
    reports.close()
    assert clock.written == 2


def test_a_report_that_cannot_be_written_is_said_and_ends_nothing(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def full(run: Path) -> Path:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(results, "write_report", full)
    said: list[str] = []
    reports = Reports(tmp_path, said.append)
    reports.renew()
    assert said == [f"{tmp_path / 'report.html'} cannot be written: No space left on device"]
    reports.close()
