"""The peak memory of training: of the GPU, or of this process on the CPU."""

import sys

import torch

_GIB = 2**30


def reset_peak(device: torch.device) -> None:
    """Begin to measure anew; the peak of a process on the CPU only ever grows."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)


def peak_gib(device: torch.device) -> float:
    """Return the peak in GiB, on a GPU since the last reset; 0 on Windows' CPU, which hides it."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / _GIB
    if sys.platform == "win32":
        return 0.0
    import resource

    unit = 1 if sys.platform == "darwin" else 1024  # bytes there, KiB elsewhere
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / _GIB
