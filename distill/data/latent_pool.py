"""The clips that base models draw from, read by their place: batches as pure functions of a number.

AnimateDiff-Lightning section 3.3: each base model has its own pool of clips. All clips of a group
have one shape, so that they go through the networks together.
"""

import hashlib
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from . import latent_shards, mirrored_captions
from .latent_shards import Shard


@dataclass(frozen=True)
class ClipRef:
    """A clip's place in a pool: its shard, and its number in there."""

    shard: int
    clip: int


@dataclass(frozen=True)
class LatentClip:
    """A clip whose content is read when it is asked for."""

    shard: Shard
    clip: int

    def oriented(self, flip: bool) -> tuple[Tensor, str]:
        """Return latents (frames, channels, h, w), float32, and caption, both mirrored if `flip`.

        Raises ValueError where there are no flipped latents, or the file cannot be read.
        """
        latents, caption = self.shard.read(self.clip, flip)
        x0 = torch.from_numpy(latents).float()
        return x0, mirrored_captions.flipped(caption) if flip else caption


class ClipPool:
    """All clips of some shards: a folder, a file, a brace pattern, or URLs of shard_cache.SCHEMES.

    Raises ValueError, with one sentence, where shards are missing, damaged or hold no latents.
    """

    def __init__(self, shards: str) -> None:
        self._where = shards
        self._shards = latent_shards.open_shards(shards)
        self._counts = np.array([len(s) for s in self._shards])

    def __len__(self) -> int:
        return int(self._counts.sum())

    @property
    def shapes(self) -> set[tuple[int, int, int, int]]:
        """Every (frames, channels, h, w) that clips have."""
        return {s.shape for s in self._shards}

    @cached_property
    def can_flip(self) -> bool:
        """Whether every clip is there in both orientations."""
        return all(s.can_flip for s in self._shards)

    def digest(self) -> str:
        """Return a short fingerprint of the shards' names, sizes, shapes and counts."""
        lines = [f"{s.name}\t{s.size}\t{s.shape}\t{len(s)}" for s in self._shards]
        return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:16]

    def group(self, number: int, size: int, seed: tuple[int, ...]) -> list[ClipRef]:
        """Return the n-th group of `size` clips of one shape: a pure function of its arguments.

        In an epoch each shard gives every full group that it has, once; the order of shards and of
        clips in them is drawn from seed and epoch. ValueError where no shard has a full group.
        """
        full = self._counts // size
        if not full.any():
            raise ValueError(self._too_few(size))
        epoch, within = divmod(number, int(full.sum()))
        order = seeded(*seed, epoch).permutation(len(full))
        ends = np.cumsum(full[order])
        place = int(np.searchsorted(ends, within, side="right"))
        shard = int(order[place])
        first = (within - int(ends[place] - full[shard])) * size
        # the stream number keeps the clips' order apart from the shards'
        clips = seeded(*seed, epoch, 1 + shard).permutation(self._counts[shard])
        return [ClipRef(shard, int(clip)) for clip in clips[first : first + size]]

    def read(self, ref: ClipRef) -> LatentClip:
        """Return the clip at a place; any thread may."""
        return LatentClip(self._shards[ref.shard], ref.clip)

    def _too_few(self, size: int) -> str:
        if len(self) < size:
            return (
                f"{self._where} holds {len(self)} clips, but a batch needs {size}; make more "
                "clips, or lower global_batch."
            )
        return (
            f"no shard of {self._where} holds the {size} clips of a group (at most "
            f"{self._counts.max()}); make larger shards with --shard-size, or lower global_batch."
        )


def seeded(*entropy: int) -> np.random.Generator:
    """Return random numbers that depend on whole numbers alone."""
    return np.random.default_rng(np.random.SeedSequence(entropy))
