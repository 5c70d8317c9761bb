"""Motion LoRAs: low-rank changes of a motion module, W + strength * up @ down, without an alpha.

AnimateDiff (arXiv 2307.04725) section 4.3, MotionLoRA. Key styles: the original files'
(`processor.to_q_lora.down`), and diffusers' old and new ones (`unet.` in front; `lora_A`).
"""

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from . import files, keys, recognise, refusals
from .config import MotionModuleConfig
from .files import CheckpointError
from .module import MotionModule

Pair = tuple[Tensor, Tensor]  # up (out, rank), down (rank, in)
_HALF = re.compile(r"^(?:unet\.)?(.+?)(?:_lora\.|\.lora\.|\.lora_)(down|up|A|B)\.weight$")
_NAMES = {"A": "down", "B": "up"}


@dataclass(frozen=True)
class MotionLora:
    """A validated motion LoRA file: the (up, down) pair of each weight, keyed like MotionModule."""

    path: Path
    pairs: dict[str, Pair] = field(repr=False)

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
    try:
        tensors, _ = files.read(path, "motion LoRA")
        refusal = recognise.refuse_as_lora(tensors)
        if refusal:
            raise CheckpointError(refusal)
        pairs = _pair_halves(tensors)
        _validate(pairs)
        refusals.check_finite(tensors)
    except CheckpointError as error:
        raise refusals.named(path, error) from error
    return MotionLora(path, pairs)


def weight_patches(lora: MotionLora, config: MotionModuleConfig) -> dict[str, Pair]:
    """Return the (up, down) pairs that change a motion module of `config`, by the weight's key.

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
        for k, (up, down) in pairs.items()
        if k in weights and (up.shape[0], down.shape[1]) != weights[k]
    ]
    advice = "use a motion LoRA made for this kind of motion module"
    try:
        refusals.refuse(
            ("is for another motion module: it changes", wrong_shape, advice),
            ("is for another motion module: this one lacks", unknown, advice),
        )
    except CheckpointError as error:
        raise refusals.named(lora.path, error) from error
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
    """Add strength * up @ down of every (lora, strength) to the weights in place.

    Summed in float32 and rounded to the weights' own dtype once, as ComfyUI does. Raises
    CheckpointError where a LoRA does not fit the module, before any weight changes.
    """
    changes: dict[str, list[tuple[Pair, float]]] = {}
    for lora, strength in loras:
        for key, pair in weight_patches(lora, module.config).items():
            changes.setdefault(key, []).append((pair, strength))
    originals = {key: module.get_parameter(key).data for key in changes}
    merged = {key: _add_terms(originals[key], terms) for key, terms in changes.items()}
    for key, weight in merged.items():
        module.get_parameter(key).data = weight
    return Merged(module, originals, merged)


def _add_terms(weight: Tensor, terms: Sequence[tuple[Pair, float]]) -> Tensor:
    total = weight.to(torch.promote_types(weight.dtype, torch.float32), copy=True)
    for (up, down), strength in terms:
        total += strength * (up.to(total) @ down.to(total))
    return total.to(weight.dtype)


def _pair_halves(tensors: Mapping[str, Tensor]) -> dict[str, Pair]:
    halves: dict[str, dict[str, Tensor]] = {"up": {}, "down": {}}
    unknown, duplicates = [], []
    for key, tensor in tensors.items():
        match = _HALF.match(key)
        if match is None or "motion_modules." not in key:
            unknown.append(key)
            continue
        half = halves[_NAMES.get(match.group(2), match.group(2))]
        target = _weight_key(match.group(1))
        if target in half:
            duplicates.append(key)
        half[target] = tensor
    up, down = halves["up"], halves["down"]
    missing = [f"the up half of {k}" for k in down if k not in up]
    missing += [f"the down half of {k}" for k in up if k not in down]
    refusals.refuse(
        ("has unknown", unknown, "use a motion LoRA with AnimateDiff's or diffusers' key names"),
        ("changes a weight twice, the second time by", duplicates, "download it again"),
        ("lacks", missing, "the file is incomplete, download it again"),
    )
    return {k: (up[k], down[k]) for k in down}


def _weight_key(layer: str) -> str:
    """Return the motion module's key of the weight that a layer of the LoRA changes."""
    key = layer.replace(".processor.", ".") + (".0" if layer.endswith(".to_out") else "")
    key += ".weight"
    return key if ".temporal_transformer." in key else keys.from_diffusers_key(key)


def _validate(pairs: Mapping[str, Pair]) -> None:
    halves = {f"{k} (up)": up for k, (up, _) in pairs.items()}
    halves |= {f"{k} (down)": down for k, (_, down) in pairs.items()}
    not_matrices = [f"{k} of shape {tuple(t.shape)}" for k, t in halves.items() if t.ndim != 2]
    ranks = [
        f"{k} of rank {up.shape[1]} up but {down.shape[0]} down"
        for k, (up, down) in pairs.items()
        if up.ndim == down.ndim == 2 and up.shape[1] != down.shape[0]
    ]
    refusals.refuse(
        ("has", not_matrices, "use a motion LoRA whose halves are matrices"),
        ("has", ranks, "the file is damaged, download it again"),
        ("has", refusals.wrong_dtypes(halves), "save it as float16, bfloat16 or float32"),
    )
