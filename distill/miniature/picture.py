"""`miniature picture`: one caption in every style, a row each, as docs/miniature.md shows."""

from pathlib import Path

import torch
from torch.nn import functional

from ...motion_module import checkpoint
from ..files import clip_writer
from ..models.base_model import load_base, quiet_libraries
from ..models.latents import to_frames
from . import sample, shipped, styles, world

_ENLARGED = 4  # times, pixel by pixel
_GAP = 2  # pixels between frames, before enlarging


def draw_picture(caption: str, out: Path, seed: int, every: int = 2) -> Path:
    """Write a .png of `every`-th frames of the caption's clip in each style, and return it.

    Raises ValueError for a caption with words that the miniature does not know.
    """
    world.check_prompt(caption)
    quiet_libraries()
    module = checkpoint.load(shipped.motion_module()).build(dtype=torch.float32)
    rows = []
    for style in styles.STYLES:
        setting = sample.Setting(style, "", "euler", shipped.STEPS, shipped.cfg(), 1)
        base = load_base(shipped.base(style))
        clip = sample.sample_clips(base, module, [caption], setting, first_seed=seed)[0]
        rows.append(_row(clip[::every]))
    picture = torch.cat(rows, dim=1)  # c h w
    pixels = to_frames(picture).numpy()[None]
    pixels = pixels.repeat(_ENLARGED, axis=1).repeat(_ENLARGED, axis=2)
    return clip_writer.write_clip(out, pixels, fps=1)


def _row(frames: torch.Tensor) -> torch.Tensor:
    """Return frames (f, 3, h, w) side by side in white, (3, h, f w)."""
    framed = functional.pad(frames, (0, _GAP, 0, _GAP), value=1.0)
    return framed.permute(1, 2, 0, 3).flatten(2)
