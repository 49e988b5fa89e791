"""What a run keeps an eye on: loss spikes, steps that were not finite, samples that were bad.

All of it is a few numbers, saved in every checkpoint, so that a resumed run judges as the one that
was not interrupted would have.
"""

from __future__ import annotations

import statistics
from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any

from oculi.data.index import BAD_SHARE
from oculi.data.loader import BadSample
from oculi.errors import BadSamplesError

WINDOW, LEAST, SIGMAS = 128, 32, 6.0  # losses looked back on, needed to judge, and how far is far
# Up to so many bad samples are no reason to stop, however few were drawn; then the share counts.
TOLERATED, IN_A_ROW = 10, 100


class Monitor:
    """Of one stage.

    Attributes:
        skipped: steps that were not finite and were left out. skipped_in_row: the last ones of them.
        drawn, bad: samples so far, and those that could not be used.
    """

    def __init__(self, state: Mapping[str, Any] | None = None) -> None:
        state = state or {}
        self._losses: deque[float] = deque(state.get("losses", ()), maxlen=WINDOW)
        self.skipped, self.skipped_in_row = state.get("skipped", 0), state.get("skipped_in_row", 0)
        self.drawn, self.bad = state.get("drawn", 0), state.get("bad", 0)
        self._bad_in_row = state.get("bad_in_row", 0)

    def state(self) -> dict[str, Any]:
        """Plain values that ``Monitor(state)`` goes on from."""
        return {
            "losses": list(self._losses), "skipped": self.skipped,
            "skipped_in_row": self.skipped_in_row, "drawn": self.drawn, "bad": self.bad,
            "bad_in_row": self._bad_in_row,
        }  # fmt: skip

    def spike(self, loss: float) -> dict[str, float] | None:
        """Take in the loss of a step; what is remarkable about it, or None.

        A loss is a spike that lies more than six standard deviations above the mean of the last 128
        finite ones; of fewer than 32 nothing is said. A spike joins them, or a level that has
        changed would be one for ever.
        """
        past, found = self._losses, None
        if len(past) >= LEAST:
            mean = statistics.fmean(past)
            # The floor: losses that hardly differ are no scale.
            deviation = max(statistics.pstdev(past, mean), 0.01 * abs(mean))
            if loss > mean + SIGMAS * deviation:
                found = {"loss": loss, "mean": mean, "deviation": deviation}
        past.append(loss)
        self.skipped_in_row = 0
        return found

    def skip(self, most: int) -> bool:
        """Count a step that was not finite; False if that makes more than ``most`` in a row."""
        self.skipped += 1
        self.skipped_in_row += 1
        return self.skipped_in_row <= most

    def samples(self, first: int, count: int, bad: Sequence[BadSample], where: str) -> None:
        """Count the samples of a step.

        Args:
            first: position of the first in the order of the stage. count: how many were drawn.
            bad: those that were left out.
            where: for the message: the file that lists them.

        Raises:
            BadSamplesError: more than 1 % of all were bad (and more than 10), or 100 in a row.
        """
        positions = {sample.position for sample in bad}
        for position in range(first, first + count):
            self._bad_in_row = self._bad_in_row + 1 if position in positions else 0
            if self._bad_in_row >= IN_A_ROW:
                break
        self.drawn += count
        self.bad += len(bad)
        too_many = self.bad > max(TOLERATED, BAD_SHARE * self.drawn)
        if self._bad_in_row >= IN_A_ROW or too_many:
            what = (
                f"{self.bad} of {self.drawn} samples, more than {BAD_SHARE:.0%}"
                if too_many
                else f"{self._bad_in_row} samples in a row"
            )
            raise BadSamplesError(
                f"{what}, cannot be used, the last one: {bad[-1].reason}; all are listed in {where}: "
                "mend the data, or leave them out (oculi data prepare)"
            )
