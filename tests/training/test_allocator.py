"""Freed memory is used again: counted in page faults of a process of its own."""

import os
import platform
import subprocess
import sys

import pytest

SCRIPT = """
import resource, sys
import torch
from oculi.training.allocator import keep_freed_memory

def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt

kept = keep_freed_memory() if sys.argv[1] == "keep" else False
for turn in range(25):
    torch.ones(20_000_000)
    if turn == 19:  # aligned blocks find their hole after some turns
        before = faults()
print(kept, faults() - before)
"""
glibc = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="malloc is not glibc's")


def count(keep: bool, **environment: str) -> tuple[bool, int]:
    """Whether memory is kept, and the page faults of five tensors of 80 MB, one behind the other."""
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("MALLOC_", "GLIBC_TUNABLES"))}
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, "keep" if keep else "leave"],
        env={**clean, **environment}, capture_output=True, text=True, check=True,
    )  # fmt: skip
    kept, faults = done.stdout.split()
    return kept == "True", int(faults)


@glibc
def test_what_was_freed_is_used_again() -> None:
    assert count(keep=True) == (True, pytest.approx(0, abs=500))
    assert count(keep=False)[1] > 50 * 500


@glibc
def test_what_the_user_has_set_stays() -> None:
    kept, faults = count(keep=True, MALLOC_MMAP_THRESHOLD_="65536")
    assert not kept and faults > 50 * 500


def test_a_system_without_mallopt_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    from oculi.training import allocator

    class Nothing:
        def __init__(self, name: None) -> None: ...

    monkeypatch.setattr(allocator.ctypes, "CDLL", Nothing)
    for name in [name for name in os.environ if name.startswith(("MALLOC_", "GLIBC_"))]:
        monkeypatch.delenv(name)
    assert not allocator.keep_freed_memory()
