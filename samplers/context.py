"""Sliding context windows: which frames are sampled together, and how overlaps are fused.

AnimateDiff-Lightning section 5.2 makes longer clips this way. The schedules are those of
animatediff-cli ("uniform", "looped") and of ComfyUI's core ("static"); "pyramid" is FreeNoise's
weighted fusion (arXiv 2310.15169), the others are the core's.
"""

from dataclasses import dataclass
from typing import Literal, get_args

import torch

Schedule = Literal["uniform", "static", "looped"]
Fuse = Literal["pyramid", "relative", "flat", "overlap-linear"]
SCHEDULES: tuple[str, ...] = get_args(Schedule)
FUSES: tuple[str, ...] = get_args(Fuse)
Window = tuple[int, ...]


@dataclass(frozen=True)
class ContextOptions:
    """How a long clip is cut into windows; lengths are in frames.

    "static" windows never move; "uniform" ones move from step to step, so that no seam stays in
    place; "looped" ones also run from the last frame to the first. `closed_loop` (looped only)
    makes the clip repeat without a jump. Raises ValueError for lengths that make no windows.
    """

    context_length: int = 16
    context_overlap: int = 4
    schedule: Schedule = "uniform"
    fuse: Fuse = "pyramid"
    closed_loop: bool = False

    def __post_init__(self) -> None:
        if self.context_length < 2:
            raise ValueError(f"context_length must be at least 2, not {self.context_length}.")
        if not 0 <= self.context_overlap < self.context_length:
            raise ValueError(
                f"context_overlap must be between 0 and {self.context_length - 1} for windows of "
                f"{self.context_length} frames, not {self.context_overlap}."
            )
        for name, choices in (("schedule", SCHEDULES), ("fuse", FUSES)):
            if getattr(self, name) not in choices:
                raise ValueError(
                    f"{name} must be one of {', '.join(choices)}, not {getattr(self, name)!r}."
                )


@dataclass(frozen=True)
class ContextWindows:
    """The windows of one step: frame indices and weights, both of shape (windows, length).

    Over all windows the weights of each frame add up to 1.
    """

    indices: torch.Tensor
    weights: torch.Tensor

    def __len__(self) -> int:
        return len(self.indices)

    def to(self, x: torch.Tensor) -> "ContextWindows":
        """Return the windows on the device of x, with weights in its dtype."""
        weights = self.weights.to(x.dtype)  # before they move: Apple's GPUs have no float64
        return ContextWindows(self.indices.to(x.device), weights.to(x.device))


def windows(num_frames: int, options: ContextOptions, step: int = 0) -> list[Window]:
    """Return the windows of a sampling step, each of min(context_length, num_frames) frames."""
    if num_frames <= options.context_length:
        return [tuple(range(num_frames))]
    if options.schedule == "static":
        return _static(num_frames, options)
    looped = _looped(num_frames, options, step)
    return looped if options.schedule == "looped" else _unrolled(looped, num_frames)


def plan(num_frames: int, options: ContextOptions, step: int = 0) -> ContextWindows:
    """Return the windows of a step with their normalised fuse weights."""
    step_windows = windows(num_frames, options, step)
    weights = torch.stack([fuse_weights(w, num_frames, options) for w in step_windows])
    indices = torch.tensor(step_windows)
    total = torch.zeros(num_frames, dtype=weights.dtype)
    total.index_add_(0, indices.flatten(), weights.flatten())
    return ContextWindows(indices, weights / total[indices])


def fuse_weights(window: Window, num_frames: int, options: ContextOptions) -> torch.Tensor:
    """Return the unnormalised weight of each frame of a window, shape (length,), float64."""
    length, overlap = len(window), options.context_overlap
    position = torch.arange(length, dtype=torch.float64)
    if options.fuse == "pyramid":
        return torch.minimum(position, length - 1 - position) + 1
    if options.fuse == "relative":
        distance = (position - (length - 1) / 2).abs() / ((length - 1 + 1e-2) / 2)
        return (1 - distance).clamp(min=1e-2)
    weights = torch.ones(length, dtype=torch.float64)
    if options.fuse == "overlap-linear" and overlap:
        ramp = torch.linspace(0, 1, overlap, dtype=torch.float64).clamp(min=1e-37)
        if min(window) > 0:
            weights[:overlap] = ramp
        if max(window) < num_frames - 1:
            weights[-overlap:] = ramp.flip(0)
    return weights


def step_shift(step: int) -> float:
    """Return the shift of a step's windows, as a fraction of the clip: 0, 1/2, 1/4, 3/4...

    The van der Corput sequence in base 2: the bits of the step behind the point, in reverse.
    """
    shift, fraction = 0.0, 0.5
    while step:
        shift += fraction * (step & 1)
        step, fraction = step >> 1, fraction / 2
    return shift


def _static(num_frames: int, options: ContextOptions) -> list[Window]:
    length, stride = options.context_length, options.context_length - options.context_overlap
    last = num_frames - length
    starts = [*range(0, last, stride), last]
    return [tuple(range(s, s + length)) for s in starts]


def _looped(num_frames: int, options: ContextOptions, step: int) -> list[Window]:
    length, stride = options.context_length, options.context_length - options.context_overlap
    start = round(num_frames * step_shift(step))
    end = start + num_frames - (0 if options.closed_loop else options.context_overlap)
    return [tuple((s + i) % num_frames for i in range(length)) for s in range(start, end, stride)]


def _unrolled(looped: list[Window], num_frames: int) -> list[Window]:
    """Replace every window that runs past the last frame by one at the end and one at the start."""
    unrolled: list[Window] = []
    for i, window in enumerate(looped):
        if window[-1] > window[0]:
            unrolled.append(window)
            continue
        length = len(window)
        unrolled.append(tuple(range(num_frames - length, num_frames)))
        if 0 not in looped[(i + 1) % len(looped)]:
            unrolled.append(tuple(range(length)))
    # two neighbours may both run past the end, and then nothing is left at the start
    while missing := set(range(num_frames)).difference(*unrolled):
        start = min(min(missing), num_frames - len(looped[0]))
        unrolled.append(tuple(range(start, start + len(looped[0]))))
    return list(dict.fromkeys(unrolled))
