"""Tells what made the SIGMAS of a run, by their values: a MODEL's scheduler, or one with ends."""

from collections.abc import Iterable

import torch

_SAME = 1e-3  # of a sigma, relative; schedulers compute in float32
_TIMESTEP = 1.5  # schedulers round to whole ones
_RHOS = torch.arange(1, 10001, dtype=torch.float64) / 100  # all that the nodes' inputs allow
_KARRAS_RHO, _EXPONENTIAL_RHO = 7.0, 1.0  # the nodes' defaults
_FEWEST = 5  # levels with which a curve is told from any other by a free parameter


def are_from_model(
    sigmas: torch.Tensor, model_sigmas: torch.Tensor, examples: Iterable[torch.Tensor] = ()
) -> bool:
    """Tell whether a scheduler made sigmas from a MODEL with these training sigmas.

    That is where they are evenly spaced in its timesteps, or equal to one of the examples.
    """
    levels = sigmas[sigmas > 0]
    if any(len(e) == len(sigmas) and _are_close(e[e > 0], levels) for e in examples):
        return True
    times = _timesteps(levels, model_sigmas)
    spacing = times[:-1] - times[1:]
    is_even = bool((spacing - spacing.mean()).abs().le(_TIMESTEP).all())
    if sigmas[-1] > 0:  # the beginning of more, so the spacing is all there is
        return len(times) > 2 and is_even
    if len(times) == 1:
        return bool(times[0] >= len(model_sigmas) - 1 - _TIMESTEP)
    ends_evenly = abs(times[-1] + 1 - spacing.mean()) < _TIMESTEP + 0.02 * spacing.mean()
    return is_even and bool(ends_evenly or times[-1] < _TIMESTEP)


def are_between_ends(sigmas: torch.Tensor) -> bool:
    """Tell whether sigmas are a curve between two ends, which are inputs of a node and no MODEL's.

    Karras et al. (arXiv 2206.00364) equation 5, (poly)exponential and Laplace, as k-diffusion and
    the host have them.
    """
    levels = sigmas[sigmas > 0].double()
    if len(levels) < 3:
        return False
    free = len(levels) >= _FEWEST
    return (
        _fits(_karras(levels, _RHOS if free else torch.tensor([_KARRAS_RHO])), levels)
        or _fits(
            _polyexponential(levels, _RHOS if free else torch.tensor([_EXPONENTIAL_RHO])), levels
        )
        or _is_laplace(levels)
    )


def _timesteps(levels: torch.Tensor, model_sigmas: torch.Tensor) -> torch.Tensor:
    """Return the timesteps of sigmas, between whole ones by their logarithm."""
    logs, wanted = model_sigmas.log(), levels.log()
    above = torch.searchsorted(logs, wanted).clamp(1, len(logs) - 1)
    low, high = logs[above - 1], logs[above]
    return above - 1 + ((wanted - low) / (high - low)).clamp(0, 1)


def _karras(levels: torch.Tensor, rhos: torch.Tensor) -> torch.Tensor:
    """Return Karras' curves between the ends of `levels`, their logarithms, (rhos, levels)."""
    ramp = torch.linspace(0, 1, len(levels), dtype=torch.float64)
    first, last = (end ** (1 / rhos[:, None]) for end in (levels[0], levels[-1]))
    return rhos[:, None] * (first + ramp * (last - first)).log()


def _polyexponential(levels: torch.Tensor, rhos: torch.Tensor) -> torch.Tensor:
    """Return exponential curves between the ends of `levels`, their logarithms, (rhos, levels)."""
    ramp = torch.linspace(1, 0, len(levels), dtype=torch.float64) ** rhos[:, None]
    first, last = levels[0].log(), levels[-1].log()
    return ramp * (first - last) + last


def _fits(curves: torch.Tensor, levels: torch.Tensor) -> bool:
    return bool(((curves - levels.log()).abs().amax(dim=1) < _SAME).any())


def _is_laplace(levels: torch.Tensor) -> bool:
    """Tell whether what lies between the clamped ends is linear in the quantile of Laplace."""
    x = torch.linspace(0, 1, len(levels), dtype=torch.float64)
    quantile = -torch.sign(0.5 - x) * torch.log(1 - 2 * (0.5 - x).abs() + 1e-5)
    inside = (levels < levels[0]) & (levels > levels[-1])
    if inside.sum() < 3:
        return False
    design = torch.stack([torch.ones_like(x), quantile], dim=1)[inside]
    logs = levels.log()[inside]
    fitted = design @ torch.linalg.lstsq(design, logs[:, None]).solution
    return bool((fitted[:, 0] - logs).abs().max() < _SAME)


def _are_close(a: torch.Tensor, b: torch.Tensor) -> bool:
    return len(a) == len(b) and bool((a.double() / b.double() - 1).abs().max() < _SAME)
