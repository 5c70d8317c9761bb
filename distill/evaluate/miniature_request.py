"""What a user asks of `evaluate miniature`, checked before anything heavy is imported or read."""

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ..files.output import check_writable
from ..miniature.styles import F0, STYLES
from ..sampling.ranges import check_range
from ..sampling.settings import SamplingSettings

if TYPE_CHECKING:  # it needs torch
    from ..miniature.split import Part


@dataclass(frozen=True)
class MiniatureRequest:
    """What to measure: every base with every step count and guidance. ValueError if impossible.

    Holds the defaults of `evaluate miniature`; a plot is written beside `out`. captions: of which
    part of the split; recipes are chosen on "validation", so that "test" stays unseen.
    """

    bases: tuple[str, ...] = (F0,)
    motion_module: Path | None = None
    steps: tuple[int, ...] = (32, 8, 4, 2, 1)
    cfgs: tuple[float, ...] = (1, 2)
    sampler: str = SamplingSettings.sampler
    clips: int = 200
    captions: "Part" = "validation"
    out: Path = Path("miniature.csv")

    def __post_init__(self) -> None:
        check_range("--clips", self.clips, 2)
        if self.out.suffix.lower() != ".csv":
            raise ValueError(f"{self.out.name} must end in .csv.")
        for base in self.bases:
            style_of(base)
        for steps, cfg in itertools.product(self.steps, self.cfgs):
            # raises for what is out of range
            SamplingSettings(steps=steps, cfg=cfg, sampler=self.sampler)
        check_writable(self.plot)

    @property
    def plot(self) -> Path:
        """The file of the plot."""
        return self.out.with_suffix(".png")


def parse_numbers(text: str, kind: Callable[[str], float], option: str) -> tuple:
    """Return the numbers of "32,8,4"; ValueError names the option."""
    try:
        numbers = tuple(kind(word) for word in text.split(",") if word.strip())
    except ValueError as error:
        raise ValueError(f"{option} {text!r} is not a list of numbers such as 4,2,1.") from error
    smallest = 1 if kind is int else 0
    if not numbers or any(n < smallest for n in numbers):
        raise ValueError(f"{option} {text!r} needs numbers of at least {smallest}.")
    return numbers


def format_numbers(numbers: tuple[float, ...]) -> str:
    """Return numbers as `parse_numbers` reads them."""
    return ",".join(f"{number:g}" for number in numbers)


def style_of(base: str) -> str:
    """Return the style that a base model's name or folder stands for; ValueError if none."""
    style = Path(base).name
    if style not in STYLES:
        raise ValueError(
            f"{base} is not a style of the miniature; use one of {', '.join(STYLES)}, or a "
            "folder that is named like one."
        )
    return style
