"""Rewrites a motion module file in another key layout, keeping every weight and what is known."""

import re
from pathlib import Path

from ...motion_module import checkpoint
from ...motion_module.keys import Layout
from .output import check_writable

_LAYOUT_IN_NAME = re.compile(r"_(comfyui|diffusers)$")


def convert_file(
    source: Path, to: Layout, target: Path | None = None, overwrite: bool = False
) -> str:
    """Write `source` as .safetensors in layout `to` and return a sentence on what was written.

    Steps and family, which a file may tell only by its name or its keys, go into the metadata.
    Raises ValueError where the file is no motion module or `target` exists.
    """
    if target is None:
        target = source.with_name(f"{_LAYOUT_IN_NAME.sub('', source.stem)}_{to}.safetensors")
    if target.exists() and not overwrite:
        raise ValueError(f"{target} exists; pass --force to overwrite it, or another --out.")
    check_writable(target)
    motion_checkpoint = checkpoint.load(source)
    metadata = {**motion_checkpoint.metadata, "family": motion_checkpoint.family}
    if motion_checkpoint.steps:
        metadata["steps"] = str(motion_checkpoint.steps)
    checkpoint.save(motion_checkpoint.build(), target, layout=to, metadata=metadata)
    size = target.stat().st_size / 1e6
    return f"wrote {target} ({motion_checkpoint.family}, {to} layout, {size:,.1f} MB)."
