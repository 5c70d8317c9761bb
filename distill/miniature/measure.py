"""Measures the miniature's clips: every factor of the world, read from the pixels again.

A sprite differs from its background in chroma, since everything in a background but an even tint
is luminance. What is measured of generated clips is measured of true ones too: that is the ceiling.
"""

from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from . import render, split, styles, world

_FLOOR = 0.06  # chroma that is no sprite, at least
_FLOOR_OF_PEAK = 0.35
_FULL_OF_PEAK = 0.5  # the darker rear counts as covered too
_SHORTEST = 2.0  # pixels; less is no motion
_STRAY = 0.75  # pixels from the path, on average over the clip, that still follow it
_SPEED_TOLERANCE = 0.25
_STYLE_SAMPLES = 64


@dataclass(frozen=True)
class Measured:
    """What clips show, each (n,); -1 where a clip shows nothing clear.

    colour, kind, size, heading, motion and style are indices; jerk is in pixels; chroma is the
    peak against the background, 0 to about 0.8; grain is what differs within 2 x 2 pixels of the
    background, where -1 to 1 is black to white; centres (n, frames, 2) in pixels.
    """

    colour: Tensor
    kind: Tensor
    size: Tensor
    heading: Tensor
    motion: Tensor
    style: Tensor
    jerk: Tensor
    chroma: Tensor
    grain: Tensor
    centres: Tensor


def measure(clips: Tensor) -> Measured:
    """Measure clips (n, frames, 3, 16, 16) in [-1, 1]."""
    rgb = (clips.float().clamp(-1, 1) + 1) / 2
    strength = _chroma_offset(rgb).norm(dim=2)  # n f h w
    peak = strength.flatten(2).amax(-1)  # n f
    mass = (strength - (_FLOOR_OF_PEAK * peak).clamp(min=_FLOOR)[..., None, None]).clamp(min=0)
    centres = _centres(mass)
    heading = _heading(strength, mass)
    kind, size = _shape(strength, peak, heading)
    return Measured(
        colour=_colour(rgb, mass),
        kind=kind,
        size=size,
        heading=heading,
        motion=_motion(centres),
        style=_style(rgb, mass),
        jerk=_jerk(centres),
        chroma=peak.mean(1),
        grain=_grain(rgb * 2 - 1, mass),
        centres=centres,
    )


def follows_path(measured: Measured, scenes: world.Scenes) -> Tensor:
    """Tell which clips stay near the path that the caption and their own first frame imply, (n,).

    The speed is the one of the world's that fits best; near is 0.75 pixels on average.
    """
    start = measured.centres[:, 0]
    frames = measured.centres.shape[1]
    along = torch.tensor(list(world.DIRECTIONS.values()))[scenes.direction]
    gone = ((measured.centres - start[:, None]) * along[:, None]).sum(-1)  # n f
    done = torch.linspace(0, 1, frames)
    shortest, longest = world.DISTANCES
    distance = ((gone * done).sum(1) / (done * done).sum()).clamp(
        shortest * (1 - _SPEED_TOLERANCE), longest * (1 + _SPEED_TOLERANCE)
    )
    expected = world.path(start, distance, scenes.direction, scenes.kind, frames)
    return (measured.centres - expected).norm(dim=-1).mean(1) <= _STRAY


def _chroma_offset(rgb: Tensor) -> Tensor:
    """Return chroma (r, g, b less their mean) against the clip's usual, (n, f, 3, h, w)."""
    chroma = rgb - rgb.mean(2, keepdim=True)
    usual = chroma.transpose(1, 2).flatten(2).median(-1).values  # most pixels are background
    return chroma - usual[:, None, :, None, None]


def _centres(mass: Tensor) -> Tensor:
    points = render.pixel_centres()
    total = mass.flatten(2).sum(-1).clamp(min=1e-6)
    centres = torch.einsum("nfhw,hwc->nfc", mass, points) / total[..., None]
    seen = mass.flatten(2).sum(-1) > 0
    return torch.where(seen[..., None], centres, torch.tensor(world.SIZE / 2))


def _colour(rgb: Tensor, mass: Tensor) -> Tensor:
    """Return the colour nearest to that of the sprite itself, whatever the background's tint."""
    mean = torch.einsum("nfchw,nfhw->nc", rgb - rgb.mean(2, keepdim=True), mass)
    palette = torch.stack([render._palette(style) for style in styles.STYLES.values()]).mean(0)
    chroma = palette - palette.mean(1, keepdim=True)
    likeness = torch.nn.functional.cosine_similarity(mean[:, None], chroma[None], dim=-1)
    return _or_nothing(likeness.argmax(1), mass.flatten(1).sum(1) > 0)


def _heading(strength: Tensor, mass: Tensor) -> Tensor:
    """Return where the strong-coloured head lies from the middle of the sprite."""
    offset = (_centres(mass * strength**2) - _centres((mass > 0).float())).mean(1)
    return _direction(offset, threshold=0.05)


def _motion(centres: Tensor) -> Tensor:
    frames = centres.shape[1]
    time = torch.linspace(-0.5, 0.5, frames)
    slope = torch.einsum("nfc,f->nc", centres, time) / (time * time).sum()
    return _direction(slope, threshold=_SHORTEST)


