"""The moving average of weights that a training gives as its result."""

from collections.abc import Mapping

import torch
from torch import Tensor

Weights = Mapping[str, Tensor]


def start_average(weights: Weights) -> dict[str, Tensor]:
    """Return an average that begins at the weights as they are."""
    return {name: tensor.detach().clone() for name, tensor in weights.items()}


@torch.no_grad()
def update_average(average: Weights, weights: Weights, decay: float, update: int) -> None:
    """Move the average towards the weights after an update, 0-based, in place.

    decay: of a long average, 0 for none; young averages forget faster, so that they do not stay
    where the training began.
    """
    if not average:
        return
    decay = min(decay, (update + 1) / (update + 10))
    torch._foreach_lerp_(list(average.values()), [weights[k] for k in average], 1 - decay)


@torch.no_grad()
def copy_average(average: Weights, weights: Weights) -> None:
    """Set the weights to their average, where there is one."""
    for name, tensor in average.items():
        weights[name].copy_(tensor)
