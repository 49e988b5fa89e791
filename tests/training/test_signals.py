"""SIGTERM and Ctrl-C: the step is finished, the run saved, the exit code says so."""

import os
import signal
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from helpers import Tiny, losses, tiny_recipe
from oculi.commands import one_line_errors
from oculi.errors import (
    BadSamplesError,
    CheckpointError,
    DataError,
    DiskError,
    LoaderError,
    NoUsableCheckpointError,
    OculiError,
    RecipeError,
)
from oculi.recipe import Recipe
from oculi.training import checkpoint as ckpt
from oculi.training.loop import NonFiniteError
from oculi.training.run import train
from oculi.training.signals import Interrupt, Stopped, Stopper

# What is promised, where the time means anything: not on a machine that others keep busy.
PATIENCE = 10.0 if os.getloadavg()[0] <= 2 * (os.cpu_count() or 1) else 120.0


def send(number: int) -> None:
    os.kill(os.getpid(), number)
    time.sleep(0)  # a bytecode for the handler to run at


@pytest.mark.parametrize("number", Stopper.SIGNALS)
def test_within_a_step_a_signal_is_only_noted(number: signal.Signals) -> None:
    before = signal.getsignal(number)
    with Stopper() as stopper:
        with stopper.deferred():
            send(number)
            assert stopper.number == number and stopper.name == number.name
            with pytest.raises(Interrupt), stopper.interruptible():
                pytest.fail("what is interruptible must not begin")
        if number != signal.SIGINT:
            send(number)  # a scheduler repeats itself: heard already
    assert signal.getsignal(number) == before


def test_between_steps_a_signal_interrupts() -> None:
    with Stopper() as stopper, stopper.deferred():
        with pytest.raises(Interrupt), stopper.interruptible():
            send(signal.SIGTERM)
        assert stopper.number == signal.SIGTERM
    assert issubclass(Interrupt, KeyboardInterrupt)  # libraries catch every Exception


def test_other_threads_leave_signals_alone() -> None:
    before = signal.getsignal(signal.SIGTERM)
    inside: list[Any] = []

    def enter() -> None:
        with Stopper():
            inside.append(signal.getsignal(signal.SIGTERM))

    thread = threading.Thread(target=enter)
    thread.start()
    thread.join()
    assert inside == [before]


def forked(task: Callable[[], object]) -> int:
    """Start a process for a task; its exit code is that of the command that it stands for."""
    pid = os.fork()
    if pid:
        return pid
    torch.set_num_threads(1)  # threads that were there before the fork are waited for without end
    code = 1
    try:
        task()
        code = 0
    except OculiError as error:
        code = error.exit_code
    finally:
        if code == 1:  # pytest shows it where the test fails
            os.write(2, traceback.format_exc().encode())
        os._exit(code)


