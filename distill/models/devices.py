"""Which device a process computes on, and how exactly."""

import contextlib
import os
from collections.abc import Iterator

import torch


def choose_device(name: str) -> torch.device:
    """Return the device of that name, for "auto" the best one here; ValueError for one not here."""
    if name == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise ValueError(f"device {name!r} is not available here; use auto or cpu.") from error
    if device.type == "meta":
        raise ValueError("device 'meta' computes nothing; use auto or cpu.")
    return device


def my_device(name: str) -> torch.device:
    """Return the device of that name; under torchrun with GPUs, this process's own."""
    device = choose_device(name)
    if device.type == "cuda":
        if device.index is None:
            device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)))
        torch.cuda.set_device(device)
    return device


def choose_dtype(name: str, device: torch.device) -> torch.dtype:
    """Return the dtype of that name, for "auto" float16 on a GPU and float32 on the CPU."""
    if name == "auto":
        return torch.float32 if device.type == "cpu" else torch.float16
    return {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}[name]


@contextlib.contextmanager
def computing_in(dtype: str) -> Iterator[None]:
    """Let a GPU shorten the products of float32 while "tf32" is asked for, and not otherwise."""
    before = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    torch.set_float32_matmul_precision("high" if dtype == "tf32" else "highest")
    torch.backends.cudnn.allow_tf32 = dtype == "tf32"
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before[0])
        torch.backends.cudnn.allow_tf32 = before[1]
