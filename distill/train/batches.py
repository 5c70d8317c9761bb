"""Which clips a step trains on, and all randomness of each: pure functions of the step's number.

A global batch is a list of (slot, clip) pairs. Nothing depends on ranks or on the order of calls,
so the gradient of a step is the same on any number of processes (section 3.2 and table 1 of
AnimateDiff-Lightning for the slots).
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from ...samplers import prediction
from ..data.latent_pool import ClipPool, ClipRef
from ..data.prompt_pool import PromptPool
from . import trajectory
from .config import Phase, Stage, TrainConfig
from .run_folder import Place

T = TypeVar("T")
Pools = dict[str, ClipPool | PromptPool]
_CHOICE, _NOISE = 0, 1  # streams of random numbers


@dataclass(frozen=True)
class Draws:
    """The randomness of one sample.

    position: where on the schedule the student starts (1000 is T); renoise: t*, or what a landing
    of "distribution" is noised to, 0-based, or None.
    """

    flip: bool
    position: Fraction
    renoise: int | None
    drop_caption: bool


@dataclass(frozen=True)
class Batch:
    """Clips of one slot that go through the networks together.

    x_t, noise (clips, frames, c, h, w): the noised clips (pure noise for "distribution", whose
    student walks from there), and the fresh noise of t*; positions and renoise: one a clip;
    captions: emptied where they are dropped.
    """

    slot: int
    x_t: Tensor
    positions: tuple[Fraction, ...]
    captions: tuple[str, ...]
    renoise: tuple[int | None, ...]
    noise: Tensor

    def to(self, device: torch.device) -> "Batch":
        """Return the batch with its tensors on a device."""
        return replace(self, x_t=self.x_t.to(device), noise=self.noise.to(device))

    @property
    def timesteps(self) -> Tensor:
        """The timestep of each clip, 0-based, (clips,)."""
        return trajectory.timesteps(self.positions).to(self.x_t.device)


def share_out(config: TrainConfig, rank: int, world_size: int) -> list[tuple[int, range]]:
    """Return what a process trains on: (slot, samples of the slot), one a forward, in order.

    With at least as many processes as slots each holds one slot (rank modulo table), else it goes
    through several over the accumulation steps. ValueError where that does not divide evenly.
    """
    slots, samples, size = len(config.slots), config.clips_per_slot, config.clips_per_rank
    if config.global_batch % slots:
        raise ValueError(
            f"global_batch {config.global_batch} cannot be shared evenly by {slots} slots; "
            f"make it a multiple of {slots}."
        )
    if max(slots, world_size) % min(slots, world_size):
        raise ValueError(
            f"{slots} slots cannot be shared evenly by {world_size} processes; start a multiple or "
            f"a divisor of {slots}."
        )
    sharing = max(1, world_size // slots)  # processes that hold the same slot
    if samples % (sharing * size):
        raise ValueError(
            f"global_batch {config.global_batch} gives each slot {samples} clips, which cannot be "
            f"split evenly over {sharing} processes with clips_per_rank {size}; make it a multiple "
            f"of {slots * sharing * size}."
        )
    mine = list(range(rank // slots, samples, sharing))
    chunks = [mine[i : i + size] for i in range(0, len(mine), size)]
    return [
        (slot, range(chunk[0], chunk[-1] + 1, sharing))
        for chunk in chunks
        for slot in range(rank % slots, slots, world_size)
    ]


def choose_clips(config: TrainConfig, pools: Pools, place: Place, slot: int) -> Sequence[ClipRef]:
    """Return the clips of a slot for a batch, all of one shape, one for each of its samples."""
    seed = (config.seed, place.stage, place.phase, slot)
    pool = pools[config.slots[slot].pool]
    return pool.group(place.count, config.clips_per_slot, seed)


def make_batch(
    config: TrainConfig,
    pools: Pools,
    place: Place,
    slot: int,
    samples: Sequence[int],
) -> Batch:
    """Read and noise the clips of some samples of a slot, by their numbers in the slot."""
    pool, table = pools[config.slots[slot].pool], config.pools[config.slots[slot].pool]
    clips = choose_clips(config, pools, place, slot)
    stage = config.stages[place.stage]
    phase = stage.phases[place.phase]
    walks = stage.loss_of(phase) == "distribution"
    x_t, noises, all_draws, captions = [], [], [], []
    for sample in samples:
        choice, noise = (_random(config.seed, place, slot, sample, s) for s in (_CHOICE, _NOISE))
        draws = draw_sample(stage, phase, table.flip and pool.can_flip, choice)
        x0, caption = pool.read(clips[sample]).oriented(draws.flip)
        eps, fresh = (torch.randn(x0.shape, generator=noise) for _ in range(2))
        x_t.append(
            eps if walks else prediction.forward(x0, eps, trajectory.timestep(draws.position))
        )
        noises.append(fresh)
        all_draws.append(draws)
        captions.append("" if draws.drop_caption else caption)
    return Batch(
        slot,
        torch.stack(x_t),
        tuple(d.position for d in all_draws),
        tuple(captions),
        tuple(d.renoise for d in all_draws),
        torch.stack(noises),
    )


def draw_sample(stage: Stage, phase: Phase, may_flip: bool, generator: torch.Generator) -> Draws:
    """Draw what is random of a sample, but the noise; always as many numbers, in this order."""
    flip, start, renoise, caption = torch.rand(4, generator=generator, dtype=torch.float64).tolist()
    starts = trajectory.start_positions(stage)
    position = _weighted(starts, stage.timestep_weights, start)
    if stage.loss_of(phase) == "distribution":
        low, high = trajectory.noise_range(stage, position)
        noised_to: int | None = low + int(renoise * (high - low + 1))
    else:
        t_star = _weighted(stage.renoise, phase.renoise_weights, renoise) if stage.renoise else None
        noised_to = None if t_star is None else t_star - 1
    return Draws(
        flip=may_flip and flip < 0.5,
        position=position,
        renoise=noised_to,
        drop_caption=caption < stage.no_caption,
    )


def _weighted(values: Sequence[T], weights: Sequence[float], u: float) -> T:
    """Return the value at a uniform number's place among weighted ones, or equal ones."""
    edges = np.cumsum(weights or [1.0] * len(values))
    return values[int(np.searchsorted(edges, u * edges[-1], side="right"))]


def _random(seed: int, place: Place, slot: int, sample: int, stream: int) -> torch.Generator:
    entropy = (seed, place.stage, place.phase, place.count, slot, sample, stream)
    state = np.random.SeedSequence(entropy).generate_state(1, np.uint64)
    return torch.Generator().manual_seed(int(state[0]))
