"""SIGTERM, SIGUSR1 and Ctrl-C: finish the step, save, and say how to go on.

A handler can do little safely, so during a step it only notes the signal. Where nothing can be left
half done (waiting for data, evaluating, building) it interrupts. A second Ctrl-C is left to the
kernel, which ends the process even within a long operation.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

from oculi.errors import OculiError

PREEMPTED, INTERRUPTED = 75, 130  # 75 is EX_TEMPFAIL: schedulers may start the same command again


class Stopped(OculiError):
    """A run was asked to stop, and did; it goes on with ``resume``."""

    code = "stopped"

    def __init__(self, message: str, number: int) -> None:
        super().__init__(message)
        self.exit_code = INTERRUPTED if number == signal.SIGINT else PREEMPTED


class Interrupt(KeyboardInterrupt):
    """Raised by the handler; no OculiError, for libraries catch every ``Exception``."""


class Stopper:
    """Listens while it is entered; handlers are those from before afterwards.

    Only the main thread can: elsewhere signals do what they did.

    Attributes:
        number: the first signal heard, or None.
    """

    SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)

    def __init__(self) -> None:
        self.number: int | None = None
        self._interruptible = True
        self._before: dict[int, Any] = {}
        self._process = os.getpid()

    def __enter__(self) -> Stopper:
        if threading.current_thread() is threading.main_thread():
            for number in self.SIGNALS:
                self._before[number] = signal.signal(number, self._hear)
        return self

    def __exit__(self, *error: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler if handler is not None else signal.SIG_DFL)

    @property
    def name(self) -> str:
        """Of the signal heard."""
        return signal.Signals(self.number).name if self.number is not None else ""

    @contextmanager
    def deferred(self) -> Iterator[None]:
        """Within: signals are noted, and nothing is interrupted."""
        before, self._interruptible = self._interruptible, False
        try:
            yield
        finally:
            self._interruptible = before

    @contextmanager
    def interruptible(self) -> Iterator[None]:
        """Within: a signal, also one noted before, raises Interrupt."""
        before, self._interruptible = self._interruptible, True
        try:
            if self.number is not None:
                raise Interrupt
            yield
        finally:
            self._interruptible = before

    def _hear(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() != self._process:  # a forked loader worker; its parent will end it
            return
        first = self.number is None
        if first:
            self.number = number
        if number == signal.SIGINT:
            signal.signal(signal.SIGINT, signal.SIG_DFL)
        if first and not self._interruptible:
            more = "; Ctrl-C again: at once, without saving" if number == signal.SIGINT else ""
            # Not print: the step that was interrupted may be in the middle of one.
            os.write(2, f"stopping after this step{more}\n".encode())
        if first and self._interruptible:
            raise Interrupt
