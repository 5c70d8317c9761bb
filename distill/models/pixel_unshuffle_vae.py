"""A lossless "VAE" with diffusers' encode and decode: every 2 x 2 pixels become 12 channels."""

from types import SimpleNamespace

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models import ModelMixin
from torch import Tensor
from torch.nn import functional


# diffusers types config_name as None in one of these and as a string in the other
class PixelUnshuffleVAE(ModelMixin, ConfigMixin):  # type: ignore[misc]
    """Space to depth, and back: no weights, no loss. Latents need no decoder to be looked at."""

    @register_to_config
    def __init__(
        self,
        latent_channels: int = 12,  # noqa: ARG002 - kept in the config, where callers look
        block_out_channels: tuple[int, ...] = (12, 12),  # noqa: ARG002
        scaling_factor: float = 2.0,  # noqa: ARG002
    ) -> None:
        super().__init__()

    @property
    def device(self) -> torch.device:
        return torch.device("cpu")

    @property
    def dtype(self) -> torch.dtype:
        return torch.float32

    def encode(self, x: Tensor) -> SimpleNamespace:
        """Encode images (n, 3, h, w) in [-1, 1]: `.latent_dist.sample()` is (n, 12, h/2, w/2)."""
        latents = functional.pixel_unshuffle(x, 2)
        point = SimpleNamespace(sample=lambda: latents, mode=lambda: latents)
        return SimpleNamespace(latent_dist=point)

    def decode(self, z: Tensor) -> SimpleNamespace:
        """Decode latents (n, 12, h, w); `.sample` gives images (n, 3, 2 h, 2 w)."""
        return SimpleNamespace(sample=functional.pixel_shuffle(z, 2))
