"""Freed memory is used again, and stays whole: page faults and memory in use of a process of its own."""

import ctypes
import os
import platform
import subprocess
import sys

import pytest
import torch

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


def run(script: str, *arguments: str, **environment: str) -> str:
    """What the script prints, in an environment that says nothing of malloc but what is given."""
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("MALLOC_", "GLIBC_TUNABLES"))}
    done = subprocess.run(
        [sys.executable, "-c", script, *arguments],
        env={**clean, **environment}, capture_output=True, text=True, check=True,
    )  # fmt: skip
    return done.stdout


def count(keep: bool, **environment: str) -> tuple[bool, int]:
    """Whether memory is kept, and the page faults of five tensors of 80 MB, one behind the other."""
    kept, faults = run(SCRIPT, "keep" if keep else "leave", **environment).split()
    return kept == "True", int(faults)


@glibc
def test_what_was_freed_is_used_again() -> None:
    assert count(keep=True) == (True, pytest.approx(0, abs=500))
    assert count(keep=False)[1] > 50 * 500


HOLES = """
import torch
from oculi.training.allocator import EVERY, give_back_unused, keep_freed_memory

def resident():
    return int(next(l.split()[1] for l in open("/proc/self/status") if l.startswith("VmRSS")))

keep_freed_memory()
before = resident()
blocks = [torch.ones(1_000_000) for _ in range(100)]
last = blocks[-1]
del blocks  # 99 blocks of 4 MB, and one behind them that stays
kept = resident()
for _ in range(EVERY):
    give_back_unused()
print(kept - before, resident() - before)
"""


@glibc
@pytest.mark.skipif(not os.path.exists("/proc/self/status"), reason="needs /proc")
def test_what_nothing_uses_goes_back_now_and_then() -> None:
    kept, left = (int(size) // 1000 for size in run(HOLES).split())
    assert kept > 350 and left < 50, (kept, left)


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


KERNELS = """
import ctypes
import torch
from oculi.training.allocator import keep_freed_memory

class Info(ctypes.Structure):
    _fields_ = [(name, ctypes.c_size_t) for name in
        "arena ordblks smblks hblks hblkhd usmblks fsmblks uordblks fordblks keepcost".split()]

def used():
    info = ctypes.CDLL(None).mallinfo2
    info.restype = Info
    return info().uordblks

keep_freed_memory()
weight = torch.ones(192, 192, dtype=torch.bfloat16)
def products(shapes):
    for rows in shapes:
        torch.ones(rows, 192, dtype=torch.bfloat16) @ weight
products(range(64, 96))
before = used()
products(range(96, 608))
print(used() - before)
"""


@glibc
def test_few_kernels_are_kept_between_the_blocks_of_memory() -> None:
    if not hasattr(ctypes.CDLL(None), "mallinfo2"):
        pytest.skip("glibc is older than 2.33, which counts memory in use")
    if not torch.ops.mkldnn._is_mkldnn_bf16_supported():
        pytest.skip("oneDNN has no kernels for bfloat16 on this processor")
    names = ("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "LRU_CACHE_CAPACITY")
    few, many = int(run(KERNELS)), int(run(KERNELS, **dict.fromkeys(names, "1024")))
    halves = [int(run(KERNELS, **{name: "1024"})) for name in names]
    # Both places count, and what the user has set stays.
    assert few < min(halves) / 1.5 and max(halves) < many, (few, halves, many)
