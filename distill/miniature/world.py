"""The miniature's world: what a clip shows, the words for it, and the path that they imply.

Every factor of a clip is drawn from a seed, is told by the caption and can be measured again in
the pixels (measure.py). A style (styles.py) changes the look of a clip and never its dynamics.
"""

import difflib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor

FRAMES = 16
SIZE = 16  # pixels, height and width
COLOURS = {"red": 0, "yellow": 58, "green": 118, "teal": 178, "blue": 232, "pink": 308}  # degrees
KINDS = {"fish": "swimming", "bird": "flying", "mouse": "running"}
SIZES = {"small": 2.1, "big": 2.8}  # half the length of the body in pixels
DIRECTIONS = {"left": (-1.0, 0.0), "right": (1.0, 0.0), "up": (0.0, -1.0), "down": (0.0, 1.0)}
MARGIN = 3.0  # nearest that a sprite's centre comes to an edge, in pixels
DISTANCES = (4.0, 9.0)  # pixels along the path in a whole clip, shortest and longest
GLIDE = 1.4  # amplitude in pixels of the curve that birds fly; the others go straight


@dataclass(frozen=True)
class Scenes:
    """A batch of clips' factors, each of shape (n,); `start` is (n, 2), x and y in pixels.

    colour, kind, size and direction index the tables above; `says_size` tells whether the caption
    names the size; `distance` is in pixels over the whole clip.
    """

    colour: Tensor
    kind: Tensor
    size: Tensor
    direction: Tensor
    says_size: Tensor
    start: Tensor
    distance: Tensor

    def __len__(self) -> int:
        return len(self.colour)

    def __getitem__(self, index: slice | Tensor) -> "Scenes":
        return Scenes(**{f.name: getattr(self, f.name)[index] for f in fields(self)})

    def captions(self) -> list[str]:
        """Return the caption of each clip, such as "a big red fish swimming left"."""
        words = zip(
            self.colour.tolist(),
            self.kind.tolist(),
            self.size.tolist(),
            self.direction.tolist(),
            self.says_size.tolist(),
            strict=True,
        )
        return [caption(c, k, d, s if says_size else None) for c, k, s, d, says_size in words]

    def centres(self, frames: int = FRAMES) -> Tensor:
        """Return where the centre is in each frame, (n, frames, 2), x and y in pixels."""
        return path(self.start, self.distance, self.direction, self.kind, frames)


def caption(colour: int, kind: int, direction: int, size: int | None = None) -> str:
    """Return the words for factors given by index; without a size the caption does not name one."""
    name = list(KINDS)[kind]
    adjectives = [list(SIZES)[size]] if size is not None else []
    return " ".join(
        ["a", *adjectives, list(COLOURS)[colour], name, KINDS[name], list(DIRECTIONS)[direction]]
    )


def path(start: Tensor, distance: Tensor, direction: Tensor, kind: Tensor, frames: int) -> Tensor:
    """Return positions (n, frames, 2) from `start` (n, 2): straight, or a glide for birds.

    A glide is one period of a sine across the direction, so that it ends on the straight line.
    """
    done = torch.linspace(0, 1, frames)
    along = torch.tensor(list(DIRECTIONS.values()))[direction]
    across = along.flip(-1).abs()  # downwards for left and right, rightwards for up and down
    amplitude = GLIDE * (kind == list(KINDS).index("bird"))
    straight = along[:, None] * (distance[:, None] * done)[..., None]
    glide = across[:, None] * (amplitude[:, None] * torch.sin(2 * math.pi * done))[..., None]
    return start[:, None] + straight + glide


def draw_scenes(
    count: int, generator: torch.Generator, combinations: Sequence[tuple[int, int, int, int]]
) -> Scenes:
    """Draw scenes of some (colour, kind, size, direction); split.draw_scenes knows which."""
    table = torch.tensor(combinations)
    pick = table[_integers(len(table), count, generator)]
    says_size = _uniform(count, generator) < 0.7
    colour, kind, size, direction = pick.T
    return place(colour, kind, size, direction, says_size, generator)


def scenes_of(captions: Sequence[str], generator: torch.Generator) -> Scenes:
    """Draw a scene that each caption tells (`tells_scene`); what it leaves out is drawn, too."""
    rows = [_read_caption(text) for text in captions]
    colour, kind, size, direction = torch.tensor(rows).T
    says_size = size >= 0
    drawn = _integers(len(SIZES), len(rows), generator)
    return place(colour, kind, torch.where(says_size, size, drawn), direction, says_size, generator)


def place(
    colour: Tensor,
    kind: Tensor,
    size: Tensor,
    direction: Tensor,
    says_size: Tensor,
    generator: torch.Generator,
) -> Scenes:
    """Draw where scenes start and how fast they go, so that they stay in the frame."""
    count = len(colour)
    shortest, longest = DISTANCES
    distance = shortest + (longest - shortest) * _uniform(count, generator)
    scenes = Scenes(colour, kind, size, direction, says_size, torch.zeros(count, 2), distance)
    reach = scenes.centres()
    low, high = MARGIN - reach.amin(1), SIZE - MARGIN - reach.amax(1)
    start = low + (high - low) * torch.rand(count, 2, generator=generator)
    return replace(scenes, start=start)


def tells_scene(text: str) -> bool:
    """Tell whether a caption names colour, animal and direction."""
    colour, kind, _size, direction = _read_caption(text)
    return min(colour, kind, direction) >= 0


def _read_caption(text: str) -> tuple[int, int, int, int]:
    """Return the indices of colour, kind, size and direction, -1 for what is not named."""
    words = text.split()

    def named(table: Mapping[str, object]) -> int:
        return next((i for i, name in enumerate(table) if name in words), -1)

    return named(COLOURS), named(KINDS), named(SIZES), named(DIRECTIONS)


def vocabulary() -> list[str]:
    """Return every word of the world."""
    return ["a", *SIZES, *COLOURS, *KINDS, *KINDS.values(), *DIRECTIONS]


def unknown_words(prompt: str) -> list[str]:
    """Return the words of a prompt that the miniature never heard, each once."""
    world_words = set(vocabulary())
    words = "".join(c if c.isalpha() else " " for c in prompt.lower()).split()
    return list(dict.fromkeys(w for w in words if w not in world_words))


def check_prompt(prompt: str) -> None:
    """Raise ValueError, which names the first word that the miniature never heard."""
    for word in unknown_words(prompt):
        near = nearest_word(word)
        raise ValueError(
            f"the miniature does not know the word {word!r}; "
            f"{f'did you mean {near!r}? ' if near else ''}it knows only {', '.join(vocabulary())}; "
            "for other prompts, pass --base and --motion-module."
        )


def nearest_word(word: str) -> str | None:
    """Return the known word that is spelt most like `word`, or None."""
    return next(iter(difflib.get_close_matches(word, vocabulary(), n=1)), None)


def _uniform(count: int, generator: torch.Generator) -> Tensor:
    return torch.rand(count, generator=generator)


def _integers(high: int, count: int, generator: torch.Generator) -> Tensor:
    return torch.randint(high, (count,), generator=generator)
