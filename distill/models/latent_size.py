"""How many pixels stand behind a latent, and which sizes that allows."""

from collections.abc import Mapping
from typing import Any


def pixels_per_latent(vae_config: Mapping[str, Any]) -> int:
    """Return the pixels per latent in each direction of a VAE with such a config (SD1.5: 8)."""
    return 2 ** (len(vae_config["block_out_channels"]) - 1)


def check_size(width: int, height: int, factor: int) -> None:
    """Raise ValueError for pixels that are no multiple of a base model's pixels per latent."""
    for name, value in (("width", width), ("height", height)):
        if value % factor:
            near = max(1, round(value / factor)) * factor
            raise ValueError(f"{name} must be a multiple of {factor}, not {value}; try {near}.")
