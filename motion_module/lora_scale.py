"""How strong a LoRA is by itself: alpha / rank, as its tensors or its trainer's notes say.

LoRA (arXiv 2106.09685) section 4.1; rsLoRA (arXiv 2312.03732): alpha / sqrt(rank). A file that
says nothing is as strong as its halves, as AnimateDiff's own motion LoRAs are.
"""

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import Tensor

from .content import CheckpointError

METADATA_KEY = "lora_adapter_metadata"  # diffusers' name for PEFT's config in a file's header
_PACKED_PREFIX = "unet."  # diffusers puts the name of the model before each field
_PLAIN_NAME = re.compile(r"[\w.]+")


@dataclass(frozen=True)
class AdapterConfig:
    """What PEFT's config says of the strength; `alpha` None: it says nothing.

    alpha_pattern: alphas of layers whose names end in its keys.
    """

    alpha: float | None = None
    alpha_pattern: Mapping[str, float] = field(default_factory=dict)
    use_rslora: bool = False

    def scale(self, layer: str, rank: int) -> float:
        """Return how a layer's up @ down is scaled."""
        alpha = next(
            (
                alpha
                for name, alpha in self.alpha_pattern.items()
                if layer == name or layer.endswith(f".{name}")
            ),
            self.alpha,
        )
        if alpha is None:
            return 1.0
        return alpha / (math.sqrt(rank) if self.use_rslora else rank)


def metadata_of(rank: int, alpha: float) -> dict[str, str]:
    """Return the metadata that tells rank and alpha of a LoRA in AnimateDiff's own key names."""
    fields = {f"{_PACKED_PREFIX}r": rank, f"{_PACKED_PREFIX}lora_alpha": alpha}
    return {METADATA_KEY: json.dumps(fields)}


def read_adapter_config(metadata: Mapping[str, str], beside: Mapping[str, object]) -> AdapterConfig:
    """Return what the file's header says, else the config beside it.

    Raises CheckpointError for a header or config that says what cannot be.
    """
    fields: Mapping[str, object] = beside
    if METADATA_KEY in metadata:
        fields = _unpacked(metadata[METADATA_KEY])
    if fields.get("use_dora"):
        raise CheckpointError("is a DoRA, which is not supported; use a plain LoRA")
    patterns = fields.get("alpha_pattern") or {}
    if not isinstance(patterns, Mapping):
        raise _unusable("alpha_pattern", patterns)
    for name in patterns:
        if not _PLAIN_NAME.fullmatch(name):
            raise _unusable("alpha_pattern", name)
    alpha = fields.get("lora_alpha")
    return AdapterConfig(
        None if alpha is None else _number("lora_alpha", alpha),
        {name: _number("alpha_pattern", value) for name, value in patterns.items()},
        bool(fields.get("use_rslora")),
    )


def read_alpha(key: str, tensor: Tensor) -> float:
    """Return the number in an alpha tensor; raises CheckpointError where it holds none."""
    if tensor.numel() != 1:
        raise CheckpointError(f"has {key} of shape {tuple(tensor.shape)}; download it again")
    return _number(key, tensor.item())


def _unpacked(text: str) -> dict[str, object]:
    try:
        fields = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise _unusable(METADATA_KEY, text[:40]) from error
    if not isinstance(fields, dict):
        raise _unusable(METADATA_KEY, text[:40])
    return {name.removeprefix(_PACKED_PREFIX): value for name, value in fields.items()}


def _number(name: str, value: object) -> float:
    try:
        number = float(value) if isinstance(value, int | float) else math.nan
    except OverflowError:
        number = math.nan
    if isinstance(value, bool) or not math.isfinite(number):
        raise _unusable(name, value)
    return number


def _unusable(name: str, value: object) -> CheckpointError:
    return CheckpointError(
        f"says {name} = {repr(value)[:60]}, from which its strength cannot be read; save the LoRA "
        "again"
    )
