"""What made the SIGMAS of a run is told by their values, for every scheduler that ComfyUI has."""

import math

import numpy as np
import pytest
import torch
from animatediff_lightning.samplers import sigma_origin

# SD1.5's own schedule: "scaled linear" betas
BETAS = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
ALPHA_BAR = torch.cumprod(1 - BETAS, 0)
BASE = ((1 - ALPHA_BAR) / ALPHA_BAR).sqrt()
FIRST, LAST = 14.614642, 0.0291675  # the defaults of the schedulers with ends
# timesteps that Align Your Steps (arXiv 2404.14507) found for SD1.5
ALIGNED = [999, 850, 736, 645, 545, 455, 343, 233, 124, 24]


def ended(levels) -> torch.Tensor:
    return torch.cat([torch.as_tensor(levels).float(), torch.zeros(1)])


def at(times, sigmas=BASE) -> torch.Tensor:
    return ended(np.exp(np.interp(times, np.arange(1000), sigmas.log().numpy())))


def karras(n, rho=7.0, first=FIRST, last=LAST) -> torch.Tensor:
    ramp = np.linspace(0, 1, n)
    return ended(
        (first ** (1 / rho) + ramp * (last ** (1 / rho) - first ** (1 / rho))) ** rho,
    )


def polyexponential(n, rho=1.0, first=FIRST, last=LAST) -> torch.Tensor:
    ramp = np.linspace(1, 0, n) ** rho
    return ended(np.exp(ramp * (math.log(first) - math.log(last)) + math.log(last)))


def laplace(n, mu=0.0, beta=0.5, first=FIRST, last=LAST) -> torch.Tensor:
    x = torch.linspace(0, 1, n)
    logs = mu - beta * torch.sign(0.5 - x) * torch.log(1 - 2 * (0.5 - x).abs() + 1e-5)
    return ended(logs.exp().clamp(last, first))


def aligned(n) -> torch.Tensor:
    """Return the levels of Align Your Steps, between them by their logarithm."""
    levels = np.append(BASE.numpy()[ALIGNED], LAST)
    logs = np.interp(np.linspace(0, 1, n + 1), np.linspace(0, 1, len(levels)), np.log(levels))
    return ended(np.exp(logs)[:-1])


EVEN = {
    "simple": lambda n: at([999 - int(i * 1000 / n) for i in range(n)]),
    "sgm_uniform": lambda n: at(np.linspace(999, 0, n + 1)[:-1]),
    "normal": lambda n: at(np.linspace(999, 0, n)),
    "ddim_uniform": lambda n: at(np.arange(1, 1000, max(1000 // n, 1))[::-1][:n]),
}


@pytest.mark.parametrize("n", [2, 3, 4, 8, 25])
@pytest.mark.parametrize("name", EVEN)
def test_even_times_are_a_models(name, n):
    sigmas = EVEN[name](n)
    assert sigma_origin.are_from_model(sigmas, BASE)
    assert not sigma_origin.are_between_ends(sigmas)


@pytest.mark.parametrize("n", [4, 8, 25])
def test_the_beginning_and_the_end_of_even_times_are_a_models(n):
    sigmas = EVEN["simple"](2 * n)
    assert sigma_origin.are_from_model(sigmas[:n], BASE)
    assert sigma_origin.are_from_model(sigmas[n:], BASE)


def test_an_example_is_a_models():
    sigmas = at([999, 700, 300, 20])
    assert not sigma_origin.are_from_model(sigmas, BASE)
    assert sigma_origin.are_from_model(sigmas, BASE, [at([999, 1]), sigmas])


@pytest.mark.parametrize("n", [5, 8, 10, 25])
@pytest.mark.parametrize(
    "sigmas",
    [
        karras,
        lambda n: karras(n, rho=3.5),
        lambda n: karras(n, last=0.1),
        polyexponential,
        lambda n: polyexponential(n, rho=2.25),
        laplace,
    ],
)
def test_curves_between_two_ends_are_told(sigmas, n):
    assert sigma_origin.are_between_ends(sigmas(n))
    assert not sigma_origin.are_from_model(sigmas(n), BASE)


@pytest.mark.parametrize("n", [3, 4, 6, 10, 20])
def test_tables_are_neither(n):
    assert not sigma_origin.are_between_ends(aligned(n))
    assert not sigma_origin.are_from_model(aligned(n), BASE)
