"""Reads a part of a video as a clip for the nodes: even in time, resized, with its sound.

Files are decoded frame by frame, and nothing is kept but the frames that are returned.
"""

import math
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from .container import UnusableVideoError
from .decoder import Decoder
from .frames import open_decoder, render_frames
from .picture import Picture
from .size import MAX_SIDE, choose_size
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
    """Frames (frames, height, width, 3) in 0..1, their rate, and the sound of the same span.

    `warnings` tell in sentences what was changed, or could not be read.
    """

    images: torch.Tensor
    fps: float
    audio: dict
    warnings: tuple[str, ...] = ()


def read_clip(
    path: Path,
    request: ClipRequest,
    memory: float = math.inf,
    on_frame: Callable[[], None] = lambda: None,
) -> Clip:
    """Read a clip that fits into `memory` bytes; `on_frame` is called for every decoded frame.

    Raises ValueError with one sentence where the file or the request is no good.
    """
    try:
        decoder = open_decoder(path, path.name, on_frame)
        fps = request.fps or _check_rate(decoder)
        images = _read_images(decoder, request, fps, memory)
    except UnusableVideoError as error:
        raise ValueError(f"{path.name} {error.sentence}") from error
    start, seconds = decoder.track.origin + request.start, len(images) / fps
    sound = read_sound(path, start, seconds, memory - images.nbytes)
    return Clip(images, fps, sound.audio, decoder.warnings + sound.warnings)


def _check_rate(decoder: Decoder) -> float:
    rate = decoder.track.rate
    if 0 < rate <= _HIGHEST_RATE:
        return rate
    raise ValueError(
        f"the frame rate of {decoder.name} is unknown (the file says {rate:g}); set fps, for "
        "example 24."
    )


def _read_images(decoder: Decoder, request: ClipRequest, fps: float, memory: float) -> torch.Tensor:
    """Return the frames (frames, height, width, 3) of a file that is complete as far as asked."""
    limit = request.max_frames or math.inf

    def size(first: Picture) -> tuple[int, int]:
        width, height = choose_size(*first.shape, request.width, request.height)
        if max(width, height) > MAX_SIDE:
            raise ValueError(
                f"the frames of {decoder.name} would have {width}x{height} pixels, but at most "
                f"{MAX_SIDE} are possible on a side; set both width and height."
            )
        return width, height

    frames = render_frames(decoder, fps, request.start, limit, size)
    images = _collect_images(frames, memory, decoder.name)
    if len(images) == 0 and decoder.end > 0:
        raise ValueError(
            f"start is {request.start:g} s, but {decoder.name} ends at {decoder.end:.2f} s; choose "
            "an earlier start."
        )
    decoder.check_complete(len(images), limit)
    return images


def _collect_images(frames: Iterable[np.ndarray], memory: float, name: str) -> torch.Tensor:
    """Convert the frames, each once, into one tensor (frames, height, width, 3)."""
    pictures: deque[np.ndarray] = deque()
    for pixels in frames:
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
