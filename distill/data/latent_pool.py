"""The clips that base models draw from, read by their place: batches as pure functions of a number.

AnimateDiff-Lightning section 3.3: each base model has its own pool of clips. All clips of a group
have one shape, so that they go through the networks together; they come from any of its shards.
"""

import functools
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from . import latent_shards, mirrored_captions
from .latent_shards import Shape, Shard
from .url_cache import is_url

_WINDOW = 8  # shards behind URLs that are mixed with each other: each must be downloaded
_ORDERS = 16  # epochs of slots whose order is remembered


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


@dataclass(frozen=True)
class Bucket:
    """The clips of one shape: their shards' numbers, and how many clips each of these holds.

    weight: how often they are drawn, 1 for as often as there are clips.
    """

    shape: Shape
    shards: list[int]
    counts: list[int]
    weight: float

    @property
    def clips(self) -> int:
        return sum(self.counts)

    def groups(self, size: int) -> int:
        """Return how many groups of `size` clips an epoch has of them: one at least, or none."""
        full = self.clips // size
        return max(1, round(self.weight * full)) if full else 0


class ClipPool:
    """All clips of some shards: a folder, a file, a brace pattern, or URLs of url_cache.SCHEMES.

    weights: how often clips of a shape such as "16x4x64x64" are drawn, 1 for as often as there are
    clips. Raises ValueError, with one sentence, where shards are missing, damaged or hold no
    latents, and for a weight of a shape that no clip has.
    """

    def __init__(self, shards: str, weights: Mapping[str, float] | None = None) -> None:
        self._where = shards
        self._shards = latent_shards.open_shards(shards)
        self._window = _WINDOW if is_url(shards) else len(self._shards)
        self._buckets = self._by_shape(weights or {})
        self._order = functools.lru_cache(_ORDERS)(self._make_order)

    def _by_shape(self, weights: Mapping[str, float]) -> list[Bucket]:
        found = []
        for shape in sorted(self.shapes):
            numbers = [i for i, s in enumerate(self._shards) if s.shape == shape]
            counts = [len(self._shards[i]) for i in numbers]
            found.append(Bucket(shape, numbers, counts, weights.get(name_of(shape), 1.0)))
        names = [name_of(b.shape) for b in found]
        unknown = next((name for name in weights if name not in names), None)
        if unknown is not None:
            raise ValueError(
                f"{self._where} holds no clips of the shape {unknown}, which has a weight; its "
                f"shapes are {', '.join(names)}."
            )
        return found

    def __len__(self) -> int:
        return sum(len(s) for s in self._shards)

    @property
    def shapes(self) -> set[Shape]:
        """Every (frames, channels, h, w) that clips have."""
        return {s.shape for s in self._shards}

    @functools.cached_property
    def can_flip(self) -> bool:
        """Whether every clip is there in both orientations."""
        return all(s.can_flip for s in self._shards)

    def digest(self) -> str:
        """Return a short fingerprint of the shards' names, sizes, shapes and counts."""
        lines = [f"{s.name}\t{s.size}\t{s.shape}\t{len(s)}" for s in self._shards]
        return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:16]

    def group(self, number: int, size: int, seed: tuple[int, ...]) -> list[ClipRef]:
        """Return the n-th group of `size` clips of one shape: a pure function of its arguments.

        An epoch has as many groups of each shape as its clips and its weight ask for, in an order
        that is drawn from seed and epoch. A shape gives each of its clips once, but for the rest
        that fills no group, before it begins again. ValueError where no shape fills a group.
        """
        groups = [bucket.groups(size) for bucket in self._buckets]
        weighed = any(b.weight != 1 and not n for b, n in zip(self._buckets, groups, strict=True))
        if weighed or not any(groups):
            raise ValueError(self._too_few(size, weighed))
        epoch, within = divmod(number, sum(groups))
        turns = seeded(*seed, epoch).permutation(np.repeat(np.arange(len(groups)), groups))
        chosen = int(turns[within])
        earlier = epoch * groups[chosen] + int((turns[:within] == chosen).sum())
        round_, place = divmod(earlier, self._buckets[chosen].clips // size)
        order = self._order(chosen, (*seed, round_))
        return [ClipRef(int(s), int(c)) for s, c in order[place * size : (place + 1) * size]]

    def _make_order(self, number: int, seed: tuple[int, ...]) -> np.ndarray:
        """Return the (shard, clip) of every clip of a bucket, (n, 2), mixed from seed.

        Shards on this machine are all mixed with each other, those behind URLs a few at a time.
        """
        bucket = self._buckets[number]
        generator = seeded(*seed, 1 + number)  # apart from the order of turns
        order = generator.permutation(len(bucket.shards))
        parts = []
        for first in range(0, len(order), self._window):
            few = order[first : first + self._window]
            refs = [(bucket.shards[i], c) for i in few for c in range(bucket.counts[i])]
            parts.append(generator.permutation(np.array(refs, np.int32)))
        return np.concatenate(parts)

    def read(self, ref: ClipRef) -> LatentClip:
        """Return the clip at a place; any thread may."""
        return LatentClip(self._shards[ref.shard], ref.clip)

    def _too_few(self, size: int, weighed: bool) -> str:
        """Return that the largest shape, or one that has a weight, has too few clips."""
        several = [b for b in self._buckets if not weighed or (b.weight != 1 and b.clips < size)]
        most = max(several, key=lambda bucket: bucket.clips)
        shape = f" of one shape ({name_of(most.shape)})" if len(self._buckets) > 1 else ""
        return (
            f"{self._where} holds {most.clips} clips{shape}, but a batch needs {size}; make more "
            "clips, or lower global_batch."
        )


def name_of(shape: Shape) -> str:
    """Return a shape as `data stats` prints it, such as 16x4x64x64."""
    return "x".join(map(str, shape))


def seeded(*entropy: int) -> np.random.Generator:
    """Return random numbers that depend on whole numbers alone."""
    return np.random.default_rng(np.random.SeedSequence(entropy))
