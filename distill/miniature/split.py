"""What training, choices and tables of the miniature may see: three disjoint parts.

Students train on the base models and captions of "train". Recipes and checkpoints are chosen on
those of "validation". "test" is what tables are measured on, and no choice has seen it. It was
fixed before the first student was trained; tests/test_miniature_split.py holds the configs to it.
"""

import functools
from typing import Literal

import torch

from . import world

Part = Literal["train", "validation", "test"]
Combination = tuple[int, int, int, int]  # indices of colour, kind, size and direction
BASES: dict[Part, tuple[str, ...]] = {
    "train": ("plain", "photo", "dusk", "toon", "ink", "pastel"),
    "validation": ("moss",),
    "test": ("neon", "wood"),
}
# the size does not count: a caption may leave it out, and must not be trained under the other
_VALIDATION = (
    ("red", "fish", "left"),
    ("yellow", "bird", "right"),
    ("green", "mouse", "up"),
    ("teal", "fish", "down"),
)
_TEST = (
    ("red", "fish", "up"),
    ("yellow", "bird", "down"),
    ("green", "mouse", "left"),
    ("teal", "fish", "right"),
    ("blue", "bird", "left"),
    ("blue", "bird", "up"),
    ("pink", "mouse", "right"),
    ("pink", "mouse", "down"),
)


@functools.cache
def combinations(part: Part) -> tuple[Combination, ...]:
    """Return the (colour, kind, size, direction) of a part; the parts make up all 144."""
    return tuple(
        (colour, kind, size, direction)
        for colour, colour_name in enumerate(world.COLOURS)
        for kind, kind_name in enumerate(world.KINDS)
        for size in range(len(world.SIZES))
        for direction, direction_name in enumerate(world.DIRECTIONS)
        if _part_of(colour_name, kind_name, direction_name) == part
    )


def draw_scenes(count: int, generator: torch.Generator, part: Part = "train") -> world.Scenes:
    """Draw scenes whose captions are all of a part."""
    return world.draw_scenes(count, generator, combinations(part))


def captions(part: Part) -> set[str]:
    """Return every caption of a part, with and without the size."""
    return {
        world.caption(colour, kind, direction, said)
        for colour, kind, size, direction in combinations(part)
        for said in (size, None)
    }


def _part_of(*words: str) -> Part:
    if words in _TEST:
        return "test"
    return "validation" if words in _VALIDATION else "train"
