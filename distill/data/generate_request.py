"""What a user asks of `data generate`, and the fixed list of clips and shards that it means."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ..files.output import check_writable
from ..models.load_options import LoadOptions
from ..sampling.ranges import check_range
from ..sampling.settings import ClipSize, SamplingSettings, check_seed

RECORD = "generate.json"  # what a folder of clips was made from

# these change where things run or lie, and not what comes out
_NOT_IN_FINGERPRINT = ("out", "device", "prompts", "tokenizer", "config")


@dataclass(frozen=True)
class DataRequest(LoadOptions):
    """The clips to make; holds the defaults of `data generate`.

    bases, motion_module: names as in miniature/names.py; sizes: (width, height) in pixels, dealt
    out to the clips in turn, none: the first base model's own; at_once: clips that go through the
    network together.
    """

    bases: tuple[str, ...]
    motion_module: str
    prompts: tuple[str, ...]
    out: Path
    clips_per_prompt: int = 1
    frames: int = ClipSize.frames
    sizes: tuple[tuple[int, int], ...] = ()
    steps: int = 32
    cfg: float = 7.5
    sampler: str = "dpmpp"
    seed: int = 0
    flip: bool = True
    shard_size: int = 64
    at_once: int = 1

    def __post_init__(self) -> None:
        if not self.bases:
            raise ValueError("--base is missing; give at least one base model.")
        if not self.prompts:
            raise ValueError("there is no prompt; give --prompts, or --miniature-captions.")
        check_range("--clips-per-prompt", self.clips_per_prompt, 1)
        check_range("--shard-size", self.shard_size, 1)
        check_range("--at-once", self.at_once, 1)
        check_seed(self.seed)
        for width, height in self.sizes or ((None, None),):
            self.settings(width, height)  # raises for what is out of range
        check_writable(self.out / RECORD)

    def __len__(self) -> int:
        """Return how many clips are to be made in all."""
        return len(self.bases) * len(self.prompts) * self.clips_per_prompt

    def settings(self, width: int | None, height: int | None) -> SamplingSettings:
        """Return how clips of a size are sampled."""
        return SamplingSettings(
            frames=self.frames,
            width=width,
            height=height,
            steps=self.steps,
            cfg=self.cfg,
            sampler=self.sampler,
        )

    def fingerprint(self) -> dict:
        """Return what the clips depend on, as JSON knows it."""
        options = {k: v for k, v in self.as_record().items() if k not in _NOT_IN_FINGERPRINT}
        prompts = hashlib.sha256("\n".join(self.prompts).encode()).hexdigest()[:16]
        return json.loads(json.dumps(options | {"prompts": prompts, "clips": len(self)}))


@dataclass(frozen=True)
class PlannedClip:
    """A clip to make; its number among all is its name, and its seed is its own."""

    number: int
    base: str
    prompt: str
    seed: int
    settings: SamplingSettings

    @property
    def key(self) -> str:
        return f"{self.number:08d}"


@dataclass(frozen=True)
class ShardPlan:
    """The numbers of the clips of a shard, all of one size."""

    number: int
    size: tuple[int, int]
    clips: range | tuple[int, ...]

    @property
    def name(self) -> str:
        return f"clips-{self.number:06d}.tar"


def plan_shards(request: DataRequest, sizes: Sequence[tuple[int, int]]) -> list[ShardPlan]:
    """Cut the fixed list of clips into shards: first by size, then by base model and prompt."""
    shards: list[ShardPlan] = []
    for bucket, size in enumerate(sizes):
        # each base model starts one size later, or a prompt would always have the same
        numbers = [n for n in range(len(request)) if _bucket(request, n) % len(sizes) == bucket]
        for first in range(0, len(numbers), request.shard_size):
            clips = tuple(numbers[first : first + request.shard_size])
            shards.append(ShardPlan(len(shards), size, clips))
    return shards


def plan_clip(request: DataRequest, number: int, size: tuple[int, int]) -> PlannedClip:
    """Return the clip of a number in the list: bases outermost, then prompts, then repetitions."""
    base, rest = divmod(number, len(request.prompts) * request.clips_per_prompt)
    prompt = request.prompts[rest // request.clips_per_prompt]
    seed = _seed_of(request, number)
    return PlannedClip(number, request.bases[base], prompt, seed, request.settings(*size))


def _seed_of(request: DataRequest, number: int) -> int:
    import numpy as np  # the command line reads this file's defaults

    state = np.random.SeedSequence((request.seed, number)).generate_state(1, np.uint64)
    return int(state[0] >> 1)


def _bucket(request: DataRequest, number: int) -> int:
    return number + number // (len(request.prompts) * request.clips_per_prompt)