def _direction(vectors: Tensor, threshold: float) -> Tensor:
    likeness = vectors @ torch.tensor(list(world.DIRECTIONS.values())).T
    return _or_nothing(likeness.argmax(1), likeness.amax(1) >= threshold)


def _jerk(centres: Tensor) -> Tensor:
    second = centres[:, 2:] - 2 * centres[:, 1:-1] + centres[:, :-2]
    return second.norm(dim=-1).mean(1)


def _shape(strength: Tensor, peak: Tensor, heading: Tensor) -> tuple[Tensor, Tensor]:
    """Return kind and size: of all that face the measured heading, the one that overlaps most."""
    covered = (strength / (_FULL_OF_PEAK * peak).clamp(min=_FLOOR)[..., None, None]).clamp(max=1)
    covered = (covered - _FLOOR_OF_PEAK).clamp(min=0) / (1 - _FLOOR_OF_PEAK)
    overlaps = torch.stack(
        [
            _overlap(covered, _template(kind, size, heading.clamp(min=0), _centres(covered)))
            for kind in range(len(world.KINDS))
            for size in range(len(world.SIZES))
        ],
        dim=1,
    )
    best = _or_nothing(overlaps.argmax(1), covered.flatten(1).sum(1) > 0)
    size = torch.where(best < 0, best, best % len(world.SIZES))
    return best.div(len(world.SIZES), rounding_mode="floor"), size


def _overlap(a: Tensor, b: Tensor) -> Tensor:
    """Return the intersection over the union of coverages (n, f, h, w), mean over frames."""
    both, either = torch.minimum(a, b).flatten(2).sum(-1), torch.maximum(a, b).flatten(2).sum(-1)
    return (both / either.clamp(min=1e-6)).mean(1)


def _template(kind: int, size: int, heading: Tensor, centres: Tensor) -> Tensor:
    """Return the coverage of such a sprite whose middle lies at `centres`, (n, f, h, w)."""
    count = len(heading)
    kinds, length = torch.full((count,), kind), render.lengths(torch.full((count,), size))

    def drawn(middles: Tensor) -> Tensor:
        u, v = render.to_body_axes(render.pixel_centres(), middles, heading, length)
        return render.shapes(u, v, kinds, 0.18)

    return drawn(2 * centres - _centres(drawn(centres)))


def _style(rgb: Tensor, mass: Tensor) -> Tensor:
    features, scale = _style_features(rgb, mass), _style_table()[1]
    distance = ((features[:, None] - _style_table()[0][None]) / scale).norm(dim=-1)
    return distance.argmin(1)


@lru_cache(maxsize=1)
def _style_table() -> tuple[Tensor, Tensor]:
    """Return the mean features of true clips of every style, and their spread within a style."""
    generator = torch.Generator().manual_seed(0)
    means, spreads = [], []
    for style in styles.STYLES.values():
        scenes = split.draw_scenes(_STYLE_SAMPLES, generator)
        clips = render.render(scenes, style, generator)
        rgb = (clips + 1) / 2
        strength = _chroma_offset(rgb).norm(dim=2)
        features = _style_features(rgb, (strength - _FLOOR).clamp(min=0))
        means.append(features.mean(0))
        spreads.append(features.std(0))
    return torch.stack(means), torch.stack(spreads).mean(0) + 0.01


def _style_features(rgb: Tensor, mass: Tensor) -> Tensor:
    """Return the background's luminance, chroma and texture, (n, 6)."""
    background = _background(mass)
    luminance = rgb.mean(2)
    chroma = (rgb - luminance[:, :, None]).transpose(1, 2).flatten(2).median(-1).values
    total = background.flatten(1).sum(1).clamp(min=1)
    mean = (luminance * background).flatten(1).sum(1) / total
    steps = []
    for axis in (2, 3):
        both = background.narrow(axis, 1, 15) * background.narrow(axis, 0, 15)
        jump = luminance.diff(dim=axis).abs() * both
        steps.append(jump.flatten(1).sum(1) / both.flatten(1).sum(1).clamp(min=1))
    return torch.stack([mean, *chroma[:, :3].T, *steps], dim=1)


def _background(mass: Tensor) -> Tensor:
    """Return 1 where nothing of a sprite is near, else 0, (n, f, h, w)."""
    return (torch.nn.functional.max_pool2d(mass, 5, 1, 2) == 0).float()


def _grain(clips: Tensor, mass: Tensor) -> Tensor:
    """Return the root mean square of what differs within blocks of 2 x 2 pixels of background."""
    blocks = _blocks(clips)  # n f c h/2 w/2 4
    rough = (blocks - blocks.mean(-1, keepdim=True)).square().mean((2, -1))
    flat = _blocks(_background(mass)[:, :, None]).amin((2, -1))
    return ((rough * flat).flatten(1).sum(1) / flat.flatten(1).sum(1).clamp(min=1)).sqrt()


def _blocks(images: Tensor) -> Tensor:
    return images.unflatten(-2, (-1, 2)).unflatten(-1, (-1, 2)).transpose(-3, -2).flatten(-2)


def _or_nothing(index: Tensor, clear: Tensor) -> Tensor:
    return torch.where(clear, index, torch.tensor(-1))
