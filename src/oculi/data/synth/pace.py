"""How fast requests may go out: so many a minute, so many tokens a minute, and not before a server
has said so."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable


class Stopped(Exception):
    """The run is over; nobody is to wait or ask any more."""


class Pace:
    """Hands out moments at which requests may start; one for all threads.

    Requests are spread evenly, so that no minute anywhere holds more than a minute's share and one.
    Tokens are taken as estimated, and corrected when the server has counted them.

    Args:
        requests: most a minute; None: any number.
        tokens: most a minute, of prompts and answers; None: any number.
        clock: seconds that never go back.
    """

    def __init__(
        self,
        requests: float | None = None,
        tokens: float | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._request_gap = 60 / requests if requests else 0.0
        self._token_gap = 60 / tokens if tokens else 0.0
        self._clock, self._lock = clock, threading.Lock()
        self._next_request = self._next_token = self._held = clock()
        self._stop = threading.Event()

    def take(self, tokens: int, since: float) -> float:
        """Start a request of so many tokens that has waited since then; 0.0 when that is done.

        Else seconds after which to try again. Nothing is promised for later: a hold, or a
        correction, in the meantime moves all who wait.
        """
        with self._lock:
            start = max(since, self._next_request, self._next_token, self._held)
            if (left := start - self._clock()) > 0:
                return left
            # From the moment that was due, not from now: waking late must not slow down the rest.
            self._next_request = start + self._request_gap
            self._next_token = start + tokens * self._token_gap
            return 0.0

    def correct(self, more: int) -> None:
        """A request took so many tokens more (or, below 0, fewer) than were reserved."""
        with self._lock:
            self._next_token += more * self._token_gap

    def hold(self, seconds: float) -> None:
        """Start nothing new for so long: the server said so to one, and meant all."""
        with self._lock:
            self._held = max(self._held, self._clock() + seconds)

    def wait(self, tokens: int) -> None:
        """Wait for a moment at which a request of so many tokens may start; raises Stopped."""
        since = self._clock()
        while left := self.take(tokens, since):
            self.sleep(left)
        if self._stop.is_set():
            raise Stopped

    def sleep(self, seconds: float) -> None:
        """Wait; raises Stopped at once when the run is over."""
        if self._stop.wait(max(0.0, seconds)):
            raise Stopped

    def stop(self) -> None:
        """Let nobody wait any more."""
        self._stop.set()

    @property
    def stopped(self) -> bool:
        """Whether the run is over."""
        return self._stop.is_set()
