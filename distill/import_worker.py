"""What a decoding process of `data import` does; it needs no torch, and so starts at once."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from .video_folder import NO_CAPTION
from .video_reader import ClipShape, UnusableVideoError, read_clip


@dataclass(frozen=True)
class Task:
    """A video to read: everything that a worker needs."""

    file: Path
    caption: str
    shape: ClipShape
    where: float


def read(task: Task) -> np.ndarray | str:
    """Return a video's clip, uint8 (frames, h, w, 3), or why there is none; runs in a worker."""
    if not task.caption:
        return NO_CAPTION
    try:
        return read_clip(task.file, task.shape, task.where)
    except (UnusableVideoError, OSError) as error:
        return str(error)
