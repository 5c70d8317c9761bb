"""The Frechet distance against closed forms."""

import pytest
import torch
from animatediff_lightning.distill.evaluate import frechet
from animatediff_lightning.distill.evaluate.frechet import Moments


def gaussian(mean, covariance):
    return Moments(torch.tensor(mean).double(), torch.tensor(covariance).double(), 100)


def random_features(n, d, seed=0):
    generator = torch.Generator().manual_seed(seed)
    mix = torch.randn(d, d, generator=generator, dtype=torch.float64)
    return torch.randn(n, d, generator=generator, dtype=torch.float64) @ mix


def test_moments_are_the_mean_and_the_unbiased_covariance():
    found = frechet.moments(torch.tensor([[0.0, 1.0], [2.0, 5.0], [4.0, 3.0]]))
    assert found.n == 3
    assert found.mean.dtype == found.covariance.dtype == torch.float64
    torch.testing.assert_close(found.mean.tolist(), [2.0, 3.0])
    torch.testing.assert_close(found.covariance.tolist(), [[4.0, 2.0], [2.0, 4.0]])


def test_diagonal_gaussians():
    a, b = gaussian([1.0, 2.0], [[4.0, 0.0], [0.0, 9.0]]), gaussian([3.0, 2.0], [[1.0, 0], [0, 16]])
    # (1 - 3)^2 and the squared differences of the standard deviations
    assert frechet.distance(a, b) == pytest.approx(4 + (2 - 1) ** 2 + (3 - 4) ** 2, rel=1e-12)


def test_covariances_that_do_not_commute():
    a, b = gaussian([0, 0], [[2.0, 1.0], [1.0, 3.0]]), gaussian([0, 0], [[5.0, -2.0], [-2.0, 1]])
    # in two dimensions tr sqrt(M) = sqrt(tr M + 2 sqrt(det M))
    product = a.covariance @ b.covariance
    root = (product.trace() + 2 * product.det().sqrt()).sqrt()
    assert frechet.distance(a, b) == pytest.approx((5 + 6 - 2 * root).item(), rel=1e-12)


@pytest.mark.parametrize("n", [300, 20])  # of full rank, and of rank 19 in 50 dimensions
def test_a_set_is_at_no_distance_from_itself(n):
    features = random_features(n, 50)
    scale = features.square().mean(0).sum().item()
    assert frechet.between(features, features) <= 1e-12 * scale


@pytest.mark.parametrize("n", [300, 20])
def test_a_shift_counts_squared(n):
    features = random_features(n, 50)
    shift = torch.linspace(-1, 1, 50).double()
    expected = shift.square().sum().item()
    assert frechet.between(features, features + shift) == pytest.approx(expected, rel=1e-9)


def test_rank_deficient_gaussians_on_different_axes():
    a = gaussian([0.0] * 3, [[4.0, 0, 0], [0, 0, 0], [0, 0, 0]])
    b = gaussian([0.0] * 3, [[0.0, 0, 0], [0, 9, 0], [0, 0, 0]])
    assert frechet.distance(a, b) == pytest.approx(4 + 9, rel=1e-12)


def test_scaling_a_rank_deficient_set():
    features = random_features(20, 50)
    features = features - features.mean(0)
    spread = frechet.moments(features).covariance.trace().item()
    # S and 9 S: tr S + 9 tr S - 2 * 3 tr S
    assert frechet.between(features, 3 * features) == pytest.approx(4 * spread, rel=1e-9)


def test_it_is_symmetric():
    a, b = random_features(40, 30, seed=1), random_features(60, 30, seed=2)
    assert frechet.between(a, b) == pytest.approx(frechet.between(b, a), rel=1e-9)
    assert frechet.between(a, b) > 0


def test_one_clip_or_no_rows_are_refused():
    for features in (torch.zeros(1, 4), torch.zeros(4), torch.zeros(3, 0)):
        with pytest.raises(ValueError, match="n at least 2"):
            frechet.moments(features)


def test_features_that_are_not_finite_are_counted():
    features = torch.zeros(5, 4)
    features[1, 2], features[3, 0] = float("nan"), float("inf")
    with pytest.raises(ValueError, match="2 of 5 clips"):
        frechet.moments(features)


def test_other_widths_are_refused():
    with pytest.raises(ValueError, match="width 3 and 4"):
        frechet.between(random_features(5, 3), random_features(5, 4))
