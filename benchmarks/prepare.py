"""A million rows prepared and trained from: rows a second, bytes a row, seconds to the first step.

    python benchmarks/prepare.py                # a million rows; --rows 100000 is quick
    python benchmarks/prepare.py --workers 8

Writes JSON Lines, a tenth of the rows with one of eight small pictures, prepares it with the command,
opens it and touches all rows at random, and trains two steps of `vora_tiny` from it. Expected: at most
16 bytes a row in memory (exact: how much more the process grows for all rows than for a tenth), and the
first step within 10 s of the start of the command. On two shared cores of a virtual machine, 2026-11-21:

    rows: 1000000, workers: 2, cores: 2
    prepared: 100.2 s, 9979 rows/s; processor 113.3 s
    resident: 16.00 bytes a row
    first step after 4.5 s; processor 4.4 s
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

from PIL import Image

OCULI = [sys.executable, "-m", "oculi"]
WORDS = ["a", "red", "blue", "large", "circle", "square", "stands", "near", "the", "left", "of"]

TOUCH = """
import sys
from pathlib import Path
from oculi.data.prepared import PreparedRows

def resident():
    for line in open("/proc/self/smaps_rollup"):
        if line.startswith("Rss:"):
            return 1024 * int(line.split()[1])

PreparedRows(Path(sys.argv[1]), limit=10)[0]  # code and libraries
before = resident()
rows = PreparedRows(Path(sys.argv[2]))
(shard,) = rows._shards
for k in range(20_000):  # no list of them, which would be measured too
    shard.ref(k * 48_271 % len(rows))
print(len(rows), resident() - before)
"""


def write_rows(folder: Path, count: int) -> Path:
    dice = random.Random(0)
    for i in range(8):
        Image.new("RGB", (40 + 12 * i, 84), (30 * i, 90, 120)).save(folder / f"{i}.png")
    path = folder / f"rows-{count}.jsonl"
    with path.open("w", encoding="utf-8") as file:
        for i in range(count):
            said = [" ".join(dice.choices(WORDS, k=dice.randint(4, 16))) for _ in range(2)]
            turns = [{"from": "human", "value": said[0]}, {"from": "gpt", "value": said[1]}]
            row: dict[str, object] = {"id": str(i), "conversations": turns}
            if i % 10 == 0:
                row["image"] = f"{i // 10 % 8}.png"
                turns[0]["value"] = f"<image>\n{said[0]}"
            file.write(json.dumps(row) + "\n")
    return path


def run(*command: object) -> tuple[float, float]:
    """Seconds by the clock, and of all processors."""
    began, spent = time.monotonic(), cpu()
    subprocess.run([*OCULI, *map(str, command)], check=True, stdout=subprocess.DEVNULL)
    return time.monotonic() - began, cpu() - spent


def cpu() -> float:
    """Processor seconds of ended children, which a busy machine does not stretch as the clock's."""
    used = os.times()
    return used.children_user + used.children_system


def resident(few: Path, many: Path) -> tuple[int, int]:
    done = subprocess.run(
        [sys.executable, "-c", TOUCH, str(few), str(many)],
        check=True, capture_output=True, text=True,
    )  # fmt: skip
    rows, grown = map(int, done.stdout.split())
    return rows, grown


def first_step(prepared: Path, out: Path) -> tuple[float, float]:
    """From the start of `oculi train` until the first step stands in the log, seconds as of `run`."""
    small = ["stages.0.steps=2", "stages.0.batch=16", "stages.0.merge_lora=false", "evals=[]"]
    began, spent = time.monotonic(), cpu()
    train = subprocess.Popen(
        [*OCULI, "train", "vora_tiny", *small, "--data", str(prepared), "--out", str(out)],
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    log = out / "metrics.jsonl"
    while train.poll() is None and not (log.exists() and log.stat().st_size):
        time.sleep(0.02)
    taken = time.monotonic() - began
    train.terminate()
    train.wait()
    if not (log.exists() and log.stat().st_size):
        raise SystemExit("the training ended before its first step")
    return taken, cpu() - spent


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--workers", type=int, default=os.cpu_count())
    options = parser.parse_args(arguments)
    with TemporaryDirectory() as name:
        folder = Path(name)
        prepared = []
        for count in (options.rows // 10, options.rows):
            data, out = write_rows(folder, count), folder / f"prepared-{count}"
            settings = ["--recipe", "vora_tiny", "--out", out, "--workers", options.workers]
            seconds, spent = run("data", "prepare", data, *settings)
            prepared.append(out)
        few, grown_few = resident(*[prepared[0]] * 2)
        many, grown_many = resident(*prepared)
        print(f"rows: {many}, workers: {options.workers}, cores: {os.cpu_count()}")
        print(f"prepared: {seconds:.1f} s, {many / seconds:.0f} rows/s; processor {spent:.1f} s")
        print(f"resident: {(grown_many - grown_few) / (many - few):.2f} bytes a row")
        seconds, spent = first_step(prepared[1], folder / "run")
        print(f"first step after {seconds:.1f} s; processor {spent:.1f} s")


if __name__ == "__main__":
    main()
