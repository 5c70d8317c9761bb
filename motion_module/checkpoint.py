"""Reads, recognises, validates and writes motion module files in both released layouts.

Formats: the original/"comfyui" keys (v2, v3, Lightning, AnimateLCM) and diffusers' MotionAdapter
keys, in .safetensors or as a pickle of tensors (.ckpt, .pth, .pt, .bin).
"""

import os
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import ModuleType

import safetensors.torch
import torch
from torch import Tensor, nn

from . import beside, files, infer, keys, recognise, refusals
from .config import MotionModuleConfig
from .files import CheckpointError, atomic_path
from .module import MotionModule

_RELEASED_STEPS = re.compile(r"lightning[_-](\d+)[_-]?step", re.IGNORECASE)


@dataclass(frozen=True)
class MotionCheckpoint:
    """A validated motion module file.

    state_dict: keyed like MotionModule; steps: 0 where neither metadata nor name tell;
    layout: as in the file; dtype: of most tensors; metadata: the file's own.
    """

    path: Path
    config: MotionModuleConfig
    state_dict: dict[str, Tensor] = field(repr=False)
    family: str
    steps: int
    layout: keys.Layout
    dtype: torch.dtype
    metadata: dict[str, str]

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
        channels = sorted(set(self.config.addresses().values()))
        with torch.device("meta"):
            parameters = sum(p.numel() for p in MotionModule(self.config).parameters())
        return {
            "file": str(self.path),
            "family": self.family,
            "steps": str(self.steps) if self.steps else "unknown",
            "layout": self.layout,
            "dtype": refusals.DTYPES[self.dtype],
            "motion modules": str(len(self.config.addresses())),
            "channels": ", ".join(map(str, channels)),
            "mid block": "yes" if self.config.mid_block else "no",
            "positions": f"{self.config.max_frames} frames",
            "heads": str(self.config.num_heads),
            "norm": f"{self.config.norm_groups} groups over each {self.config.norm_scope}",
            "parameters": f"{parameters:,}",
            "metadata": ", ".join(f"{k}={v}" for k, v in sorted(self.metadata.items())) or "none",
        }


def load(path: str | os.PathLike) -> MotionCheckpoint:
    """Read and validate a motion module file.

    Raises CheckpointError, with one sentence, for a file that is missing, damaged, of another kind,
    of an unsupported family (v1, SDXL, HotShot-XL), incomplete, wrongly shaped, or not finite.
    """
    path = Path(path)
    try:
        tensors, metadata = files.read(path)
        tensors = keys.without_prefix(tensors)
        refusal = recognise.refuse_other(tensors, "motion module", path)
        if refusal:
            raise CheckpointError(refusal)
        layout = keys.layout_of(tensors)
        if layout is None:
            raise CheckpointError(
                "has its motion modules at unknown places; use a file in one of the released "
                "layouts"
            )
        if layout == "diffusers":
            tensors = keys.from_diffusers(tensors)
        metadata = beside.complete(path, metadata, tensors)
        config = infer.config(tensors, metadata)
        has_positions = any(k.endswith(".pos_encoder.pe") for k in tensors)
        if not has_positions:
            tensors |= infer.computed_positions(config)
        _validate(tensors, config)
        dtype = Counter(t.dtype for t in tensors.values()).most_common(1)[0][0]
        steps = _steps(path, metadata)
    except CheckpointError as error:
        raise refusals.named(path, error) from error
    return MotionCheckpoint(
        path=path,
        config=config,
        state_dict=tensors,
        layout=layout,
        dtype=dtype,
        steps=steps,
        family=metadata.get("family") or recognise.family(config, has_positions, steps),
        metadata=metadata,
    )


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
    missing = [k for k in expected if k not in tensors]
    unknown = [k for k in tensors if k not in expected]
    refusals.refuse(
        ("lacks", missing, "the file is incomplete, download it again"),
        ("has unknown", unknown, "use a file in one of the released layouts"),
        ("has", wrong_shape, "the file is damaged or of another model, download it again"),
        ("has", refusals.wrong_dtypes(tensors), "save its weights as float16, bfloat16 or float32"),
    )
    refusals.check_finite(tensors)


def _steps(path: Path, metadata: Mapping[str, str]) -> int:
    if "steps" in metadata:
        if not metadata["steps"].isdecimal():
            raise CheckpointError(
                f"has steps={metadata['steps']!r} in its metadata, which is not a whole number; "
                "save the file again"
            )
        return int(metadata["steps"])
    # what a library named after nothing lies in a folder with a name
    name = path.absolute().parent.name if beside.has_generic_name(path) else path.name
    released = _RELEASED_STEPS.search(name)
    return int(released.group(1)) if released else 0
