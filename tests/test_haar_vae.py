"""The miniature's VAE: an orthonormal transform, and latents that its config whitens."""

import pytest
import torch
from animatediff_lightning.distill.models.haar_vae import HaarVAE
from animatediff_lightning.distill.models.latent_size import pixels_per_latent


def images(height=8, width=12):
    return torch.rand(2, 3, height, width, generator=torch.Generator().manual_seed(0)) * 2 - 1


@pytest.mark.parametrize("channels", [(3, 12), (3, 12, 48)])
def test_it_loses_nothing_and_keeps_the_energy(channels):
    vae = HaarVAE(channels[-1], channels)
    z = vae.encode(images()).latent_dist.sample()
    factor = pixels_per_latent(vae.config)
    assert z.shape == (2, channels[-1], 8 // factor, 12 // factor)
    torch.testing.assert_close(vae.decode(z).sample, images())
    torch.testing.assert_close(z.square().sum(), images().square().sum())


def test_first_come_the_averages_and_flat_pictures_have_nothing_else():
    flat = images(1, 1).expand(-1, -1, 8, 12)
    z = HaarVAE().encode(flat).latent_dist.mode()
    torch.testing.assert_close(z[:, :3], 2 * flat[:, :, ::2, ::2])
    assert z[:, 3:].abs().max() < 1e-6


def test_differences_are_across_then_down_then_both():
    across = torch.tensor([1.0, -1.0]).repeat(8, 6).expand(1, 3, 8, 12)
    z = HaarVAE().encode(across).latent_dist.mode()
    torch.testing.assert_close(z[:, 3:6], torch.full((1, 3, 4, 6), 2.0))
    assert z[:, :3].abs().max() == z[:, 6:].abs().max() == 0
