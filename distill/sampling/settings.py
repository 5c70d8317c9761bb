"""How large a clip is and how it is sampled: values that check themselves, shared by requests.

They need no torch, so that a command line can read its defaults here.
"""

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, TypeVar

from ..models.latent_size import check_size
from .ranges import check_range, check_ranges

if TYPE_CHECKING:
    from ...samplers.context import ContextOptions

SAMPLERS = ("euler", "dpmpp", "lcm")
MAX_STEPS = 1000  # training timesteps
MAX_SEED = 2**64 - 1  # as in ComfyUI
MAX_FPS = 240
Size = TypeVar("Size", bound="ClipSize")


@dataclass(frozen=True, kw_only=True)
class ClipSize:
    """Frames of a clip, and its pixels; None: the size that the base model was trained for.

    Raises ValueError, with one sentence, for anything out of range.
    """

    frames: int = 16
    width: int | None = None
    height: int | None = None

    def __post_init__(self) -> None:
        pixels = (8, 8192)
        check_ranges(self, {"frames": (1, 4096), "width": pixels, "height": pixels})

    def sized(self: Size, side: int, factor: int) -> Size:
        """Return the same with pixels that are not named filled in.

        side: the base model's width and height; factor: its pixels per latent. Raises ValueError
        for a size that is no multiple of the factor.
        """
        sized = replace(self, width=self.width or side, height=self.height or side)
        check_size(*sized.pixels, factor)
        return sized

    @property
    def pixels(self) -> tuple[int, int]:
        """Width and height, of a size that names both or is `sized`."""
        assert self.width is not None, "the width is not filled in yet"
        assert self.height is not None, "the height is not filled in yet"
        return self.width, self.height


@dataclass(frozen=True, kw_only=True)
class SamplingOptions(ClipSize):
    """How a user wants clips sampled; steps and cfg None: as the motion module was made for.

    cfg: guidance, 1 for none; motion_scale: 1 as trained; context_length: cuts longer clips into
    windows (samplers/context.py).
    """

    negative_prompt: str = ""
    steps: int | None = None
    cfg: float | None = None
    sampler: str = "euler"
    motion_scale: float = 1.0
    context_length: int | None = None
    context_overlap: int = 4

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.sampler not in SAMPLERS:
            raise ValueError(f"sampler must be one of {', '.join(SAMPLERS)}, not {self.sampler!r}.")
        ranges = {"steps": (1, MAX_STEPS), "cfg": (0, 100), "motion_scale": (0, 10)}
        check_ranges(self, ranges)
        _ = self.context  # raises where the windows are impossible

    @property
    def context(self) -> "ContextOptions | None":
        """Sliding windows, None where the whole clip is seen at once."""
        if self.context_length is None or self.frames <= self.context_length:
            return None
        from ...samplers.context import ContextOptions  # it needs torch, which takes a second

        return ContextOptions(self.context_length, self.context_overlap)

    @property
    def frames_a_call(self) -> int:
        """Frames that the motion module sees at once."""
        return self.frames if self.context is None else self.context.context_length


@dataclass(frozen=True, kw_only=True)
class SamplingSettings(SamplingOptions):
    """How clips are sampled; prompts and seeds are not part of it."""

    steps: int = 4
    cfg: float = 1.0


def count_evaluations(steps: int, cfg: float) -> int:
    """Return how often a clip asks the network: once a step, with guidance twice."""
    return steps * (1 if cfg == 1 else 2)


def check_seed(seed: int) -> None:
    """Raise ValueError for a seed that ComfyUI would not take."""
    check_range("seed", seed, 0, MAX_SEED)


def check_fps(fps: float) -> None:
    """Raise ValueError for frames a second out of range."""
    check_range("fps", fps, 0.1, MAX_FPS)
