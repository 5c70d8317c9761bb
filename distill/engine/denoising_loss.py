"""The plain diffusion loss that base models and motion modules are trained with.

AnimateDiff (arXiv 2307.04725) equation 3 on linear betas, in whatever the base model predicts.
"""

import torch
from torch import Tensor
from torch.nn import functional

from ...samplers import prediction, schedule


def draw_timesteps(count: int, generator: torch.Generator, high_noise: float = 1.0) -> Tensor:
    """Draw timesteps 0 .. 999, (count,): uniformly at 1, more often noisy ones above 1.

    t = T (1 - u^high_noise): at 1.5, 63% of the timesteps are above 500.
    """
    u = torch.rand(count, generator=generator)
    t = (schedule.NUM_TRAIN_TIMESTEPS * (1 - u**high_noise)).long()
    return t.clamp(0, schedule.NUM_TRAIN_TIMESTEPS - 1)


def target(x0: Tensor, eps: Tensor, t: Tensor, prediction_type: str) -> Tensor:
    """Return what a network of that prediction type should say of x_t."""
    if prediction_type == "epsilon":
        return eps
    if prediction_type == "v_prediction":
        return prediction.v_from_eps(x0, eps, t)
    raise ValueError(f"prediction type {prediction_type!r} is not supported.")


def denoising_loss(
    unet: torch.nn.Module, x0: Tensor, text: Tensor, t: Tensor, eps: Tensor, prediction_type: str
) -> Tensor:
    """Return the mean squared error of what `unet` predicts, a scalar.

    x0 and eps (n, c, h, w), text (n, tokens, width), t (n,): for video, n is clips x frames, and
    the frames of a clip share t.
    """
    out = unet(prediction.forward(x0, eps, t), t, encoder_hidden_states=text).sample
    return functional.mse_loss(out.float(), target(x0, eps, t, prediction_type))
