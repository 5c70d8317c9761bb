"""The little that training needs of torch.distributed; without torchrun there is one process."""

import contextlib
import datetime
import functools
import hashlib
import inspect
import os
from collections.abc import Iterable, Iterator
from typing import TypeVar

import torch
from torch import distributed, nn
from torch.nn.parallel import DistributedDataParallel

# the others wait while the first process writes a checkpoint or draws a contact sheet
TIMEOUT = datetime.timedelta(hours=2)
_alone = False
T = TypeVar("T")


def start(device: torch.device) -> None:
    """Join the processes that torchrun started, if any: gloo on the CPU, nccl on GPUs."""
    if "WORLD_SIZE" in os.environ and not distributed.is_initialized():
        backend = "nccl" if device.type == "cuda" else "gloo"
        distributed.init_process_group(backend, timeout=TIMEOUT)


def stop() -> None:
    """Leave the process group."""
    if distributed.is_initialized():
        distributed.destroy_process_group()


def rank() -> int:
    return distributed.get_rank() if _together() else 0


def world_size() -> int:
    return distributed.get_world_size() if _together() else 1


def share(rank: int | None, world_size: int | None) -> tuple[int, int]:
    """Return rank and world size, torchrun's where none are given, for work without a group."""
    return (
        int(os.environ.get("RANK", 0)) if rank is None else rank,
        int(os.environ.get("WORLD_SIZE", 1)) if world_size is None else world_size,
    )


def barrier() -> None:
    """Wait until every process is here."""
    if _together():
        distributed.barrier()


def average_gradients(parameters: Iterable[torch.nn.Parameter]) -> None:
    """Average gradients over processes in one message."""
    if world_size() == 1:
        return
    gradients = [_gradient(p) for p in parameters]
    flat = torch.cat([g.flatten() for g in gradients])
    distributed.all_reduce(flat)
    flat /= world_size()
    for gradient, mean in zip(gradients, flat.split([g.numel() for g in gradients]), strict=True):
        gradient.copy_(mean.view_as(gradient))


def _gradient(parameter: torch.nn.Parameter) -> torch.Tensor:
    assert parameter.grad is not None, "processes average only after a backward"
    return parameter.grad


def wrap(module: nn.Module, device: torch.device) -> nn.Module:
    """Return the module under DDP, which averages its gradients; itself where it is alone.

    Its weights are the first process's from now on. Only its own forward is seen by DDP, and only
    what requires a gradient now is averaged. DDP looks for unused parameters, of which there are
    none, as it says once on stderr: else it would group the gradients anew after its first
    backward, and so a resumed run would sum three processes' or more in another order than an
    undisturbed one.
    """
    if world_size() == 1:
        return module
    options = inspect.signature(DistributedDataParallel).parameters
    wrapper = functools.partial(
        DistributedDataParallel,
        module,
        device_ids=[device] if device.type == "cuda" else None,
        gradient_as_bucket_view=True,
        find_unused_parameters=True,
    )
    # buffers are constants; torch 2.13 renamed the option
    if "forward_sync_buffers" in options:
        return wrapper(forward_sync_buffers=False)
    return wrapper(broadcast_buffers=False)


def no_sync(module: nn.Module) -> contextlib.AbstractContextManager:
    """Keep gradients to this process, for all but the last part of an accumulation."""
    if isinstance(module, DistributedDataParallel):
        return module.no_sync()
    return contextlib.nullcontext()


def mean(values: Iterable[float], device: torch.device) -> list[float]:
    """Return the processes' means of some figures."""
    if world_size() == 1:
        return list(values)
    shared = torch.tensor(list(values), dtype=torch.float64, device=device)
    distributed.all_reduce(shared)
    return (shared / world_size()).tolist()


def gather(value: T) -> list[T]:
    """Return every process's value, by rank; of tensors on the CPU, numbers and lists of them."""
    if world_size() == 1:
        return [value]
    values: list[T | None] = [None] * world_size()
    distributed.all_gather_object(values, value)
    return [v for v in values if v is not None]


def any_rank(flag: bool) -> bool:
    """Tell every process whether the flag is up on any."""
    if world_size() == 1:
        return flag
    return bool(_largest([float(flag)])[0])


def agree(value: object) -> bool:
    """Tell whether every process has the same value, by its repr."""
    if world_size() == 1:
        return True
    number = float(int(hashlib.sha256(repr(value).encode()).hexdigest()[:12], 16))  # 48 bits: exact
    largest, smallest = _largest([number, -number])
    return largest == -smallest


def _largest(values: list[float]) -> list[float]:
    """Return the largest of each value over all processes."""
    shared = torch.tensor(values, dtype=torch.float64)
    if distributed.get_backend() == "nccl":
        shared = shared.cuda()
    distributed.all_reduce(shared, distributed.ReduceOp.MAX)
    return shared.tolist()


@contextlib.contextmanager
def alone() -> Iterator[None]:
    """Make this process act as the only one for a while; every process may work on its own."""
    global _alone
    _alone = True
    try:
        yield
    finally:
        _alone = False


def _together() -> bool:
    return distributed.is_initialized() and not _alone
