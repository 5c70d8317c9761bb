"""What a user asks of `data generate`, and the fixed list of clips and shards that it means."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from ..sampling.request import ClipRequest

# these change where things run or lie, and not what comes out
_NOT_IN_FINGERPRINT = ("out", "device", "prompts", "tokenizer", "config")


@dataclass(frozen=True)
class DataRequest:
    """The clips that are wanted; holds the defaults of `data generate`.

    bases, motion_module: names as in named_models; sizes: (width, height) in pixels, dealt out to
    the clips in turn, none: the first base model's own; at_once: clips that go through the network
    together; tokenizer, config, prediction_type: as load_base takes them.
    """

    bases: tuple[str, ...]
    motion_module: str
    prompts: tuple[str, ...]
    out: Path
    clips_per_prompt: int = 1
    frames: int = 16
    sizes: tuple[tuple[int, int], ...] = ()
    steps: int = 32
    cfg: float = 7.5
    sampler: str = "dpmpp"
    seed: int = 0
    flip: bool = True
    shard_size: int = 64
    at_once: int = 1
    device: str = "auto"
    dtype: str = "auto"
    tokenizer: Path | None = None
    config: Path | None = None
    prediction_type: str | None = None

    def __post_init__(self) -> None:
        if not self.bases:
            raise ValueError("there is no base model; give --base, once for each.")
        for name in ("clips_per_prompt", "shard_size", "at_once"):
            if getattr(self, name) < 1:
                option = name.replace("_", "-")
                raise ValueError(f"--{option} must be at least 1, not {getattr(self, name)}.")
        for width, height in self.sizes or ((None, None),):
            self.clip(self.prompts[:1], self.seed, width, height)  # raises for what is impossible

    def __len__(self) -> int:
        """Return how many clips are wanted in all."""
        return len(self.bases) * len(self.prompts) * self.clips_per_prompt

    def clip(
        self, prompts: Sequence[str], seed: int, width: int | None, height: int | None
    ) -> ClipRequest:
        """Return what is asked of a single clip."""
        return ClipRequest(
            tuple(prompts),
            steps=self.steps,
            seed=seed,
            frames=self.frames,
            width=width,
            height=height,
            cfg=self.cfg,
            sampler=self.sampler,
            out=self.out / "clip.mp4",
        )

    def fingerprint(self) -> dict:
        """Return what the clips depend on, as JSON knows it."""
        told = {k: v for k, v in asdict(self).items() if k not in _NOT_IN_FINGERPRINT}
        words = hashlib.sha256("\n".join(self.prompts).encode()).hexdigest()[:16]
        return json.loads(json.dumps(told | {"prompts": words, "clips": len(self)}))


@dataclass(frozen=True)
class Clip:
    """A clip to make; its number among all is its name, and its seed is its own."""

    number: int
    base: str
    request: ClipRequest

    @property
    def key(self) -> str:
        return f"{self.number:08d}"

    @property
    def prompt(self) -> str:
        return self.request.prompts[0]


@dataclass(frozen=True)
class ShardPlan:
    """The numbers of the clips of a shard, all of one size."""

    number: int
    size: tuple[int, int]
    clips: range | tuple[int, ...]

    @property
    def name(self) -> str:
        return f"clips-{self.number:06d}.tar"


def plan(request: DataRequest, sizes: Sequence[tuple[int, int]]) -> list[ShardPlan]:
    """Cut the fixed list of clips into shards: first by size, then by base model and prompt."""
    shards: list[ShardPlan] = []
    for bucket, size in enumerate(sizes):
        # each base model starts one size later, or a prompt would always have the same
        numbers = [n for n in range(len(request)) if _bucket(request, n) % len(sizes) == bucket]
        for first in range(0, len(numbers), request.shard_size):
            clips = tuple(numbers[first : first + request.shard_size])
            shards.append(ShardPlan(len(shards), size, clips))
    return shards


def clip_of(request: DataRequest, number: int, size: tuple[int, int]) -> Clip:
    """Return the clip of a number in the list: bases outermost, then prompts, then repetitions."""
    base, rest = divmod(number, len(request.prompts) * request.clips_per_prompt)
    prompt = request.prompts[rest // request.clips_per_prompt]
    seed = int(np.random.SeedSequence((request.seed, number)).generate_state(1, np.uint64)[0] >> 1)
    return Clip(number, request.bases[base], request.clip((prompt,), seed, *size))


def _bucket(request: DataRequest, number: int) -> int:
    return number + number // (len(request.prompts) * request.clips_per_prompt)
