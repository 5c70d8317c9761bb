"""Pixels to latents and back through a base model's VAE, a few frames at a time.

Frames are uint8 RGB (..., height, width, 3), as files hold them. Images are the same pixels as
networks take them: float (..., 3, height, width) in [-1, 1].
"""

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from .base_model import BaseModel

FRAMES_AT_ONCE = 2  # what goes through a VAE together; it bounds the memory


def to_images(frames: np.ndarray | Tensor) -> Tensor:
    """Return frames as float32 images, on the same device."""
    return torch.as_tensor(frames).movedim(-1, -3).float() / 127.5 - 1


def to_frames(images: Tensor) -> Tensor:
    """Return images as uint8 frames; values beyond [-1, 1] are clamped."""
    return ((images.float() / 2 + 0.5).clamp(0, 1) * 255).round().byte().movedim(-3, -1)


@torch.no_grad()
def encode_images(
    base: BaseModel,
    images: Tensor,
    generator: torch.Generator | None = None,
    at_once: int = FRAMES_AT_ONCE,
) -> Tensor:
    """Return latents (n, channels, h, w), float32, on the base model's device, of images (n, ...).

    With a generator they are drawn from the distribution that the VAE encodes to, without one they
    are its mode.
    """
    encoded = []
    for chunk in images.split(at_once):
        distribution = base.vae.encode(chunk.to(base.device, base.vae.dtype)).latent_dist
        z = distribution.mode().float()
        if generator is not None and hasattr(distribution, "std"):  # the miniature's VAE is exact
            noise = torch.randn(z.shape, generator=generator)
            z = z + distribution.std.float() * noise.to(z.device)
        encoded.append(z)
    z = torch.cat(encoded)
    return (z - base.latent_shift.to(z.device)) * base.latent_scale.to(z.device)


@torch.no_grad()
def decode_images(base: BaseModel, latents: Tensor, at_once: int = FRAMES_AT_ONCE) -> Tensor:
    """Return images (n, 3, height, width), float32, on the base model's device, of latents."""
    return torch.cat(list(_decoded(base, latents, at_once)))


@torch.no_grad()
def decode_frames(base: BaseModel, latents: Tensor, at_once: int = FRAMES_AT_ONCE) -> Tensor:
    """Return frames (n, height, width, 3), uint8, on the CPU, of latents (n, channels, h, w)."""
    return torch.cat([to_frames(images).cpu() for images in _decoded(base, latents, at_once)])


def _decoded(base: BaseModel, latents: Tensor, at_once: int) -> Iterator[Tensor]:
    scale, shift = (x.to(latents.device) for x in (base.latent_scale, base.latent_shift))
    for chunk in latents.split(at_once):
        z = chunk / scale + shift
        yield base.vae.decode(z.to(base.device, base.vae.dtype)).sample.float()
