"""Reads a part of a video as a clip through PyAV: even in time, resized, with its sound.

Files are decoded frame by frame, and nothing is kept but the frames that are returned.
"""

import math
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import av
import numpy as np
import torch

from .decoder import Decoder, open_video, read_pixels, read_track, resample_frames
from .size import choose_size, crop_and_resize
from .sound import read_sound

_HIGHEST_RATE = 300  # frames a second; recordings of browsers claim 1000
_BYTES_PER_VALUE = 5  # one as decoded, four as float; both live for a moment


@dataclass(frozen=True)
class ClipRequest:
    """Which frames are wanted, and how large; 0 leaves the choice to the file."""

    start: float = 0.0  # seconds
    max_frames: int = 0
    fps: float = 0.0
    width: int = 0
    height: int = 0


@dataclass(frozen=True)
class Clip:
    """Frames (frames, height, width, 3) in 0..1, their rate, and the sound of the same span."""

    images: torch.Tensor
    fps: float
    audio: dict | None


def read_clip(
    path: Path,
    request: ClipRequest,
    memory: float = math.inf,
    on_frame: Callable[[], None] = lambda: None,
) -> Clip:
    """Read a clip that fits into `memory` bytes; `on_frame` is called for every decoded frame.

    Raises ValueError with one sentence where the file or the request is no good.
    """
    with open_video(path) as container:
        track = read_track(container, path.name)
    fps = request.fps or _check_rate(track.rate, path.name)
    limit = request.max_frames or math.inf
    decoder = Decoder(path, track, track.rate or fps, on_frame)
    shown = resample_frames(decoder.frames(request.start), fps, request.start, limit)
    images = _collect_images(shown, track.pixel_aspect, request, memory, path.name)
    decoder.check_complete(request.start, len(images), limit)
    with open_video(path) as container:
        audio = read_sound(container, track.origin + request.start, len(images) / fps)
    return Clip(images, fps, audio)


def _check_rate(rate: float, name: str) -> float:
    if 0 < rate <= _HIGHEST_RATE:
        return rate
    raise ValueError(
        f"the frame rate of {name} is unknown (the file says {rate:g}); set fps, for example 24."
    )


def _collect_images(
    frames: Iterable[av.VideoFrame],
    pixel_aspect: float,
    request: ClipRequest,
    memory: float,
    name: str,
) -> torch.Tensor:
    """Convert the frames, each once, into one tensor (frames, height, width, 3)."""
    pictures: deque[np.ndarray] = deque()
    last: av.VideoFrame | None = None
    size: tuple[int, int] | None = None
    for frame in frames:
        if frame is not last:
            last, (pixels, aspect) = frame, read_pixels(frame, pixel_aspect)
            if size is None:
                own_height, own_width = pixels.shape[:2]
                size = choose_size(own_width * aspect, own_height, request.width, request.height)
            pixels = crop_and_resize(pixels, size, size[0] / size[1] / aspect)
        pictures.append(pixels)
        if len(pictures) * pixels.size * _BYTES_PER_VALUE > memory:
            height, width = pixels.shape[:2]
            raise ValueError(
                f"only {len(pictures) - 1} frames of {name} at {width}x{height} fit into "
                "memory; set max_frames or a smaller width and height."
            )
    images = torch.empty(len(pictures), *(pictures[0].shape if pictures else (0, 0, 3)))
    for image in images:
        image.copy_(torch.from_numpy(pictures.popleft()))
    return images.div_(255)
