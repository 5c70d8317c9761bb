"""Reads short clips for training: even in time, centre-cropped, of one size; without torch."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from .container import NO_FRAME, Source, UnusableVideoError
from .decoder import Decoder
from .frames import open_decoder, render_frames


@dataclass(frozen=True)
class ClipShape:
    """What clips are cut to: frames, frames a second, and pixels."""

    frames: int
    fps: float
    width: int
    height: int


@dataclass(frozen=True)
class Extent:
    """How long a video is in seconds, and its frames a second."""

    duration: float
    rate: float

    def slack(self, frames: int, fps: float) -> float:
        """Return how many seconds later than the first a clip may start; below 0: too short."""
        # the last frame is shown for a while, too
        return self.duration - 0.5 / self.rate - (frames - 1) / fps

    def start(self, where: float, frames: int, fps: float) -> float:
        """Return when a clip starts, in seconds, on a frame; `where` is from 0 to 1."""
        return int(where * max(0.0, self.slack(frames, fps)) * self.rate) / self.rate


def probe_video(source: Source, frames: int, fps: float) -> Extent:
    """Return the extent of a video; UnusableVideoError unless a clip of it can begin."""
    decoder = open_decoder(source, "")
    if next(decoder.frames(), None) is None:
        raise UnusableVideoError(*NO_FRAME)
    return _read_extent(decoder, frames, fps)


def read_clip(
    source: Source,
    shape: ClipShape,
    where: float,
    warn: Callable[[str], None] = lambda _: None,
    name: str = "",
) -> np.ndarray:
    """Return a clip, uint8 RGB (frames, height, width, 3).

    `where`, from 0 to 1, chooses the start among all that leave room for the clip. `warn` is told
    in sentences what was changed, or could not be read, in the video of that `name`. Raises
    UnusableVideoError.
    """
    decoder = open_decoder(source, name or "the video")
    frames = _read_at(decoder, _read_extent(decoder, shape.frames, shape.fps), shape, where)
    if len(frames) < shape.frames and decoder.is_complete:  # a little shorter than it says
        frames = _read_at(decoder, Extent(decoder.end, decoder.rate), shape, where)
    if len(frames) < shape.frames:
        raise UnusableVideoError(f"decoding breaks off near {decoder.end:.2f} s")
    for sentence in decoder.warnings:
        warn(sentence)
    return np.stack(frames)


def _read_at(decoder: Decoder, extent: Extent, shape: ClipShape, where: float) -> list[np.ndarray]:
    """Return the frames of a clip, fewer where the video ends before."""
    start = extent.start(where, shape.frames, shape.fps)
    size = shape.width, shape.height
    return list(render_frames(decoder, shape.fps, start, shape.frames, lambda _: size))


def _read_extent(decoder: Decoder, frames: int, fps: float) -> Extent:
    extent = Extent(decoder.measure(), decoder.rate)
    if extent.slack(frames, fps) < 0:
        raise UnusableVideoError(
            f"too short: {extent.duration:.2f} s, but {frames / fps:.2f} s are needed"
        )
    return extent
