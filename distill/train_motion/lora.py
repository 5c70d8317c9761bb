"""Trainable motion LoRAs: hooks beside the frozen projections of every temporal attention.

AnimateDiff (arXiv 2307.04725) section 4.3. Weights are keyed like the released camera LoRAs, so
that motion_module/lora.py reads what is trained here.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import safetensors.torch
import torch
from torch import Tensor, nn
from torch.nn import functional

from ...motion_module.files import atomic_path
from ...motion_module.module import MotionModule
from ...motion_module.temporal import TemporalAttention

_LAYERS = {"to_q": "to_q", "to_k": "to_k", "to_v": "to_v", "to_out": "to_out.0"}


@dataclass
class AttachedLora:
    """A motion LoRA at work in a module; `weights` are its halves by released key."""

    weights: dict[str, nn.Parameter]
    _hooks: list

    def detach(self) -> None:
        """Leave the module as it was, bit for bit; a second call does nothing."""
        for hook in self._hooks:
            hook.remove()
        self._hooks = []


def attach(
    module: MotionModule, rank: int, generator: torch.Generator, alpha: float
) -> AttachedLora:
    """Add a fresh motion LoRA to q, k, v and out of every attention; `up` is zero, so nothing
    changes yet.

    What it adds is scaled by alpha / rank. Raises ValueError where the rank is none for these
    channels.
    """
    narrowest = min(module.config.addresses().values())
    if not 1 <= rank <= narrowest:
        raise ValueError(
            f"--lora {rank} is not a possible rank for this motion module; use 1 to {narrowest}, "
            "such as 8."
        )
    device = next(module.parameters()).device
    weights: dict[str, nn.Parameter] = {}
    hooks = []
    for key, layer in _projections(module).items():
        down = torch.randn(rank, layer.in_features, generator=generator) / rank
        halves = {"down": down, "up": torch.zeros(layer.out_features, rank)}
        pair = {half: nn.Parameter(w.to(device)) for half, w in halves.items()}
        weights |= {f"{key}.{half}.weight": w for half, w in pair.items()}
        hooks.append(layer.register_forward_hook(_adding(**pair, scale=alpha / rank)))
    return AttachedLora(weights, hooks)


def save_lora(
    weights: Mapping[str, Tensor], path: Path, dtype: torch.dtype, metadata: Mapping[str, object]
) -> None:
    """Write the halves of a motion LoRA as .safetensors, atomically."""
    tensors = {k: w.detach().to("cpu", dtype).contiguous() for k, w in weights.items()}
    texts = {k: str(v) for k, v in metadata.items()}
    with atomic_path(path) as temporary:
        safetensors.torch.save_file(tensors, temporary, metadata=texts)


def _projections(module: MotionModule) -> dict[str, nn.Linear]:
    """Return the layers that a motion LoRA changes, by the released key without its half."""
    projections: dict[str, nn.Linear] = {}
    for address, transformer in module.temporal_transformers().items():
        for place, attention in transformer.named_modules():
            if not isinstance(attention, TemporalAttention):
                continue
            for name, address_of_layer in _LAYERS.items():
                layer = attention.get_submodule(address_of_layer)
                assert isinstance(layer, nn.Linear), "the trainer builds with torch's own layers"
                key = f"{address}.temporal_transformer.{place}.processor.{name}_lora"
                projections[key] = layer
    return projections


def _adding(down: Tensor, up: Tensor, scale: float):
    def add(_layer: nn.Module, inputs: tuple[Tensor], output: Tensor) -> Tensor:
        return output + scale * functional.linear(functional.linear(inputs[0], down), up)

    return add