def ended(pid: int, seconds: float) -> int:
    """Its exit code, or minus the signal, when it has ended within so many seconds."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        found, status = os.waitpid(pid, os.WNOHANG)
        if found:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.01)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    pytest.fail(f"it has not ended after {seconds} seconds")


def wait_for(run: Path, lines: int, pid: int) -> None:
    """Until so many steps are logged."""
    metrics, deadline = run / "metrics.jsonl", time.monotonic() + 300
    while time.monotonic() < deadline:
        if metrics.exists() and metrics.read_bytes().count(b"\n") >= lines:
            return
        assert os.waitpid(pid, os.WNOHANG) == (0, 0), "it ended before"
        time.sleep(0.01)
    pytest.fail(f"no {lines} steps in time")


def test_a_second_ctrl_c_ends_the_process_at_once() -> None:
    def task() -> None:
        with Stopper() as stopper, stopper.deferred():
            send(signal.SIGINT)
            send(signal.SIGINT)

    assert ended(forked(task), 10) == -signal.SIGINT


def test_a_forked_worker_does_not_hear_for_its_trainer() -> None:
    with Stopper() as stopper:
        pid = forked(lambda: send(signal.SIGTERM))
        assert ended(pid, 10) == 0
    assert stopper.number is None


@pytest.fixture
def long_recipe(tiny: Tiny) -> Recipe:
    """One stage that no test waits for, with checkpoints far apart."""
    changes = {
        "stages.0.steps": 100_000, "stages.0.checkpoint_every": 100_000, "stages.1.steps": 1,
    }  # fmt: skip
    return tiny_recipe(tiny, **changes)


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGTERM, 75), (signal.SIGUSR1, 75), (signal.SIGINT, 130)]
)
def test_a_run_that_is_asked_to_stop_saves_and_says_how_to_go_on(
    long_recipe: Recipe, tmp_path: Path, number: signal.Signals, code: int
) -> None:
    run = tmp_path / "run"
    pid = forked(lambda: train(long_recipe, run, quiet=True))
    wait_for(run, 3, pid)
    os.kill(pid, number)
    assert ended(pid, PATIENCE) == code
    saved = ckpt.newest(run / "checkpoints")
    assert saved is not None and ckpt.problem(saved) is None
    logged = len((run / "metrics.jsonl").read_text().splitlines())
    assert ckpt.load_state(saved).step == logged >= 3


def test_a_signal_before_the_first_step_leaves_a_folder_that_starts_again(
    long_recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from oculi.training import run as run_module

    def build(*arguments: Any) -> Any:
        send(signal.SIGTERM)

    with monkeypatch.context() as patch:
        patch.setattr(run_module, "build_model", build)
        with pytest.raises(Stopped, match="stopped by SIGTERM: nothing was saved yet") as caught:
            train(long_recipe, tmp_path / "run", quiet=True)
    assert caught.value.exit_code == 75
    pid = forked(lambda: train(long_recipe, tmp_path / "run", quiet=True))
    wait_for(tmp_path / "run", 1, pid)
    os.kill(pid, signal.SIGTERM)
    assert ended(pid, PATIENCE) == 75


def test_a_signal_while_ranks_meet(
    long_recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from oculi.training import run as run_module

    @contextmanager
    def meeting() -> Iterator[Any]:
        send(signal.SIGTERM)
        yield

    monkeypatch.setattr(run_module, "ranks_of_launcher", meeting)
    with pytest.raises(Stopped, match="stopped by SIGTERM: nothing was saved yet") as caught:
        train(long_recipe, tmp_path / "run", quiet=True)
    assert caught.value.exit_code == 75


def test_a_signal_while_a_stage_is_finished(
    finished: Path, tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Merging and evaluating are interrupted: the checkpoint before them has everything."""
    from oculi.training import run as run_module

    def fold(*arguments: Any) -> float:
        send(signal.SIGTERM)
        return 0.0

    run = tmp_path / "run"
    with monkeypatch.context() as patch:
        patch.setattr(run_module, "fold", fold)
        with pytest.raises(Stopped, match=r"go on from .*step-0000003 with --resume"):
            train(tiny_recipe(tiny), run, quiet=True)
    train(tiny_recipe(tiny), run, resume=True, quiet=True)
    assert losses(run) == losses(finished)


CODES = [
    (RecipeError("x"), 2), (DataError("x"), 2), (CheckpointError("x"), 2), (BadSamplesError("x"), 3),
    (NonFiniteError("x", 0.0, 0.0, []), 4), (NoUsableCheckpointError("x"), 5), (DiskError("x"), 6),
    (LoaderError("x"), 7), (Stopped("x", signal.SIGTERM), 75), (Stopped("x", signal.SIGINT), 130),
]  # fmt: skip


@pytest.mark.parametrize(("error", "code"), CODES, ids=lambda value: type(value).__name__)
def test_the_command_exits_with_the_code_of_the_error(
    error: OculiError, code: int, capsys: pytest.CaptureFixture[str]
) -> None:
    import typer

    @one_line_errors
    def command() -> None:
        raise error

    with pytest.raises(typer.Exit) as caught:
        command()
    assert caught.value.exit_code == code
    assert capsys.readouterr().err == "oculi: x\n"
    page = (Path(__file__).parents[2] / "docs" / "reliability.md").read_text()
    assert f"| {code} |" in page  # every code is said to the user
