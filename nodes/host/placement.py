"""How motion weights run beside a base model: in which dtype, on which devices, paged or not."""

from typing import NamedTuple

import torch
from comfy.model_patcher import ModelPatcher


class Placement(NamedTuple):
    """How weights are used: a key of the weights of a file.

    is_dynamic: whether the host pages the base model by need, and so the motion weights, too.
    """

    dtype: torch.dtype
    load_device: torch.device
    offload_device: torch.device
    is_dynamic: bool

    @classmethod
    def beside(cls, model: ModelPatcher) -> "Placement":
        """Return where the motion weights belong that run within a MODEL."""
        dtype = get_compute_dtype(model)
        return cls(dtype, model.load_device, model.offload_device, is_dynamic(model))


def get_compute_dtype(model: ModelPatcher) -> torch.dtype:
    """Return the dtype that the base model computes in, which the motion weights then share."""
    return model.get_model_object("manual_cast_dtype") or model.model.get_dtype()


def is_dynamic(model: ModelPatcher) -> bool:
    """Tell whether the host pages the weights of a model by need; older hosts never do."""
    return hasattr(model, "is_dynamic") and model.is_dynamic()
