"""Contact sheets while a distillation runs: student above teacher, at fixed prompts and seeds."""

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ...samplers import euler, schedule
from ..engine import distributed
from ..files import clip_writer
from ..miniature.names import base_path
from ..models.latents import decode_frames
from ..sampling.sample import initial_noise
from ..sampling.settings import ClipSize
from .config import TrainConfig
from .losses import Networks
from .student import MovingBase

_SMALLEST_SIDE = 256  # pixels of a sheet


def draw_sheets(config: TrainConfig, networks: Networks) -> dict[str, np.ndarray]:
    """Return a picture of each base model of this process that no earlier process has."""
    names = [networks.base_names[networks.base_index[slot]] for slot in networks.bases]
    held = distributed.gather(names)
    earlier = {name for names in held[: distributed.rank()] for name in names}
    by_name = dict(zip(names, networks.bases.values(), strict=True))
    mine = {name: base for name, base in by_name.items() if name not in earlier}
    return {name: draw_sheet(config, networks, base) for name, base in mine.items()}


def of_all_processes(drawn: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Return the pictures that all processes drew, by base model."""
    return {name: picture for part in distributed.gather(drawn) for name, picture in part.items()}


def short_name(base: str) -> str:
    """Return how a base model is called in a file's name."""
    return base_path(base).stem


@torch.no_grad()
def draw_sheet(config: TrainConfig, networks: Networks, moving: MovingBase) -> np.ndarray:
    """Return a picture, uint8 (height, width, 3): a prompt's student above its teacher.

    Prompt i has seed i.
    """
    stage = networks.stage
    teacher_steps = stage.teacher_steps_of(networks.phase)
    size = ClipSize(frames=config.frames, width=config.width, height=config.height)
    rows = []
    for seed, prompt in enumerate(config.sheet_prompts):
        generator = torch.Generator().manual_seed(seed)
        noise = initial_noise(moving.base, size, generator).to(moving.base.device)
        with networks.autocast():
            rows.append(_sample(moving, prompt, noise, stage.student_steps, 1.0))
            with moving.moved_by(networks.teacher):
                rows.append(_sample(moving, prompt, noise, teacher_steps, stage.cfg))
    return clip_writer.rows([decode_frames(moving.base, latents).numpy() for latents in rows])


def write_sheet(file: Path, picture: np.ndarray) -> Path:
    """Write a picture as PNG."""
    return clip_writer.write_clip(file, clip_writer.enlarge(picture[None], _SMALLEST_SIDE), fps=1)


def _sample(moving: MovingBase, prompt: str, noise: Tensor, steps: int, cfg: float) -> Tensor:
    """Return a clip's latents (frames, c, h, w)."""
    text, negative = moving.encode([prompt]), moving.encode([""])

    def predict_eps(x: Tensor, t: int) -> Tensor:
        times = torch.tensor([t], device=x.device)
        return moving.predict_guided(x, times, text, negative, cfg)

    return euler.sample(predict_eps, noise[None], schedule.trailing_timesteps(steps))[0]
