"""The two released key layouts and the way between them.

"comfyui" is the original AnimateDiff layout, which MotionModule itself uses; "diffusers" is that of
MotionAdapter: no `.temporal_transformer`, renamed attentions and norms, one position table a block.
"""

import re
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Literal, TypeVar

from .content import CheckpointError

if TYPE_CHECKING:
    from torch import Tensor

T = TypeVar("T")  # a tensor, or what a header tells of one
Layout = Literal["comfyui", "diffusers"]

_RENAMES = [  # (ours, diffusers), applied to what follows `transformer_blocks.0.`
    ("attention_blocks.0.pos_encoder.", "pos_embed."),
    ("attention_blocks.0.", "attn1."),
    ("attention_blocks.1.", "attn2."),
    ("norms.0.", "norm1."),
    ("norms.1.", "norm2."),
    ("ff_norm.", "norm3."),
]
_ADDRESS = r"(?:(?:down_blocks|up_blocks)\.\d+|mid_block)\.motion_modules\.\d+\."
_MODULE_PREFIX = re.compile(f"^{_ADDRESS}")
_TRAINERS_PREFIX = re.compile(rf"^((?:\w+\.)*?){_ADDRESS}")


def prefixes(keys: Iterable[str]) -> set[str]:
    """Return what stands before the addresses of motion modules, such as "unet."."""
    matches = (_TRAINERS_PREFIX.match(key) for key in keys)
    return {match[1] for match in matches if match}


def without_prefix(tensors: Mapping[str, T]) -> dict[str, T]:
    """Take off what trainers write before the addresses of motion modules, from every key.

    Raises CheckpointError where there are several such prefixes, and so several modules.
    """
    ours = prefixes(tensors)
    if len(ours) > 1:
        names = " and ".join(repr(prefix) for prefix in sorted(ours)[:2])
        raise CheckpointError(
            f"holds several motion modules, with keys that begin with {names}; save one of them "
            "by itself"
        )
    prefix = ours.pop() if ours else ""
    return {key.removeprefix(prefix): tensor for key, tensor in tensors.items()}


def layout_of(keys: Mapping[str, object]) -> Layout | None:
    """Return the layout of motion module keys, None where there is no such key."""
    module_keys = [k for k in keys if _MODULE_PREFIX.match(k)]
    if not module_keys:
        return None
    return "comfyui" if any(".temporal_transformer." in k for k in module_keys) else "diffusers"


def from_diffusers(tensors: Mapping[str, T]) -> dict[str, T]:
    """Rename diffusers keys to ours; the one position table serves both attentions."""
    renamed = {}
    for key, tensor in tensors.items():
        key = from_diffusers_key(key)
        renamed[key] = tensor
        if key.endswith("pos_encoder.pe"):
            renamed[key.replace("attention_blocks.0.", "attention_blocks.1.")] = tensor
    return renamed


def from_diffusers_key(key: str) -> str:
    """Rename one diffusers key to ours."""
    key = _MODULE_PREFIX.sub(lambda m: m.group(0) + "temporal_transformer.", key)
    head, block, tail = key.partition(".transformer_blocks.0.")
    for ours, theirs in _RENAMES:
        if tail.startswith(theirs):
            return head + block + ours + tail.removeprefix(theirs)
    return key


def to_diffusers(tensors: "Mapping[str, Tensor]") -> "dict[str, Tensor]":
    """Rename our keys to diffusers'.

    Raises ValueError where the two attentions of a block have different position tables, which
    that layout cannot hold.
    """
    renamed = {}
    for key, tensor in tensors.items():
        if key.endswith("attention_blocks.1.pos_encoder.pe"):
            first = tensors[key.replace("attention_blocks.1.", "attention_blocks.0.")]
            if not first.equal(tensor):
                raise ValueError(
                    f"{key} differs from the positions of the first attention, and the diffusers "
                    "layout stores only one set; keep the comfyui layout."
                )
            continue
        key = key.replace(".temporal_transformer.", ".")
        head, block, tail = key.partition(".transformer_blocks.0.")
        for ours, theirs in _RENAMES:
            if tail.startswith(ours):
                tail = theirs + tail.removeprefix(ours)
                break
        renamed[head + block + tail] = tensor
    return renamed
