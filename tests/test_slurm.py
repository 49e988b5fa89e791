"""The launch file for Slurm, with stand-ins for Slurm's commands and for oculi."""

import os
import subprocess
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parent.parent / "examples" / "train.slurm"
SRUN = """#!/usr/bin/env bash
echo "srun $1" >> "$LOG"; shift; worst=0
for n in 0 1; do
  SLURM_PROCID=$n SLURM_LOCALID=$n SLURM_NTASKS=2 "$@"; code=$?; [ $code -gt $worst ] && worst=$code
done
exit $worst
"""
SCONTROL = """#!/usr/bin/env bash
if [ "$1" = show ]; then printf 'node-a\\nnode-b\\n'; else echo "scontrol $*" >> "$LOG"; fi
"""
OCULI = """#!/usr/bin/env bash
echo "$RANK $LOCAL_RANK $WORLD_SIZE $MASTER_ADDR $MASTER_PORT: $*" >> "$LOG"; exit "$CODE"
"""


@pytest.mark.parametrize("code", [0, 75, 4])
@pytest.mark.parametrize("begun", [False, True])
def test_every_rank_is_started_and_only_what_was_saved_goes_on(
    tmp_path: Path, code: int, begun: bool
) -> None:
    for name, text in (("srun", SRUN), ("scontrol", SCONTROL), ("oculi", OCULI)):
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)
    run, log = tmp_path / "run", tmp_path / "log"
    if begun:
        run.mkdir()
        (run / "recipe.yaml").touch()
    environment = {
        "PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}", "LOG": str(log), "CODE": str(code),
        "SLURM_JOB_NODELIST": "node-[a-b]", "SLURM_JOB_ID": "123456",
    }  # fmt: skip
    words = ["bash", str(SCRIPT), "vora", str(run), "--data", "a b.json"]
    assert subprocess.run(words, env=environment, check=False).returncode == code
    ends = " --resume" if begun else ""
    ranks = [
        f"{n} {n} 2 node-a 23456: train vora --out {run} --data a b.json{ends}" for n in (0, 1)
    ]
    requeued = ["scontrol requeue 123456"] if code == 75 else []
    assert log.read_text().splitlines() == ["srun --wait=120", *ranks, *requeued]
