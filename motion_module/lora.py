"""Motion LoRAs: low-rank changes of a motion module, W + strength * scale * up @ down.

AnimateDiff (arXiv 2307.04725) section 4.3, MotionLoRA; scale is alpha / rank, see lora_scale.py.
"""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from . import beside, files, lora_keys, lora_scale, recognise, refusals, values
from .config import MotionModuleConfig
from .content import CheckpointError
from .module import MotionModule


class LowRank(NamedTuple):
    """What a LoRA adds to a weight: scale * up @ down, of (out, rank) and (rank, in)."""

    up: Tensor
    down: Tensor
    scale: float = 1.0


@dataclass(frozen=True)
class MotionLora:
    """A validated motion LoRA file.

    pairs: what changes each weight, keyed like MotionModule; for_image_model: how many layers of
    the image model or its text encoder the file changes, too, which are not used here.
    """

    path: Path
    pairs: dict[str, LowRank] = field(repr=False)
    for_image_model: int = 0

    def beyond(self, config: MotionModuleConfig) -> list[str]:
        """Return the weights that only a motion module with a mid block has, if this one lacks it.

        v2 has a mid block and v3 does not; the rest of a LoRA for v2 works on v3.
        """
        return [k for k in self.pairs if k.startswith("mid_block.") and not config.mid_block]


def load(path: str | os.PathLike) -> MotionLora:
    """Read and validate a motion LoRA file.

    Raises CheckpointError, with one sentence, for a file that is missing, damaged, of another kind,
    incomplete, of inconsistent rank, or not finite.
    """
    path = Path(path)
    with refusals.naming(path):
        tensors, metadata = files.read(path, "motion LoRA")
        refusal = recognise.refuse_other(tensors, "motion LoRA", path)
        if refusal:
            raise CheckpointError(refusal)
        layers = _sort_into_layers(tensors)
        config = lora_scale.read_adapter_config(metadata, beside.read_adapter_config(path))
        pairs = {weight: layer.low_rank(config) for weight, layer in layers.motion.items()}
        _validate(pairs)
        values.check_finite(tensors)
    return MotionLora(path, pairs, len(layers.image))


def weight_patches(lora: MotionLora, config: MotionModuleConfig) -> dict[str, LowRank]:
    """Return what changes a motion module of `config`, by the weight's key.

    Pairs of a mid block that the module lacks are left out. Raises CheckpointError where the LoRA
    is for a module of another shape.
    """
    with torch.device("meta"):
        weights = {k: tuple(p.shape) for k, p in MotionModule(config).named_parameters()}
    weights = {k: shape for k, shape in weights.items() if len(shape) == 2}
    beyond = set(lora.beyond(config))
    pairs = {k: pair for k, pair in lora.pairs.items() if k not in beyond}
    unknown = [k for k in pairs if k not in weights]
    wrong_shape = [
        f"{k} of {up.shape[0]} x {down.shape[1]} instead of {weights[k][0]} x {weights[k][1]}"
        for k, (up, down, _) in pairs.items()
        if k in weights and (up.shape[0], down.shape[1]) != weights[k]
    ]
    advice = "use a motion LoRA made for this kind of motion module"
    with refusals.naming(lora.path):
        refusals.refuse(
            ("is for another motion module: it changes", wrong_shape, advice),
            ("is for another motion module: this one lacks", unknown, advice),
        )
    return pairs


@dataclass
class Merged:
    """Handle on the motion LoRAs in a module's weights; keeps the weights as they were."""

    module: MotionModule
    _originals: dict[str, Tensor]
    _merged: dict[str, Tensor]

    def unmerge(self) -> None:
        """Put the original weights back, bit for bit; a second call does nothing.

        Raises ValueError, and changes nothing, where the weights are no longer the merged ones.
        """
        for key, merged in self._merged.items():
            if self.module.get_parameter(key).data_ptr() != merged.data_ptr():
                raise ValueError(
                    f"{key} was changed or moved after this merge; undo the later changes first."
                )
        for key, original in self._originals.items():
            self.module.get_parameter(key).data = original
        self._originals, self._merged = {}, {}


