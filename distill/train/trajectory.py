"""Where a student starts, and the trajectory of its teacher from there.

SDXL-Lightning (arXiv 2402.13929) section 3: x_{t-ns} is n moves of stride s from x_t; the student
makes one. Positions are exact fractions on 0 .. 1000 (1000 is T, 0 the clean sample), since
1000 / 128 is no whole number; the grids are nested trailing grids.
"""

import itertools
from collections.abc import Callable, Sequence
from fractions import Fraction

import torch
from torch import Tensor

from ...samplers import prediction, schedule
from .config import Stage

# eps of x (clips, frames, c, h, w) at timesteps (clips,)
PredictEps = Callable[[Tensor, Tensor], Tensor]
_T = schedule.NUM_TRAIN_TIMESTEPS
CLEAN_POSITION = Fraction(0)


def timestep(position: Fraction) -> int:
    """Return the 0-based timestep of a position, CLEAN (-1) for 0; halves go to even.

    So do diffusers' trailing timesteps, which a student is used on. Grids written as
    round(position - 1) differ by one timestep at 8 points of the grids of 32 and of 128
    steps, and nowhere on those of 8, 4, 2 and 1 [open: which of the two the authors have].
    """
    return round(position) - 1


def timesteps(positions: Sequence[Fraction]) -> Tensor:
    """Return the 0-based timesteps of positions, (n,), int64."""
    return torch.tensor([timestep(p) for p in positions])


def start_positions(stage: Stage) -> list[Fraction]:
    """Return the positions that a stage's student is trained at.

    A consistency student learns every point of its teacher's grid.
    """
    if stage.timesteps is not None:
        return [Fraction(t) for t in stage.timesteps]
    steps = stage.teacher_steps if stage.loss == "consistency" else stage.student_steps
    return [_T - k * Fraction(_T, steps) for k in range(steps)]


def points(start: Fraction, student_steps: int, teacher_steps: int) -> list[Fraction]:
    """Return start, the teacher's points below it, and where the student lands: n + 1 positions.

    n = teacher_steps / student_steps; what would go below 0 ends at the clean sample.
    """
    stride = Fraction(_T, teacher_steps)
    moves = teacher_steps // student_steps
    return [max(start - k * stride, CLEAN_POSITION) for k in range(moves + 1)]


def walk(end: Fraction, steps: int) -> list[Fraction]:
    """Return the points from T down to one of a grid's points, which repeats once it is reached.

    All have as many points, so that clips that end at different points walk together.
    """
    stride = Fraction(_T, steps)
    return [max(_T - k * stride, end) for k in range(steps)]


def noise_range(stage: Stage, position: Fraction) -> tuple[int, int]:
    """Return the lowest and highest timestep, 0-based, that distribution.py noises a landing to.

    position: where the step starts, which is the highest.
    """
    landing = points(position, stage.student_steps, stage.student_steps)[-1]
    above = stage.noise_above if landing > 0 else stage.noise_floor
    highest = timestep(position)
    return min(timestep(landing) + above, highest), highest


def follow(
    predict_eps: PredictEps, x_t: Tensor, positions: Sequence[Sequence[Fraction]]
) -> tuple[Tensor, Tensor]:
    """Move clips (clips, frames, c, h, w) through their points, by Euler steps.

    `positions` has a list of equally many points for each clip. Returns the clips at their last
    points and those timesteps (clips,).
    """
    points = torch.stack([timesteps(p) for p in positions], dim=1)  # points clips
    still = points[:-1].eq(points[1:]).all(dim=1).tolist()  # asked on the CPU: a GPU would wait
    grid = points.to(x_t.device)
    for (t, t_next), stays in zip(itertools.pairwise(grid), still, strict=True):
        if stays:  # all of them are where they end already
            break
        x_t = prediction.move(x_t, predict_eps(x_t, t), t, t_next)
    return x_t, grid[-1]


def to_clean(x_t: Tensor, eps: Tensor, t: Tensor) -> Tensor:
    """Return x0 of clips at timesteps (clips,); a clip that is clean already stays as it is."""
    return prediction.move(x_t, eps, t, torch.full_like(t, schedule.CLEAN))


def renoise(x: Tensor, t: Tensor, t_star: Sequence[int | None], noise: Tensor) -> tuple:
    """Noise clips at timesteps t (clips,) further, up to t*, and return them with their timesteps.

    SDXL-Lightning section 3.6 noises x0; here whatever lies below t* is brought up to it along the
    forward process, and what lies above stays as it is.
    """
    limit = torch.tensor([-2 if s is None else s for s in t_star], device=x.device)
    target = torch.maximum(t, limit)
    shape = (-1,) + (1,) * (x.ndim - 1)
    kept = (schedule.alpha_bar(target) / schedule.alpha_bar(t)).reshape(shape)  # of the variance
    signal, sigma = kept.sqrt().to(x.dtype), (1 - kept).sqrt().to(x.dtype)
    noised = signal.to(x.device) * x + sigma.to(x.device) * noise
    return torch.where((target > t).reshape(shape), noised, x), target
