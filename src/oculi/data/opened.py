"""The data files that this process has open: a few at a time, however many a set has.

A set may have more files than a process may open, and what is kept of each in memory adds up. So the
file used longest ago is closed; it opens again when it is asked for.
"""

from __future__ import annotations

import os
import threading
from collections import OrderedDict
from typing import Final, Protocol
from weakref import ref

MAX_OPEN: Final = 64  # some systems allow a process 256


class Closable(Protocol):
    """What opens itself when it is used, and may be closed while a thread reads it."""

    def close(self) -> None: ...


class OpenFiles:
    """The files in use, the one used last at the end. `lock` is for what is kept of them, too.

    They are held weakly: a source that is dropped closes its own.
    """

    def __init__(self) -> None:
        self._files: OrderedDict[int, ref[Closable]] = OrderedDict()
        self.renew_lock()

    def renew_lock(self) -> None:
        """In a forked process: a thread that held the lock is not in it."""
        self.lock = threading.Lock()

    def use(self, file: Closable) -> None:
        """Note that a file has been opened or is used, and close others if there are too many."""
        key = id(file)
        with self.lock:
            if key in self._files:
                self._files.move_to_end(key)
                return
            # Gone before another file can have its id.
            self._files[key] = ref(file, lambda _: self._files.pop(key, None))
            while len(self._files) > MAX_OPEN:
                oldest = self._files.popitem(last=False)[1]()
                if oldest is not None:
                    oldest.close()

    def files(self) -> list[Closable]:
        """Those in use, for whoever holds the lock."""
        return [file for each in list(self._files.values()) if (file := each()) is not None]


OPENED: Final = OpenFiles()
os.register_at_fork(after_in_child=OPENED.renew_lock)
