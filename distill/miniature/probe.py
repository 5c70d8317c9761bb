"""A small video network that knows the miniature's world: its features are what FVD's I3D is there.

AnimateDiff-Lightning section 4.2 compares clips by FVD; the Kinetics network has never seen
sprites of 16 pixels, and this one is trained on true clips of every style.
"""

from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from ...motion_module.files import atomic_path
from ..engine import loop
from ..engine.loop import LoopOptions, LossOfStep
from . import render, stages, styles, world

FILE = Path(__file__).parent / "weights" / "probe.safetensors"
WIDTH = 48  # of the features
# a clip played backwards moves against its heading, so no single frame tells the motion
MOTIONS = (*world.DIRECTIONS, "still", "shuffled")
FACTORS = {
    "colour": len(world.COLOURS),
    "kind": len(world.KINDS),
    "size": len(world.SIZES),
    "motion": len(MOTIONS),
    "style": len(styles.STYLES),
}
LOOP = LoopOptions(4000, 3e-3, ema=0.995)
# shares of clips: as they are, backwards, still, shuffled
TREATMENTS = (0.5, 0.2, 0.15, 0.15)
UNTREATED = (1.0, 0.0, 0.0, 0.0)
_BATCH = 32
_CLIPS_AT_ONCE = 100
_OPPOSITE = (1, 0, 3, 2)  # of world.DIRECTIONS


class Probe(nn.Module):
    """Three strided convolutions over space and time, a layer of features, a head a factor."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv3d(3, 20, 4, stride=2, padding=1),
            nn.SiLU(),
            nn.Conv3d(20, 40, 3, stride=2, padding=1),
            nn.GroupNorm(4, 40),
            nn.SiLU(),
            nn.Conv3d(40, 56, 3, stride=2, padding=1),
            nn.GroupNorm(4, 56),
            nn.SiLU(),
            nn.Flatten(),
            nn.Linear(56 * 8, WIDTH),
            nn.SiLU(),
        )
        self.heads = nn.ModuleDict({k: nn.Linear(WIDTH, count) for k, count in FACTORS.items()})

    def features(self, clips: Tensor) -> Tensor:
        """Return the activations before the heads, (n, WIDTH), of clips (n, 16, 3, 16, 16)."""
        _check(clips)
        return self.body(clips.transpose(1, 2))  # n 3 f h w

    def forward(self, clips: Tensor) -> dict[str, Tensor]:
        """Return the logits of every factor, (n, classes)."""
        features = self.features(clips)
        return {name: head(features) for name, head in self.heads.items()}


@torch.inference_mode()
def features(clips: Tensor, probe: Probe | None = None) -> Tensor:
    """Return what the Frechet distance is taken of, (n, WIDTH), from clips in [-1, 1].

    clips: (n, 16, 3, 16, 16); probe: the shipped one by default. Raises ValueError for clips of
    another shape.
    """
    probe = probe or load_probe()
    return torch.cat([probe.features(c.float()) for c in clips.split(_CLIPS_AT_ONCE)])


@torch.inference_mode()
def predict(clips: Tensor, probe: Probe | None = None) -> dict[str, Tensor]:
    """Return the index of every factor that the probe sees, (n,) each; motion is of MOTIONS."""
    probe = probe or load_probe()
    outputs = [probe(c.float()) for c in clips.split(_CLIPS_AT_ONCE)]
    return {k: torch.cat([logits[k].argmax(1) for logits in outputs]) for k in FACTORS}


@lru_cache(maxsize=1)
def load_probe(file: Path = FILE) -> Probe:
    """Return the trained probe, in float32."""
    probe = Probe().requires_grad_(False).eval()
    probe.load_state_dict({k: t.float() for k, t in load_file(file).items()})
    return probe


def train_probe(folder: Path, seed: int = 0, options: LoopOptions = LOOP) -> Probe:
    """Train a probe from a seed, resumable in `folder`; see training_loop.train for its errors."""
    torch.manual_seed(seed)
    probe = Probe()
    loop.train_weights(
        "probe", stages.trainable(probe=probe), probe_loss(probe, seed), options, folder
    )
    return probe.requires_grad_(False).eval()


def save_probe(probe: Probe, file: Path = FILE) -> Path:
    """Write a probe as it ships, in float16."""
    with atomic_path(file) as temporary:
        save_file({k: t.half().contiguous() for k, t in probe.state_dict().items()}, temporary)
    return file


def probe_loss(probe: Probe, seed: int) -> LossOfStep:
    """Return the cross-entropy over all factors of a step's clips."""

    def of_step(step: int) -> Tensor:
        generator = stages.step_generator(seed, step)
        clips, labels = draw_clips(all_scenes(_BATCH, generator), generator, TREATMENTS)
        logits = probe(clips)
        losses = [nn.functional.cross_entropy(logits[k], labels[k]) for k in FACTORS]
        return sum(losses, start=torch.zeros(()))

    return of_step


