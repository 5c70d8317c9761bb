"""Captions without clips, for students that walk from pure noise: the lines of a text file.

It is read like a pool of clips (latent_pool.py), whose latents are all zero.
"""

import hashlib
from pathlib import Path

import torch
from torch import Tensor

from ..sampling.request import read_prompts
from . import mirrored_captions
from .latent_pool import ClipRef, Shape, seeded


class PromptClip:
    """A caption in the place of a clip."""

    def __init__(self, caption: str, shape: Shape) -> None:
        self._caption, self._shape = caption, shape

    def oriented(self, flip: bool) -> tuple[Tensor, str]:
        """Return zeros (frames, channels, h, w), float32, and the caption, mirrored if `flip`."""
        caption = mirrored_captions.flipped(self._caption) if flip else self._caption
        return torch.zeros(self._shape), caption


class PromptPool:
    """All captions of a file, for clips of one shape (frames, channels, h, w).

    Raises ValueError, with one sentence, for a file that is missing or holds no prompt.
    """

    can_flip = True

    def __init__(self, file: Path, shape: Shape) -> None:
        self._prompts, self._shape = read_prompts(file), shape

    def __len__(self) -> int:
        return len(self._prompts)

    @property
    def shapes(self) -> set[Shape]:
        return {self._shape}

    def digest(self) -> str:
        """Return a short fingerprint of the captions."""
        return hashlib.sha256("\n".join(self._prompts).encode()).hexdigest()[:16]

    def group(self, number: int, size: int, seed: tuple[int, ...]) -> list[ClipRef]:
        """Return the n-th group of `size` captions: a pure function of its arguments.

        Every epoch has each caption once, in an order that is drawn from seed and epoch.
        """
        count = len(self._prompts)
        places = [divmod(place, count) for place in range(number * size, (number + 1) * size)]
        orders = {epoch: seeded(*seed, epoch).permutation(count) for epoch, _ in places}
        return [ClipRef(0, int(orders[epoch][within])) for epoch, within in places]

    def read(self, ref: ClipRef) -> PromptClip:
        """Return the caption at a place; any thread may."""
        return PromptClip(self._prompts[ref.clip], self._shape)
