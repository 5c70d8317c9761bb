"""Conversions between x_t, x0, eps and v, and the move along the probability flow.

AnimateDiff-Lightning section 3.2 and SDXL-Lightning (arXiv 2402.13929) section 3:
x_t = sqrt(alpha_bar) x0 + sqrt(1 - alpha_bar) eps,
v = sqrt(alpha_bar) eps - sqrt(1 - alpha_bar) x0.
Timesteps are integer tensors of shape (batch,) or (); -1 stands for the clean sample.
"""

import torch

from .schedule import NUM_TRAIN_TIMESTEPS, alpha_bar


def coefficients(
    timesteps: torch.Tensor | int, like: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return sqrt(alpha_bar) and sqrt(1 - alpha_bar), broadcasting over `like`, in its dtype.

    Those of a number stay single values on the CPU, which go to a GPU's kernels without a copy.
    """
    if isinstance(timesteps, int):
        ab = alpha_bar(torch.tensor(timesteps))
        return ab.sqrt().to(like.dtype), (1 - ab).sqrt().to(like.dtype)
    ab = alpha_bar(timesteps.to(like.device))
    ab = ab.reshape(ab.shape + (1,) * (like.ndim - ab.ndim))
    alpha, sigma = ab.sqrt().to(like.dtype), (1 - ab).sqrt().to(like.dtype)
    return alpha.to(like.device), sigma.to(like.device)


def forward(x0: torch.Tensor, eps: torch.Tensor, t: torch.Tensor | int) -> torch.Tensor:
    """Noise x0 to timestep t; at t = T (999) the result is pure noise, as in section 3.1."""
    alpha, sigma = coefficients(t, x0)
    is_terminal = torch.as_tensor(t, device=x0.device) == NUM_TRAIN_TIMESTEPS - 1
    is_terminal = is_terminal.reshape(is_terminal.shape + (1,) * (x0.ndim - is_terminal.ndim))
    return torch.where(is_terminal, eps, alpha * x0 + sigma * eps)


def x0_from_eps(x_t: torch.Tensor, eps: torch.Tensor, t: torch.Tensor | int) -> torch.Tensor:
    """Return the clean sample that x_t and the predicted noise imply."""
    alpha, sigma = coefficients(t, x_t)
    return (x_t - sigma * eps) / alpha


def eps_from_v(x_t: torch.Tensor, v: torch.Tensor, t: torch.Tensor | int) -> torch.Tensor:
    """Return the noise that a v-prediction implies: sqrt(1 - alpha_bar) x_t + sqrt(alpha_bar) v."""
    alpha, sigma = coefficients(t, x_t)
    return sigma * x_t + alpha * v


def v_from_eps(x0: torch.Tensor, eps: torch.Tensor, t: torch.Tensor | int) -> torch.Tensor:
    """Return v = sqrt(alpha_bar) eps - sqrt(1 - alpha_bar) x0 (arXiv 2202.00512)."""
    alpha, sigma = coefficients(t, x0)
    return alpha * eps - sigma * x0


def as_eps(
    prediction: torch.Tensor, x_t: torch.Tensor, t: torch.Tensor | int, prediction_type: str
) -> torch.Tensor:
    """Turn a base model's output into eps; `prediction_type` uses diffusers' names.

    Raises ValueError for a type other than "epsilon" and "v_prediction".
    """
    if prediction_type == "epsilon":
        return prediction
    if prediction_type == "v_prediction":
        return eps_from_v(x_t, prediction, t)
    raise ValueError(
        f"prediction type {prediction_type!r} is not supported; "
        "use a base model that predicts epsilon or v_prediction."
    )


def move(
    x_t: torch.Tensor, eps: torch.Tensor, t: torch.Tensor | int, t_next: torch.Tensor | int
) -> torch.Tensor:
    """Take one Euler step of the probability flow from t to t_next (-1: to x0); DDIM with eta 0."""
    alpha, sigma = coefficients(t_next, x_t)
    return alpha * x0_from_eps(x_t, eps, t) + sigma * eps
