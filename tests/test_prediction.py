"""The algebra between x_t, x0, eps and v, in float64."""

import pytest
import torch
from animatediff_lightning.samplers import prediction
from animatediff_lightning.samplers.schedule import CLEAN, alpha_bar

TIMESTEPS = torch.tensor([0, 249, 500, 998])


@pytest.fixture
def x0():
    return torch.randn(4, 3, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def eps():
    return torch.randn(4, 3, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(2))


def test_forward_is_the_papers_mixture_with_unit_variance(x0, eps):
    ab = alpha_bar(torch.tensor(499)).item()
    expected = ab**0.5 * x0 + (1 - ab) ** 0.5 * eps
    torch.testing.assert_close(prediction.forward(x0, eps, 499), expected, rtol=1e-12, atol=0)
    assert 0.2 < ab**0.5 < 0.6  # neither term vanishes, so that a swap would show


def test_per_sample_timesteps_equal_one_call_each(x0, eps):
    together = prediction.forward(x0, eps, TIMESTEPS)
    for i, t in enumerate(TIMESTEPS.tolist()):
        assert torch.equal(together[i], prediction.forward(x0[i], eps[i], t))
    t_next = torch.tensor([CLEAN, 0, 249, 749])
    moved = prediction.move(together, eps, TIMESTEPS, t_next)
    for i, (t, n) in enumerate(zip(TIMESTEPS.tolist(), t_next.tolist(), strict=True)):
        assert torch.equal(moved[i], prediction.move(together[i], eps[i], t, n))


def test_x0_returns_from_the_noised_sample(x0, eps):
    x_t = prediction.forward(x0, eps, TIMESTEPS)
    torch.testing.assert_close(
        prediction.x0_from_eps(x_t, eps, TIMESTEPS), x0, rtol=1e-9, atol=1e-12
    )


def test_last_timestep_is_exactly_pure_noise_also_within_a_batch(x0, eps):
    assert torch.equal(prediction.forward(x0, eps, 999), eps)
    mixed = prediction.forward(x0, eps, torch.tensor([999, 998, 999, 0]))
    assert torch.equal(mixed[[0, 2]], eps[[0, 2]])
    assert not torch.equal(mixed[1], eps[1])
    assert not torch.equal(mixed[3], eps[3])


def test_v_and_eps_return_to_each_other(x0, eps):
    x_t = prediction.forward(x0, eps, TIMESTEPS)
    v = prediction.v_from_eps(x0, eps, TIMESTEPS)
    torch.testing.assert_close(prediction.eps_from_v(x_t, v, TIMESTEPS), eps, rtol=1e-9, atol=1e-12)
    ab = alpha_bar(TIMESTEPS).reshape(4, 1, 1)
    # the other half of the definition: x0 = sqrt(ab) x_t - sqrt(1 - ab) v
    torch.testing.assert_close(ab.sqrt() * x_t - (1 - ab).sqrt() * v, x0, rtol=1e-9, atol=1e-12)


def test_move_walks_along_the_true_path(x0, eps):
    x_t = prediction.forward(x0, eps, 749)
    torch.testing.assert_close(
        prediction.move(x_t, eps, 749, 499), prediction.forward(x0, eps, 499), rtol=1e-9, atol=1e-12
    )


def test_move_to_clean_gives_x0_exactly_as_predicted(x0, eps):
    for t in (999, 249):
        moved = prediction.move(x0, eps, t, CLEAN)
        assert torch.equal(moved, prediction.x0_from_eps(x0, eps, t))


def test_move_to_the_same_timestep_is_the_identity(x0, eps):
    for t in (999, 499, 0):
        torch.testing.assert_close(prediction.move(x0, eps, t, t), x0, rtol=1e-12, atol=1e-12)


def test_gradients_are_the_coefficients(x0, eps):
    eps.requires_grad_()
    prediction.x0_from_eps(x0, eps, 999).sum().backward()
    # sqrt((1 - ab) / ab): what amplifies a one-step error in eps 25 times
    torch.testing.assert_close(eps.grad, torch.full_like(eps, -25.1461), rtol=1e-5, atol=0)


def test_results_keep_the_dtype_and_integers_equal_tensors(x0, eps):
    x, e = x0.half(), eps.half()
    for result in (
        prediction.forward(x, e, 499),
        prediction.move(x, e, 499, 249),
        prediction.v_from_eps(x, e, TIMESTEPS),
    ):
        assert result.dtype == torch.float16
    assert torch.equal(
        prediction.move(x0, eps, 749, 499),
        prediction.move(x0, eps, torch.tensor(749), torch.tensor(499)),
    )


def test_as_eps_follows_the_prediction_type(x0, eps):
    assert prediction.as_eps(eps, x0, 499, "epsilon") is eps
    x_t = prediction.forward(x0, eps, 499)
    v = prediction.v_from_eps(x0, eps, 499)
    torch.testing.assert_close(
        prediction.as_eps(v, x_t, 499, "v_prediction"), eps, rtol=1e-9, atol=1e-12
    )
    with pytest.raises(ValueError, match="'sample' is not supported; use a base model"):
        prediction.as_eps(eps, x_t, 499, "sample")
