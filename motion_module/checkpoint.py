"""Reads, recognises, validates and writes motion module files in both released layouts.

Formats: the original/"comfyui" keys (v2, v3, Lightning, AnimateLCM) and diffusers' MotionAdapter
keys, in .safetensors or as a pickle of tensors (.ckpt, .pth, .pt, .bin).
"""

import os
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import ModuleType

import safetensors.torch
import torch
from torch import Tensor, nn

from . import facts, files, keys, refusals, values
from .config import MotionModuleConfig
from .facts import Facts
from .files import atomic_path
from .module import MotionModule
from .temporal import sinusoidal_positions


@dataclass(frozen=True)
class MotionCheckpoint(Facts):
    """A validated motion module file.

    state_dict: keyed like MotionModule; dtype: of most tensors.
    """

    state_dict: dict[str, Tensor] = field(repr=False)
    dtype: torch.dtype

    def build(self, layers: ModuleType = nn, dtype: torch.dtype | None = None) -> MotionModule:
        """Return the module with these weights, in `dtype` or the file's own."""
        with torch.device("meta"):
            module = MotionModule(self.config, layers)
        # on the meta device nothing is allocated twice: the file's tensors become the weights
        dtype = dtype or self.dtype
        weights = {k: t.to(dtype, copy=True) for k, t in self.state_dict.items()}
        module.load_state_dict(weights, assign=True)
        return module.eval().requires_grad_(False)

    def without_tensors(self) -> "MotionCheckpoint":
        """Return the checkpoint without its weights."""
        return replace(self, state_dict={})

    def describe(self) -> dict[str, str]:
        """Return the file's properties as label -> text, for a table."""
        with torch.device("meta"):
            parameters = sum(p.numel() for p in MotionModule(self.config).parameters())
        return self.as_table(values.DTYPES[self.dtype], parameters)


def load(path: str | os.PathLike) -> MotionCheckpoint:
    """Read and validate a motion module file.

    Raises CheckpointError, with one sentence, for a file that is missing, damaged, of another kind,
    of an unsupported family (v1, SDXL, HotShot-XL), incomplete, wrongly shaped, or not finite.
    """
    path = Path(path)
    with refusals.naming(path):
        found, metadata = files.read(path)
        told, tensors = facts.gather(path, found, metadata)
        _validate(tensors, told.config)
        if not facts.has_positions(tensors):
            tensors |= _computed_positions(told.config)
    ((dtype, _),) = Counter(t.dtype for t in tensors.values()).most_common(1)
    return MotionCheckpoint(**vars(told), state_dict=tensors, dtype=dtype)


def save(
    module: MotionModule,
    path: str | os.PathLike,
    layout: keys.Layout = "comfyui",
    metadata: Mapping[str, object] | None = None,
) -> Path:
    """Write a motion module as .safetensors in a released layout and its own dtype, atomically.

    `metadata` is stored as text (steps, family, anything); heads, norm groups and norm scope are
    added where they are not AnimateDiff's defaults, since no tensor tells them. A v2 module in F16
    without metadata has 588 tensors and 908,929,664 bytes, as the released ones.
    """
    path = Path(path)
    if path.suffix not in (".safetensors", ".sft"):
        raise ValueError(f"{path.name}: motion modules are written only as .safetensors.")
    if layout not in ("comfyui", "diffusers"):
        raise ValueError(f'layout must be "comfyui" or "diffusers", not {layout!r}.')
    tensors = {k: t.detach().contiguous().cpu() for k, t in module.state_dict().items()}
    if layout == "diffusers":
        tensors = keys.to_diffusers(tensors)
    texts = {k: str(v) for k, v in (metadata or {}).items()}
    default = MotionModuleConfig()
    for name in ("num_heads", "norm_groups", "norm_scope"):
        value = getattr(module.config, name)
        if value != getattr(default, name) or metadata:
            texts[name] = str(value)
    with atomic_path(path) as temporary:
        safetensors.torch.save_file(tensors, temporary, metadata=texts or None)
    return path


def _validate(tensors: Mapping[str, Tensor], config: MotionModuleConfig) -> None:
    with torch.device("meta"):
        expected = {k: tuple(t.shape) for k, t in MotionModule(config).state_dict().items()}
    wrong_shape = [
        f"{k} of shape {tuple(t.shape)} instead of {expected[k]}"
        for k, t in tensors.items()
        if k in expected and tuple(t.shape) != expected[k]
    ]
    computed = set() if facts.has_positions(tensors) else {k for k in expected if k.endswith(".pe")}
    missing = [k for k in expected if k not in tensors and k not in computed]
    unknown = [k for k in tensors if k not in expected]
    refusals.refuse(
        ("lacks", missing, "the file is incomplete, download it again"),
        ("has unknown", unknown, "use a file in one of the released layouts"),
        ("has", wrong_shape, "the file is damaged or of another model, download it again"),
        ("has", values.wrong_dtypes(tensors), "save its weights as float16, bfloat16 or float32"),
    )
    values.check_finite(tensors)


def _computed_positions(config: MotionModuleConfig) -> dict[str, Tensor]:
    """Return the position tables that AnimateLCM's files leave out."""
    block = "temporal_transformer.transformer_blocks.0.attention_blocks"
    return {
        f"{address}.{block}.{i}.pos_encoder.pe": sinusoidal_positions(config.max_frames, channels)
        for address, channels in config.addresses().items()
        for i in (0, 1)
    }
