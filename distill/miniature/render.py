"""Draws the miniature's clips: a sprite that faces its heading on a background that leans with it.

A single frame tells its motion (the sprite's heading, the slope of the light), as running looks
like running: a frozen image model hears a motion word only if one frame can show it.
"""

import colorsys

import torch
from torch import Tensor

from . import world
from .styles import Style
from .world import Scenes

_HEAD_FROM = 0.1  # of the body's half length: what is ahead of it is the head
_RIM = 0.75  # pixels


def render(
    scenes: Scenes, style: Style, generator: torch.Generator, moment: Tensor | None = None
) -> Tensor:
    """Return clips (n, frames, 3, 16, 16) in [-1, 1]; `generator` draws what a texture needs.

    `moment` (n,) asks for a single frame of each clip, that one.
    """
    centres = scenes.centres()
    if moment is not None:
        centres = centres[torch.arange(len(scenes)), moment][:, None]
    background = _background(scenes, style, generator)[:, None]  # n 1 3 h w
    body, head, rim = _coverages(scenes, centres, style)
    colours = _palette(style)[scenes.colour]  # n 3
    shade = style.rear + (1 - style.rear) * head
    sprite = colours[:, None, :, None, None] * shade[:, :, None]
    image = background.expand(-1, centres.shape[1], -1, -1, -1)
    if style.outline is not None:
        image = image + rim[:, :, None] * (style.outline - image)
    image = image + body[:, :, None] * (sprite - image)
    return image.clamp(0, 1) * 2 - 1


def shapes(u: Tensor, v: Tensor, kind: Tensor, softness: float, grow: float = 0.0) -> Tensor:
    """Return how much of each pixel a sprite covers, in [0, 1].

    u and v (n, f, h, w) are ahead of and beside the centre, in half body lengths; `grow` widens the
    sprite and `softness` blurs its edge, both in the same unit; `kind` (n,) indexes world.KINDS.
    """
    fish = torch.minimum(_ellipse(u, v, 1.0, 0.62), _wedge(u, v))
    bird = torch.minimum(_ellipse(u, v, 1.05, 0.42), _ellipse(u + 0.1, v, 0.42, 1.35))
    mouse = torch.minimum(_ellipse(u - 0.1, v, 0.8, 0.8), _bar(u, v))
    distance = torch.stack([fish, bird, mouse])[kind, torch.arange(len(kind))]
    return torch.sigmoid((grow - distance) / (softness / 2.5))


def to_body_axes(points: Tensor, centres: Tensor, direction: Tensor, length: Tensor):
    """Return u and v of pixels (h, w, 2) around centres (n, f, 2), in half body lengths."""
    along = torch.tensor(list(world.DIRECTIONS.values()))[direction]  # n 2
    offset = (points - centres[:, :, None, None]) / length[:, None, None, None, None]
    along = along[:, None, None, None]
    return (offset * along).sum(-1), (offset * along.flip(-1)).sum(-1)


def pixel_centres() -> Tensor:
    """Return x and y of the middle of every pixel, (16, 16, 2)."""
    middle = torch.arange(world.SIZE) + 0.5
    y, x = torch.meshgrid(middle, middle, indexing="ij")
    return torch.stack([x, y], dim=-1)


def lengths(size: Tensor) -> Tensor:
    """Return half body lengths in pixels of size indices."""
    return torch.tensor(list(world.SIZES.values()))[size]


def _coverages(scenes: Scenes, centres: Tensor, style: Style) -> tuple[Tensor, Tensor, Tensor]:
    """Return the body's, the head's and the rim's coverage, each (n, f, h, w)."""
    length = lengths(scenes.size)
    u, v = to_body_axes(pixel_centres(), centres, scenes.direction, length)
    softness = style.softness / length.mean().item()
    body = shapes(u, v, scenes.kind, softness)
    head = torch.sigmoid((u - _HEAD_FROM) / 0.12)
    rim = shapes(u, v, scenes.kind, softness, grow=_RIM / length.mean().item())
    return body, head, rim


def _palette(style: Style) -> Tensor:
    """Return the sprite colours of a style, (colours, 3), in [0, 1]."""
    return torch.tensor(
        [
            colorsys.hsv_to_rgb((degrees + style.hue) % 360 / 360, style.saturation, style.value)
            for degrees in world.COLOURS.values()
        ]
    )


def _background(scenes: Scenes, style: Style, generator: torch.Generator) -> Tensor:
    """Return the backgrounds (n, 3, h, w): the tint is even, all else is luminance."""
    along = torch.tensor(list(world.DIRECTIONS.values()))[scenes.direction]
    ahead = (pixel_centres() / world.SIZE * 2 - 1) @ along.T  # h w n
    luminance = style.luminance + style.lean * ahead.permute(2, 0, 1)
    luminance = luminance + style.depth * _texture(style.texture, len(scenes), generator)
    return luminance[:, None] + torch.tensor(style.tint)[None, :, None, None]


def _texture(name: str | None, count: int, generator: torch.Generator) -> Tensor:
    """Return a texture's luminance, about -1 to 1, (n, h, w) or (h, w)."""
    x, y = pixel_centres().unbind(-1)
    if name == "grain":  # still for the length of the clip
        return torch.randn(count, world.SIZE, world.SIZE, generator=generator)
    if name == "vignette":
        return -(((x / 8 - 1) ** 2 + (y / 8 - 1) ** 2) - 0.7)
    wave = {
        None: torch.zeros_like(x),
        "dots": torch.where((x.long() % 4 == 1) & (y.long() % 4 == 1), -2.0, 0.0),
        "rows": torch.where(y.long() % 4 < 2, 1.0, -1.0),
        "columns": torch.where(x.long() % 4 < 2, 1.0, -1.0),
        "checks": torch.where((x.long() // 2 + y.long() // 2) % 2 == 0, 1.0, -1.0),
    }
    return wave[name]


def _ellipse(u: Tensor, v: Tensor, a: float, b: float) -> Tensor:
    """Return an approximate signed distance to an ellipse, negative inside."""
    return (torch.sqrt((u / a) ** 2 + (v / b) ** 2 + 1e-9) - 1) * min(a, b)


def _wedge(u: Tensor, v: Tensor) -> Tensor:
    """Return the distance to a fish's tail: a wedge that opens backwards."""
    return torch.maximum(torch.maximum(-1.6 - u, u + 0.6), v.abs() - 0.75 * (-0.5 - u))


def _bar(u: Tensor, v: Tensor) -> Tensor:
    """Return the distance to a mouse's tail: a thin bar behind it."""
    return torch.maximum(torch.maximum(-1.9 - u, u + 0.5), v.abs() - 0.22)
