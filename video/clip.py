"""Reads a part of a video as a clip: even in time, resized, with its sound; knows no host.

Files are decoded frame by frame, and nothing is kept but the frames that are returned.
"""

import math
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import av
import torch

from . import decoder as video_file
from . import size as video_size
from . import sound as video_sound

_HIGHEST_RATE = 300  # frames a second; recordings of browsers claim 1000
_BYTES_PER_VALUE = 5  # one as decoded, four as float; both live for a moment


@dataclass(frozen=True)
class Request:
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


def read(
    path: Path,
    request: Request,
    memory: float = math.inf,
    on_frame: Callable[[], None] = lambda: None,
) -> Clip:
    """Read a clip that fits into `memory` bytes; `on_frame` is called for every decoded frame.

    Raises ValueError with one sentence where the file or the request is no good.
    """
    with video_file.opened(path) as container:
        track = video_file.read_track(container, path.name)
    fps = request.fps or _plausible(track.rate, path.name)
    limit = request.max_frames or math.inf
    decoder = video_file.Decoder(path, track, track.rate or fps, on_frame)
    shown = video_file.resample(decoder.frames(request.start), fps, request.start, limit)
    images = _collect(shown, track.pixel_aspect, request, memory, path.name)
    decoder.check(request.start, len(images), limit)
    with video_file.opened(path) as container:
        audio = video_sound.read(container, track.origin + request.start, len(images) / fps)
    return Clip(images, fps, audio)


def _plausible(rate: float, name: str) -> float:
    if 0 < rate <= _HIGHEST_RATE:
        return rate
    raise ValueError(
        f"{name} does not tell its frames per second (it says {rate:g}); set fps, for example 24."
    )


def _collect(
    frames: Iterable[av.VideoFrame],
    pixel_aspect: float,
    request: Request,
    memory: float,
    name: str,
) -> torch.Tensor:
    """Convert the frames, each once, into one tensor (frames, height, width, 3)."""
    pictures, last, size = deque(), None, None
    for frame in frames:
        if frame is not last:
            last, (pixels, aspect) = frame, video_file.read_pixels(frame, pixel_aspect)
            if size is None:
                width, height = pixels.shape[1] * aspect, pixels.shape[0]
                size = video_size.choose_size(width, height, request.width, request.height)
            pixels = video_size.crop_and_resize(pixels, size, size[0] / size[1] / aspect)
        pictures.append(pixels)
        if len(pictures) * pixels.size * _BYTES_PER_VALUE > memory:
            raise ValueError(
                f"{name} does not fit into memory beyond {len(pictures) - 1} frames of "
                f"{size[0]}x{size[1]}; set max_frames or a smaller width and height."
            )
    images = torch.empty(len(pictures), *(pictures[0].shape if pictures else (0, 0, 3)))
    for image in images:
        image.copy_(torch.from_numpy(pictures.popleft()))
    return images.div_(255)
