"""The Euler loop against diffusers' EulerDiscreteScheduler, from the same latents."""

import pytest
import torch
from animatediff_lightning.samplers.euler import sample
from animatediff_lightning.samplers.prediction import x0_from_eps
from animatediff_lightning.samplers.schedule import sigmas, trailing_timesteps, trained_timesteps
from diffusers import EulerDiscreteScheduler


def fake_eps(x: torch.Tensor, t: int) -> torch.Tensor:
    """Any nonlinear network that also depends on the timestep and mixes positions."""
    return 0.7 * x + 0.4 * torch.tanh(2 * x.roll(1, dims=-1) - t / 500) + 0.1 * torch.sin(3 * x)


def noise(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


def diffusers_sample(x: torch.Tensor, num_steps: int, start_step: int = 0) -> torch.Tensor:
    scheduler = EulerDiscreteScheduler(
        timestep_spacing="trailing", beta_schedule="linear", beta_start=0.00085, beta_end=0.012
    )
    scheduler.set_timesteps(num_steps)
    # k-diffusion's x is ours times sqrt(sigma^2 + 1)
    x = x * (scheduler.sigmas[start_step] ** 2 + 1).sqrt()
    for t in scheduler.timesteps[start_step:]:
        eps = fake_eps(scheduler.scale_model_input(x, t), int(t))
        x = scheduler.step(eps, t, x).prev_sample
    return x


@pytest.mark.parametrize("steps", [1, 2, 4, 8, 32])
def test_whole_loop_equals_diffusers(steps):
    x = noise(2, 4, 6, 6)
    ours = sample(fake_eps, x, trailing_timesteps(steps))
    theirs = diffusers_sample(x, steps)
    assert (ours - theirs).norm() <= 1e-5 * theirs.norm()


def test_partial_loop_equals_the_end_of_diffusers():
    x = noise(2, 4, 6, 6)
    ours = sample(fake_eps, x, trained_timesteps(8, start_step=5))
    theirs = diffusers_sample(x, 8, start_step=5)
    assert (ours - theirs).norm() <= 1e-5 * theirs.norm()


def test_one_step_is_the_first_prediction_of_x0():
    x = noise(1, 4, 3, 3)
    expected = x0_from_eps(x, fake_eps(x, 999), 999)
    torch.testing.assert_close(sample(fake_eps, x, [999]), expected, rtol=1e-6, atol=1e-6)
    assert sigmas(1)[0] > 25  # so that the step above is no identity


def test_on_step_hears_every_evaluation_and_the_last_x0_is_the_result():
    calls, evaluated = [], []

    def predict(x, t):
        evaluated.append(t)
        return fake_eps(x, t)

    result = sample(
        predict, noise(1, 4, 3, 3), trailing_timesteps(4), lambda i, x0: calls.append((i, x0))
    )
    assert evaluated == [999, 749, 499, 249]
    assert [i for i, _ in calls] == [0, 1, 2, 3]
    assert torch.equal(calls[-1][1], result)
    assert not torch.equal(calls[0][1], result)


def test_the_starting_noise_is_left_alone():
    x = noise(1, 4, 3, 3)
    before = x.clone()
    sample(fake_eps, x, [999, 499])
    assert torch.equal(x, before)
