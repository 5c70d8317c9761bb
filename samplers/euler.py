"""The few-step Euler sampler of AnimateDiff-Lightning (section 4.1), the project's one loop."""

from collections.abc import Callable, Sequence
from itertools import pairwise

import torch

from .prediction import move, x0_from_eps
from .schedule import CLEAN

PredictEps = Callable[[torch.Tensor, int], torch.Tensor]
OnStep = Callable[[int, torch.Tensor], None]


def sample(
    predict_eps: PredictEps,
    x: torch.Tensor,
    timesteps: Sequence[int],
    on_step: OnStep | None = None,
) -> torch.Tensor:
    """Walk x (unit noise at timesteps[0] = T, any shape) down the timesteps to x0.

    `predict_eps(x_t, t)` returns the noise, shaped like x; `on_step(i, x0_hat)` is called after
    each of the len(timesteps) network evaluations.
    """
    for i, (t, t_next) in enumerate(pairwise([*timesteps, CLEAN])):
        eps = predict_eps(x, t)
        if on_step is not None:
            on_step(i, x0_from_eps(x, eps, t))
        x = move(x, eps, t, t_next)
    return x
