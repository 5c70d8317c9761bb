"""The AnimateDiff noise schedule and the trailing timesteps that distilled modules are trained on.

AnimateDiff-Lightning (arXiv 2403.12706) section 3: linear betas 0.00085 to 0.012 over T = 1000, not
rescaled to zero terminal SNR. Timesteps are 0-based, so T is timestep 999.
"""

from functools import lru_cache

import torch

NUM_TRAIN_TIMESTEPS = 1000
BETA_START = 0.00085
BETA_END = 0.012
CLEAN = -1  # the "timestep" of x0: alpha_bar = 1


@lru_cache(maxsize=1)
def _alphas_cumprod() -> torch.Tensor:
    with torch.inference_mode(False):  # whoever asks first, training may use it later
        betas = torch.linspace(BETA_START, BETA_END, NUM_TRAIN_TIMESTEPS, dtype=torch.float64)
        return torch.cumprod(1 - betas, dim=0)


@lru_cache
def _with_clean(device: torch.device) -> torch.Tensor:
    """Return alpha_bar of every timestep on a device, and 1 at the end, so that -1 is x0."""
    with torch.inference_mode(False):
        return torch.cat([_alphas_cumprod(), torch.ones(1, dtype=torch.float64)]).to(device)


def alphas_cumprod() -> torch.Tensor:
    """Return alpha_bar for every training timestep, shape (1000,), float64."""
    return _alphas_cumprod().clone()


def alpha_bar(timesteps: torch.Tensor) -> torch.Tensor:
    """Return alpha_bar at integer timesteps (any shape), float64; CLEAN (-1) gives exactly 1.

    On the device of the timesteps, but for Apple's GPUs, which have no float64: then on the CPU.
    """
    device = torch.device("cpu") if timesteps.device.type == "mps" else timesteps.device
    # take: an index of a single number would make the processor wait for a GPU
    return _with_clean(device).take(timesteps.to(device).long())


def trailing_timesteps(num_steps: int) -> list[int]:
    """Return the descending trailing grid, e.g. 4 -> [999, 749, 499, 249].

    Grids whose sizes divide each other are nested (128 > 32 > 8 > 4 > 2 > 1).
    Raises ValueError unless 1 <= num_steps <= 1000.
    """
    if not 1 <= num_steps <= NUM_TRAIN_TIMESTEPS:
        raise ValueError(
            f"steps must be between 1 and {NUM_TRAIN_TIMESTEPS}, not {num_steps}; use the number "
            "in the name of the Lightning file (1, 2, 4 or 8)."
        )
    grid = [NUM_TRAIN_TIMESTEPS - k * NUM_TRAIN_TIMESTEPS / num_steps for k in range(num_steps)]
    return [round(t) - 1 for t in grid]  # Python rounds halves to even, as numpy and diffusers do


def trained_timesteps(num_steps: int, start_step: int = 0) -> list[int]:
    """Return the trailing grid without its first `start_step` points (for video-to-video).

    A distilled module knows only its own grid, so a partial denoise leaves out leading points
    instead of squeezing a new grid into the remaining range.
    """
    timesteps = trailing_timesteps(num_steps)
    if not 0 <= start_step < num_steps:
        raise ValueError(
            f"start_step must be between 0 and {num_steps - 1} for {num_steps} steps, "
            f"not {start_step}; 0 starts from pure noise."
        )
    return timesteps[start_step:]


def sigmas(num_steps: int, start_step: int = 0) -> torch.Tensor:
    """Return k-diffusion sigmas sqrt((1 - alpha_bar) / alpha_bar) of the grid and a final 0.

    Shape (num_steps - start_step + 1,), float32; sigma at T is 25.1461.
    """
    ab = alpha_bar(torch.tensor([*trained_timesteps(num_steps, start_step), CLEAN]))
    return ((1 - ab) / ab).sqrt().float()
