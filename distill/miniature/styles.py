"""How the miniature's styles look: six to train on, in three pools like the paper's, three unseen.

AnimateDiff-Lightning table 1: plain (WebVid), realistic and anime base models. Three more styles,
unlike those in palette, outline, texture and background, are never distilled on (split.py).
"""

from dataclasses import dataclass

F0 = "plain"  # the style of the first base model, on which the motion module is trained


@dataclass(frozen=True)
class Style:
    """A look. Colours are linear in [0, 1]; the background's tint has no luminance of its own.

    luminance: of the background; lean: how much brighter it gets toward the heading; tint: of the
    background (r, g, b); texture: None, "grain", "vignette", "dots", "rows", "columns" or
    "checks", with its depth; outline: luminance of a rim around the sprite, or None; saturation
    and value: of the sprite's palette; hue: degrees that the palette is turned; rear: how dark the
    sprite's rear is against its head; softness: of the sprite's edge in pixels.
    """

    pool: str
    luminance: float
    tint: tuple[float, float, float] = (0.0, 0.0, 0.0)
    lean: float = 0.11
    texture: str | None = None
    depth: float = 0.0
    outline: float | None = None
    saturation: float = 0.9
    value: float = 0.95
    hue: float = 0.0
    rear: float = 0.5
    softness: float = 0.45


STYLES = {
    "plain": Style("plain", 0.50),
    "photo": Style(
        "realistic",
        0.42,
        (0.07, 0.0, -0.07),
        texture="grain",
        depth=0.05,
        saturation=0.75,
        value=0.85,
        hue=4.0,
        softness=0.7,
    ),
    "dusk": Style(
        "realistic",
        0.27,
        (-0.06, -0.01, 0.07),
        texture="vignette",
        depth=0.12,
        saturation=0.75,
        value=0.8,
        hue=-6.0,
        softness=0.7,
    ),
    "toon": Style("anime", 0.76, (-0.06, 0.04, 0.02), outline=0.2, saturation=1.0),
    "ink": Style(
        "anime",
        0.80,
        texture="dots",
        depth=0.12,
        outline=0.15,
        saturation=0.95,
        value=0.85,
    ),
    "pastel": Style(
        "anime",
        0.66,
        (0.08, -0.07, -0.01),
        texture="rows",
        depth=0.10,
        saturation=0.75,
        hue=8.0,
        rear=0.65,
    ),
    "moss": Style(
        "unseen",
        0.34,
        (-0.08, 0.07, 0.01),
        texture="rows",
        depth=0.12,
        outline=0.8,
        saturation=0.9,
        hue=-8.0,
        rear=0.45,
    ),
    "neon": Style(
        "unseen",
        0.13,
        (0.04, -0.07, 0.03),
        texture="checks",
        depth=0.09,
        outline=0.95,
        saturation=1.0,
        value=1.0,
        hue=-10.0,
    ),
    "wood": Style(
        "unseen",
        0.38,
        (0.10, 0.0, -0.10),
        texture="columns",
        depth=0.14,
        outline=0.2,
        saturation=0.8,
        hue=10.0,
        rear=0.4,
    ),
}
