"""Several processes for the pieces of one job, of which none outlives the command."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import Any

from oculi.errors import DataError

_job: Any = None


def run_all(job: Any, method: str, pieces: Sequence[Any], workers: int) -> Iterator[Any]:
    """Call a method of `job` for each piece and yield the piece when it and those before are done.

    Args:
        job: pickled once per worker where processes do not fork.
        method: its name; takes a piece and returns nothing.
        workers: processes; 1 does it all in this one.

    Raises:
        DataError: a worker was killed; or what the method raises.
    """
    workers = min(workers, len(pieces))
    if workers <= 1:
        for piece in pieces:
            getattr(job, method)(piece)
            yield piece
        return
    with ProcessPoolExecutor(workers, initializer=_start, initargs=(job,)) as pool:
        try:
            for piece, _ in zip(
                pieces, pool.map(_call, [method] * len(pieces), pieces), strict=True
            ):
                yield piece
        except BrokenProcessPool:
            raise DataError(
                "a worker was killed, perhaps for want of memory: the same command goes on where it "
                "stopped, with fewer --workers if need be"
            ) from None
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def _start(job: Any) -> None:
    global _job
    _job = job
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent hears it and ends us
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """A killed parent cannot tell its workers, which would wait for work for ever."""
    parent = multiprocessing.parent_process()  # not getppid: a fork server may lie in between
    assert parent is not None
    parent.join()
    os._exit(1)


def _call(method: str, piece: Any) -> None:
    getattr(_job, method)(piece)
