"""Names the weights of a CLIP text encoder whatever files and versions of transformers call them.

Released diffusers folders and transformers 4 begin them with "text_model."; transformers 5 and old
single files do not.
"""

from collections.abc import Mapping

from torch import Tensor
from transformers import CLIPTextModel

_PREFIX = "text_model."


def bare(key: str) -> str:
    """Return a key without the prefix."""
    return key.removeprefix(_PREFIX)


def as_released(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return tensors under the keys of released folders, which every version reads."""
    return {_PREFIX + bare(k): t.contiguous() for k, t in tensors.items()}


def as_loaded(encoder: CLIPTextModel, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return tensors of either naming under an encoder's own; KeyError where one is missing."""
    named = {bare(k): t for k, t in tensors.items()}
    return {k: named[bare(k)] for k in encoder.state_dict()}
