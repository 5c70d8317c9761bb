"""The Frechet distance of two sets of features, as Gaussians: FVD where they are the I3D's logits.

AnimateDiff-Lightning section 4.2. The distance shrinks as a set grows, so compare only figures of
equally many clips.
"""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Moments:
    """Mean (d,) and unbiased covariance (d, d) of n features, in float64."""

    mean: Tensor
    covariance: Tensor
    n: int


def moments(features: Tensor) -> Moments:
    """Return the moments of features (n, d), n at least 2; ValueError where there are none."""
    if features.ndim != 2 or len(features) < 2 or features.shape[1] == 0:
        raise ValueError(
            f"a Frechet distance needs features of shape (n, d) with n at least 2, not "
            f"{tuple(features.shape)}; measure more clips."
        )
    broken = (~features.isfinite().all(1)).sum().item()
    if broken:
        raise ValueError(
            f"{broken} of {len(features)} clips have features that are not finite; look for "
            "frames that are NaN or infinite, and generate those clips again."
        )
    features = features.double()
    mean = features.mean(0)
    centred = features - mean
    return Moments(mean, centred.T @ centred / (len(features) - 1), len(features))


def distance(a: Moments, b: Moments) -> float:
    """Return |mu_a - mu_b|^2 + tr(S_a + S_b - 2 (S_a S_b)^(1/2)), never negative.

    The trace of the root is the sum of the singular values of S_a^(1/2) S_b^(1/2): no root of a
    matrix that is not symmetric, whatever the rank. Raises ValueError where the widths differ.
    """
    if a.mean.shape != b.mean.shape:
        raise ValueError(
            f"features of width {len(a.mean)} and {len(b.mean)} cannot be compared; compute "
            "both with the same network."
        )
    shift = (a.mean - b.mean).square().sum()
    of_root = torch.linalg.svdvals(_root(a.covariance) @ _root(b.covariance)).sum()
    spread = a.covariance.trace() + b.covariance.trace() - 2 * of_root
    return (shift + spread).clamp(min=0).item()


def between(a: Tensor, b: Tensor) -> float:
    """Return the Frechet distance of two sets of features, (n, d) and (m, d)."""
    return distance(moments(a), moments(b))


def _root(covariance: Tensor) -> Tensor:
    """Return the symmetric root of a positive semi-definite matrix."""
    values, vectors = torch.linalg.eigh(covariance)
    # a root makes rounding errors of 1e-16 as large as 1e-8: what is rounding counts as zero
    rounding = values.abs().max() * len(values) * torch.finfo(values.dtype).eps
    values = torch.where(values > rounding, values, 0.0)
    return (vectors * values.sqrt()) @ vectors.T
