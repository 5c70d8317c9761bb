"""How a weights file that cannot be used is refused: in one sentence, after the file's name."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from .files import CheckpointError

DTYPES = {torch.float16: "F16", torch.bfloat16: "BF16", torch.float32: "F32", torch.float64: "F64"}


def named(path: Path, error: ValueError) -> CheckpointError:
    """Return the error as a sentence that begins with the name of the file."""
    text = " ".join(str(error).split())
    return CheckpointError(f"{path.name} {text}{'' if text.endswith('.') else '.'}")


def refuse(*problems: tuple[str, Sequence[str], str]) -> None:
    """Raise CheckpointError for the first (verb, findings, advice) that has findings."""
    for verb, findings, advice in problems:
        if findings:
            raise CheckpointError(f"{verb} {_first(findings)}; {advice}")


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
    refuse(("has NaN or infinite values in", broken, "download it again"))


def _first(names: Sequence[str], count: int = 3) -> str:
    more = f" and {len(names) - count} more" if len(names) > count else ""
    return ", ".join(names[:count]) + more
