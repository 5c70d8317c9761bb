"""Whether the numbers in a weights file can be used."""

from collections.abc import Mapping

import torch
from torch import Tensor

from . import refusals

DTYPES = {torch.float16: "F16", torch.bfloat16: "BF16", torch.float32: "F32", torch.float64: "F64"}


def wrong_dtypes(tensors: Mapping[str, Tensor]) -> list[str]:
    """Return what is stored as something other than a plain floating-point number."""
    return [f"{k} as {t.dtype}" for k, t in tensors.items() if t.dtype not in DTYPES]


def check_finite(tensors: Mapping[str, Tensor]) -> None:
    """Raise CheckpointError where a value is NaN or infinite."""
    # a sum in float32 is finite unless an element is not, and takes one pass without a copy
    broken = [
        k
        for k, t in tensors.items()
        if not torch.isfinite(t.sum(dtype=torch.float32)) and not torch.isfinite(t).all()
    ]
    refusals.refuse(("has NaN or infinite values in", broken, "download it again"))