def merge(module: MotionModule, loras: Sequence[tuple[MotionLora, float]]) -> Merged:
    """Add strength * scale * up @ down of every (lora, strength) to the weights in place.

    Summed in float32 and rounded to the weights' own dtype once, as ComfyUI does. Raises
    CheckpointError where a LoRA does not fit the module, before any weight changes.
    """
    changes: dict[str, list[tuple[LowRank, float]]] = {}
    for lora, strength in loras:
        for key, pair in weight_patches(lora, module.config).items():
            changes.setdefault(key, []).append((pair, strength))
    originals = {key: module.get_parameter(key).data for key in changes}
    merged = {key: _add_terms(originals[key], terms) for key, terms in changes.items()}
    for key, weight in merged.items():
        module.get_parameter(key).data = weight
    return Merged(module, originals, merged)


def _add_terms(weight: Tensor, terms: Sequence[tuple[LowRank, float]]) -> Tensor:
    total = weight.to(torch.promote_types(weight.dtype, torch.float32), copy=True)
    for (up, down, scale), strength in terms:
        total += strength * scale * (up.to(total) @ down.to(total))
    return total.to(weight.dtype)


@dataclass
class _Layer:
    """The tensors of a LoRA for one weight, as they come in a file."""

    name: str  # as the trainer calls it
    tensors: dict[lora_keys.Role, Tensor] = field(default_factory=dict)
    alpha: float | None = None

    def low_rank(self, config: lora_scale.AdapterConfig) -> LowRank:
        up, down = self.tensors["up"], self.tensors["down"]
        rank = max(1, len(down)) if down.ndim else 1
        scale = config.scale(self.name, rank) if self.alpha is None else self.alpha / rank
        return LowRank(up, down, scale)


@dataclass
class _Layers:
    """Layers of a motion module by the key of their weight, and names of an image model's."""

    motion: dict[str, _Layer] = field(default_factory=dict)
    image: set[str] = field(default_factory=set)


def _sort_into_layers(tensors: Mapping[str, Tensor]) -> _Layers:
    layers = _Layers()
    unknown, duplicates = [], []
    for key, tensor in tensors.items():
        part = lora_keys.parse(key)
        method = lora_keys.other_method(key)
        if method is not None:
            raise CheckpointError(
                f"has {key}, so it changes weights by {method}, which is not supported; use a "
                "plain LoRA"
            )
        if part is None:
            unknown.append(key)
        elif part.weight is None:
            layers.image.add(part.layer)
        else:
            layer = layers.motion.setdefault(part.weight, _Layer(part.layer))
            if part.role in layer.tensors:
                duplicates.append(key)
            layer.tensors[part.role] = tensor
            if part.role == "alpha":
                layer.alpha = lora_scale.read_alpha(key, tensor)
    missing = [
        f"the {half} half of {weight}"
        for weight, layer in layers.motion.items()
        for half in ("up", "down")
        if half not in layer.tensors
    ]
    refusals.refuse(
        ("has unknown", unknown, "use a motion LoRA with the key names of a known trainer"),
        ("changes a weight twice, the second time by", duplicates, "download it again"),
        ("lacks", missing, "the file is incomplete, download it again"),
    )
    return layers


def _validate(pairs: Mapping[str, LowRank]) -> None:
    halves = {f"{k} (up)": pair.up for k, pair in pairs.items()}
    halves |= {f"{k} (down)": pair.down for k, pair in pairs.items()}
    not_matrices = [f"{k} of shape {tuple(t.shape)}" for k, t in halves.items() if t.ndim != 2]
    ranks = [
        f"{k} of rank {up.shape[1]} up but {down.shape[0]} down"
        for k, (up, down, _) in pairs.items()
        if up.ndim == down.ndim == 2 and (up.shape[1] != down.shape[0] or not len(down))
    ]
    refusals.refuse(
        ("has", not_matrices, "use a motion LoRA whose halves are matrices"),
        ("has", ranks, "the file is damaged, download it again"),
        ("has", values.wrong_dtypes(halves), "save it as float16, bfloat16 or float32"),
    )
