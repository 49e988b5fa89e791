"""Several processes that train together, as ``torchrun`` would start them, on one machine."""

import multiprocessing
import os
import socket
import traceback
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist

LIMIT = 120  # seconds; ranks that wait for each other wait for ever


def on_ranks(count: int, work: Callable[[], Any]) -> list[Any]:
    """What ``work`` returns, or the exception that it raises, by rank."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    context = multiprocessing.get_context("fork")
    pipes, processes = [], []
    for rank in range(count):
        here, there = context.Pipe(duplex=False)
        variables = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": count, "MASTER_PORT": port}
        process = context.Process(target=_run, args=(there, variables, work))
        process.start()
        there.close()
        pipes.append(here)
        processes.append(process)
    try:
        found = [_result(pipe, rank) for rank, pipe in enumerate(pipes)]
    finally:
        for process in processes:
            process.kill()
            process.join()
    if bugs := [value for kind, value in found if kind == "bug"]:
        raise RuntimeError("\n".join(bugs))
    return [value for _, value in found]


def _result(pipe: Any, rank: int) -> tuple[str, Any]:
    if not pipe.poll(LIMIT):
        return "bug", f"rank {rank} has not come to an end"
    try:
        kind, value = pipe.recv()
    except EOFError:
        return "bug", f"rank {rank} has died"
    return kind, f"rank {rank}: {value}" if kind == "bug" else value


def _run(pipe: Any, variables: dict[str, int], work: Callable[[], Any]) -> None:
    os.environ.update({name: str(value) for name, value in variables.items()})
    os.environ["MASTER_ADDR"] = "localhost"
    torch.set_num_threads(1)
    from oculi.errors import OculiError

    try:
        pipe.send(("result", work()))
    except OculiError as error:
        pipe.send(("result", (type(error).__name__, str(error), error.exit_code)))
    except BaseException:
        pipe.send(("bug", traceback.format_exc()))
    finally:
        pipe.close()
        if dist.is_initialized():
            dist.destroy_process_group()
        os._exit(0)
