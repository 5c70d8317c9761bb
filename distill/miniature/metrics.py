"""What generated clips of the miniature are judged by, each with its ceiling and its chance level.

The ceiling is the same measurement on true clips of the same captions; chance is it on true clips
of other captions.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from . import measure, render, split, styles, world

# up: higher is better; the others are read against the ceiling
SHARES = ("colour", "kind", "motion", "heading", "style", "strict")
METRICS = (*SHARES, "jerk", "chroma", "grain")
# colour, kind, motion: of clips that show what the caption says; heading: whose sprite faces where
# it goes; style: in the base model's; strict: that keep to the path which caption and first frame
# imply; jerk: mean second difference of the sprite's middle, pixels; chroma: peak colour strength
# against that of true clips; grain: what differs between neighbouring pixels of the background,
# against that of true clips
_PROMPT_SEED = 7


def held_out_scenes(count: int, part: split.Part = "test") -> world.Scenes:
    """Return scenes whose captions are never trained, always the same for a count and part."""
    generator = torch.Generator().manual_seed(_PROMPT_SEED)
    return split.draw_scenes(count, generator, part)


def true_clips(scenes: world.Scenes, style: str) -> Tensor:
    """Return what the captions of scenes should look like, (n, frames, 3, 16, 16) in [-1, 1]."""
    generator = torch.Generator().manual_seed(_PROMPT_SEED)
    return render.render(scenes, styles.STYLES[style], generator)


def other_true_clips(captions: Sequence[str], style: str, seed: int) -> Tensor:
    """Return true clips of captions, whose starts and speeds the seed draws."""
    generator = torch.Generator().manual_seed(seed)
    return render.render(world.scenes_of(captions, generator), styles.STYLES[style], generator)


def score(clips: Tensor, scenes: world.Scenes, style: str) -> dict[str, Tensor]:
    """Return every metric of each clip, (n,) each, so that methods can be compared in pairs."""
    measured = measure.measure(clips)
    true = measure.measure(true_clips(scenes, style))
    values = {
        "colour": measured.colour == scenes.colour,
        "kind": measured.kind == scenes.kind,
        "motion": measured.motion == scenes.direction,
        "heading": (measured.heading == measured.motion) & (measured.heading >= 0),
        "style": measured.style == list(styles.STYLES).index(style),
        "strict": measure.follows_path(measured, scenes),
        "jerk": measured.jerk,
        "chroma": measured.chroma / true.chroma.mean(),
        "grain": measured.grain / true.grain.mean(),
    }
    return {name: value.float() for name, value in values.items()}


def summary(scores: Mapping[str, Tensor]) -> dict[str, float]:
    """Return the mean of every metric."""
    return {name: value.mean().item() for name, value in scores.items()}


def ceiling(scenes: world.Scenes, style: str) -> dict[str, float]:
    """Return the metrics of true clips."""
    return summary(score(true_clips(scenes, style), scenes, style))


def chance(scenes: world.Scenes, style: str) -> dict[str, float]:
    """Return what true clips of other captions, in any style, get by luck."""
    generator = torch.Generator().manual_seed(_PROMPT_SEED + 1)
    order = torch.randperm(len(scenes), generator=generator)
    names = list(styles.STYLES)
    clips = torch.cat(
        [true_clips(scenes[i : i + 1], names[n % len(names)]) for n, i in enumerate(order.tolist())]
    )
    means = summary(score(clips, scenes, style))
    measured = measure.measure(clips)
    by_luck = (measured.heading == measured.motion.roll(1)).float().mean().item()
    return {k: means[k] for k in SHARES} | {"heading": by_luck}
