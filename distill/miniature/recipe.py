"""How long each stage of the miniature is trained, and on how much at once."""

from dataclasses import dataclass, field

from ..engine.loop import LoopOptions
from .styles import STYLES

MOTION_STAGE = "motion"  # the bases' stages are called like their styles


@dataclass(frozen=True)
class Stage:
    """A stage's loop and its global batch: images for a base model, clips for a motion module.

    high_noise: see draw_timesteps; no_caption: share of samples trained without their caption,
    for classifier-free guidance.
    """

    loop: LoopOptions
    batch: int
    high_noise: float
    no_caption: float = 0.1


@dataclass(frozen=True)
class Recipe:
    """All stages: f_0 with the text encoder, its fine-tunes, and the motion module on f_0."""

    first_base: Stage
    other_bases: Stage
    motion: Stage
    gate_clips: int  # clips that a gate measures on f_0
    other_clips: int  # and on each other base model
    teacher_steps: int = 32  # Euler steps of what gates and contact sheets show
    gated: bool = True  # whether a failed gate stops the build
    styles: tuple[str, ...] = tuple(STYLES)
    seed: int = field(default=0, kw_only=True)


def _quick(iterations: int) -> LoopOptions:
    return LoopOptions(iterations, 1.5e-3, warmup=5, ema=0.9, save_every=0.5)


RECIPES = {
    "full": Recipe(
        first_base=Stage(LoopOptions(4000, 2e-3, ema=0.998), batch=64, high_noise=1.25),
        other_bases=Stage(LoopOptions(500, 1e-3, ema=0.99), batch=64, high_noise=1.25),
        motion=Stage(LoopOptions(7000, 1.5e-3, ema=0.998), batch=8, high_noise=1.5),
        gate_clips=96,
        other_clips=48,
    ),
    # for tests of the pipeline: a minute, far from passing a gate, and often saved
    "quick": Recipe(
        first_base=Stage(_quick(24), batch=8, high_noise=1.25),
        other_bases=Stage(_quick(8), batch=8, high_noise=1.25),
        motion=Stage(_quick(12), batch=2, high_noise=1.5),
        gate_clips=2,
        other_clips=2,
        teacher_steps=2,
        gated=False,
        styles=("plain", "toon"),
    ),
}
