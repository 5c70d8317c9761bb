"""What a motion module file tells of itself, by its tensors, its metadata, its name and its folder.

The tensors may be those of a header, which needs no torch.
"""

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from . import beside, content, infer, keys, recognise, refusals
from .config import MotionModuleConfig
from .content import CheckpointError

T = TypeVar("T", bound=infer.Shaped)
_RELEASED_STEPS = re.compile(r"lightning[_-](\d+)[_-]?step", re.IGNORECASE)


@dataclass(frozen=True)
class Facts:
    """What a motion module file is; steps: 0 where neither metadata nor name tell."""

    path: Path
    config: MotionModuleConfig
    family: str
    steps: int
    layout: keys.Layout
    metadata: dict[str, str]

    def as_table(self, dtype: str, parameters: int) -> dict[str, str]:
        """Return the file's properties as label -> text, for a table."""
        channels = sorted(set(self.config.addresses().values()))
        return {
            "file": str(self.path),
            "family": self.family,
            "steps": str(self.steps) if self.steps else "unknown",
            "layout": self.layout,
            "dtype": dtype,
            "motion modules": str(len(self.config.addresses())),
            "channels": ", ".join(map(str, channels)),
            "mid block": "yes" if self.config.mid_block else "no",
            "positions": f"{self.config.max_frames} frames",
            "heads": str(self.config.num_heads),
            "norm": f"{self.config.norm_groups} groups over each {self.config.norm_scope}",
            "parameters": f"{parameters:,}",
            "metadata": ", ".join(f"{k}={v}" for k, v in sorted(self.metadata.items())) or "none",
        }


def gather(
    path: Path, tensors: Mapping[str, T], metadata: Mapping[str, str]
) -> tuple[Facts, dict[str, T]]:
    """Return the facts of a file, and its tensors under the keys of the comfyui layout.

    Raises CheckpointError for a file of another kind, of an unsupported family, or incomplete.
    """
    tensors = keys.without_prefix(tensors)
    refusal = recognise.refuse_other(tensors, "motion module", path)
    if refusal:
        raise CheckpointError(refusal)
    layout = keys.layout_of(tensors)
    if layout is None:
        raise CheckpointError(
            "has its motion modules at unknown places; use a file in one of the released layouts"
        )
    if layout == "diffusers":
        tensors = keys.from_diffusers(tensors)
    metadata = beside.complete(path, metadata, tensors)
    config = infer.config(tensors, metadata)
    steps = _steps(path, metadata)
    family = metadata.get("family") or recognise.family(config, has_positions(tensors), steps)
    return Facts(path, config, family, steps, layout, metadata), tensors


def has_positions(keys: Mapping[str, object]) -> bool:
    """Tell whether a file has tables of positions; AnimateLCM's have not."""
    return any(key.endswith(".pos_encoder.pe") for key in keys)


def describe_header(path: Path) -> dict[str, str]:
    """Return the properties of a safetensors file as label -> text, without reading its weights.

    Raises CheckpointError for a file that is missing, cut, of another kind or family, or without
    parts of a motion module.
    """
    with refusals.naming(path):
        header, metadata = content.read_header(path)
        facts, tensors = gather(path, header, metadata)
    ((dtype, _),) = Counter(t.dtype for t in tensors.values()).most_common(1)
    parameters = sum(t.numel() for k, t in tensors.items() if not k.endswith(".pe"))
    return facts.as_table(dtype, parameters)


def _steps(path: Path, metadata: Mapping[str, str]) -> int:
    if "steps" in metadata:
        return infer.whole_number(metadata, "steps", 0)
    # what a library named after nothing lies in a folder with a name
    name = path.absolute().parent.name if beside.has_generic_name(path) else path.name
    released = _RELEASED_STEPS.search(name)
    return int(released.group(1)) if released else 0
