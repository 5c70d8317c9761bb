"""Processes that tests start: forks of this one, alone or as torchrun starts a group of them."""

import gc
import multiprocessing
import os
import socket
from collections.abc import Callable

import torch

FORK = multiprocessing.get_context("fork")  # a new interpreter would import for seconds
# a fork must not collect what its parent left: with torch 2.14 (CUDA wheel, on a CPU) that crashes
os.register_at_fork(after_in_child=gc.freeze)


def together(world_size: int, work: Callable[[int], object]) -> None:
    """Run `work(rank)` in processes that may join a group; each must end well."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]

    def start(rank: int) -> None:
        os.environ.update(
            MASTER_ADDR="127.0.0.1",
            MASTER_PORT=str(port),
            RANK=str(rank),
            WORLD_SIZE=str(world_size),
        )
        torch.set_num_threads(1)
        work(rank)

    children = [FORK.Process(target=start, args=(rank,)) for rank in range(world_size)]
    for child in children:
        child.start()
    for child in children:
        child.join(300)
        assert child.exitcode == 0
