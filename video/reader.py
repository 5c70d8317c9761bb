"""Reads short clips from video files through opencv: even in time, centre-cropped, of one size."""

import os
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import cv2
import numpy as np

from .size import crop_and_resize

VIDEO_EXTENSIONS = (".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi", ".mpg", ".mpeg", ".gif")
# what these print on a bad file would bury our own sentence about it
os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")
cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)


class UnusableVideoError(ValueError):
    """A video that no clip can be taken from; the message says why, in a few words."""


@dataclass(frozen=True)
class ClipShape:
    """What clips are cut to: frames, frames a second, and pixels."""

    frames: int
    fps: float
    width: int
    height: int


@dataclass(frozen=True)
class Extent:
    """How long a video is: its frames a second and their number."""

    rate: float
    frames: int

    def slack(self, frames: int, fps: float) -> float:
        """Return how many seconds later than the first a clip may start; below 0: too short."""
        # the last frame is shown for a while, too
        return (self.frames - 0.5) / self.rate - (frames - 1) / fps


def probe_video(path: Path, frames: int, fps: float) -> Extent:
    """Return the extent of a video; UnusableVideoError unless a clip of it can begin."""
    capture = _open(path)
    extent = Extent(capture.get(cv2.CAP_PROP_FPS), int(capture.get(cv2.CAP_PROP_FRAME_COUNT)))
    if not capture.read()[0]:
        raise UnusableVideoError("no frame can be decoded")
    if not 0 < extent.rate <= 1000:
        raise UnusableVideoError("its frame rate is unknown")
    if extent.frames <= 1:  # recordings of browsers do not say
        extent = Extent(extent.rate, 1 + sum(iter(lambda: int(capture.grab()), 0)))
    if extent.slack(frames, fps) < 0:
        raise UnusableVideoError(
            f"too short: {extent.frames / extent.rate:.2f} s, but {frames / fps:.2f} s are needed"
        )
    return extent


def read_clip(path: Path, shape: ClipShape, where: float) -> np.ndarray:
    """Return a clip, uint8 RGB (frames, height, width, 3).

    `where`, from 0 to 1, chooses the start among all that leave room for the clip. Each frame is
    the one nearest in time. Raises UnusableVideoError.
    """
    extent = probe_video(path, shape.frames, shape.fps)
    first = int(where * max(0.0, extent.slack(shape.frames, shape.fps)) * extent.rate)
    capture = _open(path)
    if first:
        capture.set(cv2.CAP_PROP_POS_FRAMES, first)
    frames = _read_nearest_frames(capture, shape, extent.rate)
    if len(frames) < shape.frames:
        raise UnusableVideoError(f"decoding breaks off near {first / extent.rate:.2f} s")
    return np.stack(frames)


def _read_nearest_frames(
    capture: cv2.VideoCapture, shape: ClipShape, rate: float
) -> list[np.ndarray]:
    """Decode on from where `capture` is, and repeat or leave out frames to match the rate."""
    frames: list[np.ndarray] = []
    origin, time = None, -1 / rate
    while len(frames) < shape.frames and capture.grab():
        stamp = capture.get(cv2.CAP_PROP_POS_MSEC) / 1000
        time = stamp if stamp > time else time + 1 / rate
        origin = time if origin is None else origin
        until = time - origin + 0.5 / rate + 1e-3  # timestamps are rounded, some to milliseconds
        repeats = sum(k / shape.fps <= until for k in range(len(frames), shape.frames))
        if repeats:
            frames += [_read_pixels(capture, shape)] * repeats
    return frames


def _read_pixels(capture: cv2.VideoCapture, shape: ClipShape) -> np.ndarray:
    ok, pixels = capture.retrieve()
    if not ok:
        raise UnusableVideoError("a frame cannot be decoded")
    size = shape.width, shape.height
    # a float may round the other way where half a pixel decides
    return cv2.cvtColor(crop_and_resize(pixels, size, Fraction(*size)), cv2.COLOR_BGR2RGB)


def _open(path: Path) -> cv2.VideoCapture:
    if path.stat().st_size == 0:
        raise UnusableVideoError("an empty file")
    capture = cv2.VideoCapture(str(path), cv2.CAP_FFMPEG)
    if not capture.isOpened():
        raise UnusableVideoError("damaged, or not a video that opencv can read")
    return capture