def all_scenes(count: int, generator: torch.Generator) -> world.Scenes:
    """Draw scenes of every combination of factors, the held-out ones too.

    Without them colour and direction would tell the kind, and a judge is to look at the kind.
    """
    tables = (world.COLOURS, world.KINDS, world.SIZES, world.DIRECTIONS)
    colour, kind, size, direction = (
        torch.randint(len(t), (count,), generator=generator) for t in tables
    )
    says_size = torch.ones(count, dtype=torch.bool)
    return world.place(colour, kind, size, direction, says_size, generator)


def draw_clips(
    scenes: world.Scenes, generator: torch.Generator, treatments: Sequence[float] = UNTREATED
) -> tuple[Tensor, Mapping[str, Tensor]]:
    """Return clips of scenes in random styles, (n, 16, 3, 16, 16), and the index of every factor.

    treatments: the shares of clips left as they are, played backwards, still, and shuffled.
    """
    count = len(scenes)
    style = torch.randint(len(styles.STYLES), (count,), generator=generator)
    clips = torch.empty(count, world.FRAMES, 3, world.SIZE, world.SIZE)
    for index in style.unique().tolist():
        look = list(styles.STYLES.values())[index]
        clips[style == index] = render.render(scenes[style == index], look, generator)
    shares = torch.tensor(treatments, dtype=torch.float32)
    treatment = torch.multinomial(shares, count, replacement=True, generator=generator)
    clips, motion = _treat(clips, scenes.direction, treatment, generator)
    labels = {"colour": scenes.colour, "kind": scenes.kind, "size": scenes.size}
    return clips, labels | {"motion": motion, "style": style}


def _treat(
    clips: Tensor, direction: Tensor, treatment: Tensor, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Return clips with their frames in the order of their treatment, and the motion it makes."""
    order = _orders(len(clips), generator)[treatment, torch.arange(len(clips))]
    still, shuffled = (torch.full_like(direction, MOTIONS.index(m)) for m in MOTIONS[-2:])
    motions = torch.stack([direction, torch.tensor(_OPPOSITE)[direction], still, shuffled])
    rows = torch.arange(len(clips))
    return clips[rows[:, None], order], motions[treatment, rows]


def _orders(count: int, generator: torch.Generator) -> Tensor:
    """Return the order of frames of each treatment and clip, (4, count, frames)."""
    forwards = torch.arange(world.FRAMES).expand(count, -1)
    moment = torch.randint(world.FRAMES, (count, 1), generator=generator)
    shuffled = torch.rand(count, world.FRAMES, generator=generator).argsort(1)
    return torch.stack([forwards, forwards.flip(1), moment.expand_as(forwards), shuffled])


def _check(clips: Tensor) -> None:
    shape = (world.FRAMES, 3, world.SIZE, world.SIZE)
    if clips.ndim != 5 or tuple(clips.shape[1:]) != shape:
        raise ValueError(
            f"the probe wants clips of shape (n, {', '.join(map(str, shape))}), not "
            f"{tuple(clips.shape)}; generate {world.FRAMES} frames of the miniature."
        )
