"""Classifier-free guidance (arXiv 2207.12598): away from the negative prompt, toward the prompt.

Both go through the network in one doubled batch, the prompt's half first.
"""

from collections.abc import Callable
from typing import TypeVar

import torch

Timestep = TypeVar("Timestep", int, torch.Tensor)


def guide(eps_prompt: torch.Tensor, eps_negative: torch.Tensor, cfg: float) -> torch.Tensor:
    """Return eps_negative + cfg (eps_prompt - eps_negative)."""
    return eps_negative + cfg * (eps_prompt - eps_negative)


def predict_guided(
    predict_eps: Callable[[torch.Tensor, Timestep, torch.Tensor], torch.Tensor],
    x: torch.Tensor,
    t: Timestep,
    text: torch.Tensor,
    negative: torch.Tensor,
    cfg: float,
) -> torch.Tensor:
    """Return eps under guidance by one call of predict_eps(x, t, text); at cfg 1 it is the plain.

    text and negative (clips, tokens, width): the embeddings of the prompts and of the negative
    prompts; t: a timestep of all, or one for each entry of x.
    """
    if cfg == 1:
        return predict_eps(x, t, text)
    both_t = t if isinstance(t, int) else torch.cat([t, t])
    eps = predict_eps(torch.cat([x, x]), both_t, torch.cat([text, negative]))
    eps_prompt, eps_negative = eps.chunk(2)
    return guide(eps_prompt, eps_negative, cfg)
