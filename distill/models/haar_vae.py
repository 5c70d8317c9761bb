"""A lossless "VAE" with diffusers' encode and decode: Haar wavelets, no weights.

Each level turns 2 x 2 pixels into one average and three differences, orthonormal, so that noise in
the latents is noise of the same size in the pixels.
"""

from types import SimpleNamespace

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models import ModelMixin
from torch import Tensor

_HALF = 0.5
# the average, the differences across and down, and the one of both, of pixels a b / c d
_SIGNS = ((1, 1, 1, 1), (1, -1, 1, -1), (1, 1, -1, -1), (1, -1, -1, 1))


# diffusers types config_name as None in one of these and as a string in the other
class HaarVAE(ModelMixin, ConfigMixin):  # type: ignore[misc]
    """The Haar transform; latents need no decoder to be looked at.

    Of 3 colours the first level makes 12 channels, the second one 48; `block_out_channels` lists
    them from 3 on, one level each. `latents_mean` and `latents_std` are of each channel over the
    data, as diffusers' configs have them: models/latents.py subtracts the one and divides by the
    other.
    """

    @register_to_config
    def __init__(
        self,
        latent_channels: int = 12,  # noqa: ARG002 - kept in the config, where callers look
        block_out_channels: tuple[int, ...] = (3, 12),
        latents_mean: tuple[float, ...] | None = None,  # noqa: ARG002
        latents_std: tuple[float, ...] | None = None,  # noqa: ARG002
        scaling_factor: float = 1.0,  # noqa: ARG002
    ) -> None:
        super().__init__()
        self.levels = len(block_out_channels) - 1

    @property
    def device(self) -> torch.device:
        return torch.device("cpu")

    @property
    def dtype(self) -> torch.dtype:
        return torch.float32

    def encode(self, x: Tensor) -> SimpleNamespace:
        """Encode images (n, 3, h, w) in [-1, 1]: `.latent_dist.sample()` is (n, channels, h', w').

        h' is h / 2**levels. The first channels are the averages of the three colours.
        """
        for _ in range(self.levels):
            x = _forwards(x)
        point = SimpleNamespace(sample=lambda: x, mode=lambda: x)
        return SimpleNamespace(latent_dist=point)

    def decode(self, z: Tensor) -> SimpleNamespace:
        """Decode latents (n, channels, h', w'); `.sample` gives images (n, 3, h, w)."""
        for _ in range(self.levels):
            z = _backwards(z)
        return SimpleNamespace(sample=z)


def _forwards(x: Tensor) -> Tensor:
    blocks = x.unflatten(-2, (-1, 2)).unflatten(-1, (-1, 2))  # n c h 2 w 2
    bands = torch.einsum("kij,nchiwj->nkchw", _matrix(x), blocks)
    return bands.flatten(1, 2)


def _backwards(z: Tensor) -> Tensor:
    bands = z.unflatten(1, (4, -1))
    blocks = torch.einsum("kij,nkchw->nchiwj", _matrix(z), bands)
    return blocks.flatten(-2).flatten(-3, -2)


def _matrix(like: Tensor) -> Tensor:
    return _HALF * torch.tensor(_SIGNS, dtype=like.dtype, device=like.device).view(4, 2, 2)
