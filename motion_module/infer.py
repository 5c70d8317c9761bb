"""Infers a motion module's config from its tensors, and from metadata what no tensor tells."""

import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Protocol

from .config import MotionModuleConfig
from .content import CheckpointError


class Shaped(Protocol):
    """A tensor, or what a header tells of one."""

    @property
    def shape(self) -> Any: ...

    @property
    def ndim(self) -> int: ...

    def numel(self) -> int: ...


MAX_FRAMES = "max_frames"  # in metadata, of a file without a table of positions
POSITIONS_WHERE_FILE_HAS_NONE = 64  # AnimateLCM's own code
# more than any motion module has, and few enough to build what a small file claims
_MOST_POSITIONS, _MOST_BLOCKS, _MOST_IN_BLOCK = 1024, 16, 16
_MOST_DIGITS = 9
_ADDRESS = re.compile(r"^((?:down_blocks|up_blocks)\.(\d+)|mid_block)\.motion_modules\.(\d+)\.")


def config(tensors: Mapping[str, Shaped], metadata: Mapping[str, str]) -> MotionModuleConfig:
    """Return the config of tensors in the comfyui layout.

    Channels, blocks, mid block and positions come from the tensors; heads, norm groups and norm
    scope from the metadata, else AnimateDiff's 8, 32 and "frame". Raises CheckpointError.
    """
    try:
        return replace(_infer_config(tensors, metadata), **_config_from_metadata(metadata))
    except CheckpointError:
        raise
    except ValueError as error:
        raise CheckpointError(f"cannot be built from its tensors and metadata: {error}") from error


def _infer_config(tensors: Mapping[str, Shaped], metadata: Mapping[str, str]) -> MotionModuleConfig:
    channels: dict[str, dict[int, int]] = {}
    for key, tensor in tensors.items():
        match = _ADDRESS.match(key)
        if match and key.endswith(".temporal_transformer.norm.weight"):
            channels.setdefault(match.group(1), {})[int(match.group(3))] = tensor.numel()
        elif match:
            channels.setdefault(match.group(1), {}).setdefault(int(match.group(3)), 0)
    sides: dict[str, list] = {"down_blocks": [], "up_blocks": []}
    if (
        len(channels) > 2 * _MOST_BLOCKS + 1
        or max(map(len, channels.values()), default=0) > _MOST_IN_BLOCK
    ):
        raise CheckpointError(
            f"has more than {_MOST_BLOCKS} blocks a side, or more than {_MOST_IN_BLOCK} motion "
            "modules in one; use a file in one of the released layouts"
        )
    for side, blocks in sides.items():
        count = 1 + max((int(b.split(".")[1]) for b in channels if b.startswith(side)), default=-1)
        blocks += [_block_channels(f"{side}.{i}", channels) for i in range(count)]
    down, up = len(sides["down_blocks"]), len(sides["up_blocks"])
    if down != up:
        raise CheckpointError(
            f"has {down} down blocks but {up} up blocks; the file is incomplete, download it again"
        )
    middle = _block_channels("mid_block", channels) if "mid_block" in channels else ()
    tables = (
        t.shape[1] for k, t in tensors.items() if k.endswith("pos_encoder.pe") and t.ndim == 3
    )
    return MotionModuleConfig(
        down_blocks=tuple(sides["down_blocks"]),
        mid_block=middle,
        up_blocks=tuple(sides["up_blocks"]),
        max_frames=next(tables, None) or _positions_from_metadata(metadata),
        num_heads=1,  # heads and groups are no matter of tensors: metadata or defaults follow
        norm_groups=1,
    )


def _block_channels(block: str, channels: dict[str, dict[int, int]]) -> tuple[int, ...]:
    channels_by_index = channels.get(block, {})
    for j in range(1 + max(channels_by_index, default=0)):
        if not channels_by_index.get(j):
            key = f"{block}.motion_modules.{j}.temporal_transformer.norm.weight"
            raise CheckpointError(f"lacks {key}; the file is incomplete, download it again")
    return tuple(channels_by_index[j] for j in sorted(channels_by_index))


def _positions_from_metadata(metadata: Mapping[str, str]) -> int:
    positions = whole_number(metadata, MAX_FRAMES, POSITIONS_WHERE_FILE_HAS_NONE)
    if positions > _MOST_POSITIONS:
        raise CheckpointError(
            f"is said to have positions for {positions} frames; a motion module has at most "
            f"{_MOST_POSITIONS}, so correct the config beside it"
        )
    return positions


def _config_from_metadata(metadata: Mapping[str, str]) -> dict[str, Any]:
    default = MotionModuleConfig()
    options: dict[str, Any] = {"norm_scope": metadata.get("norm_scope", default.norm_scope)}
    for name in ("num_heads", "norm_groups"):
        options[name] = whole_number(metadata, name, getattr(default, name))
    return options


def whole_number(metadata: Mapping[str, str], name: str, default: int) -> int:
    """Return a number of the metadata; raises CheckpointError where it is no whole one."""
    text = metadata.get(name, str(default))
    if not text.isdecimal() or len(text) > _MOST_DIGITS:
        raise CheckpointError(
            f"has {name}={text[:40]!r} in its metadata, which is not a whole number; save the file "
            "again"
        )
    return int(text)
