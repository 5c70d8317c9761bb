"""Writes a clip of frames as .mp4, .gif or .webp, or as a .png contact sheet.

Files appear whole or not at all: they are written under a temporary name and renamed.
"""

import logging
import math
import os
from collections.abc import Sequence
from fractions import Fraction
from itertools import pairwise
from pathlib import Path

import av
import numpy as np
from PIL import Image

from ...motion_module.files import atomic_path

H264 = "libx264"
_FALLBACK = "mpeg4"
_BT709 = 1  # the code of matrix, primaries and transfer alike (ITU-T H.273)
_LIMITED_RANGE = 1
logger = logging.getLogger(__name__)


def write_clip(path: str | os.PathLike, frames: np.ndarray, fps: float) -> Path:
    """Write uint8 RGB frames (frames, height, width, 3) in the format of the extension.

    A .png holds all frames side by side. Raises ValueError for another extension or where the
    format cannot hold the clip.
    """
    path = Path(path)
    writers = {".mp4": _write_mp4, ".gif": _write_gif, ".webp": _write_webp, ".png": _write_png}
    writer = writers.get(path.suffix.lower())
    if writer is None:
        raise ValueError(
            f"the extension of {path.name} is not supported; use one of {', '.join(writers)}."
        )
    frames = np.ascontiguousarray(frames)
    with atomic_path(path) as temporary:
        writer(temporary, frames, fps)
    return path


def enlarge(frames: np.ndarray, at_least: int) -> np.ndarray:
    """Repeat pixels a whole number of times until the shorter side has `at_least` of them."""
    times = max(1, math.ceil(at_least / min(frames.shape[1:3])))
    return frames.repeat(times, axis=1).repeat(times, axis=2)


def contact_sheet(frames: np.ndarray) -> np.ndarray:
    """Lay frames (frames, height, width, 3) out row by row, near square; gaps are black."""
    count, height, width, _ = frames.shape
    columns = math.ceil(math.sqrt(count))
    rows = math.ceil(count / columns)
    cells = np.zeros((rows * columns, height, width, 3), np.uint8)
    cells[:count] = frames
    grid = cells.reshape(rows, columns, height, width, 3).swapaxes(1, 2)
    return grid.reshape(rows * height, columns * width, 3)


def rows(clips: Sequence[np.ndarray], at_most: int = 8) -> np.ndarray:
    """Lay out some frames of each clip (frames, height, width, 3) in a row of its own."""
    every = [max(1, len(clip) // at_most) for clip in clips]
    return np.concatenate(
        [np.concatenate(list(c[::n]), axis=1) for c, n in zip(clips, every, strict=True)]
    )


def frame_durations(count: int, fps: float, unit: int) -> list[int]:
    """Return how long each frame shows, in ms, as multiples of `unit` ms that do not drift."""
    ends = [round(i * 1000 / fps / unit) * unit for i in range(count + 1)]
    return [b - a for a, b in pairwise(ends)]


def _write_mp4(path: Path, frames: np.ndarray, fps: float) -> None:
    height, width = frames.shape[1:3]
    if height % 2 or width % 2:
        raise ValueError(f"an MP4 needs an even width and height, not {width}x{height}.")
    rate = Fraction(fps).limit_denominator(1001)
    with av.open(str(path), "w", format="mp4", options={"movflags": "+faststart"}) as container:
        stream = _video_stream(container, rate, width, height)
        for pixels in frames:
            image = av.VideoFrame.from_ndarray(pixels, format="rgb24")
            image = image.reformat(format="yuv420p", dst_colorspace="ITU709")
            container.mux(stream.encode(image))
        container.mux(stream.encode())


def _video_stream(
    container: av.container.OutputContainer, rate: Fraction, width: int, height: int
) -> av.VideoStream:
    codec = H264
    if codec not in av.codecs_available:
        codec = _FALLBACK
        logger.warning(
            "this PyAV has no %s encoder, so the clip is written as %s, which browsers may not "
            "play; install av from PyPI to get H.264.",
            H264,
            _FALLBACK,
        )
    options = {"crf": "17"} if codec == H264 else {"qscale": "2"}
    stream = container.add_stream(codec, rate=rate, options=options)
    assert isinstance(stream, av.VideoStream), "both codecs are of pictures"
    stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
    context = stream.codec_context
    context.colorspace = context.color_primaries = context.color_trc = _BT709
    context.color_range = _LIMITED_RANGE
    return stream


def _write_gif(path: Path, frames: np.ndarray, fps: float) -> None:
    durations = frame_durations(len(frames), fps, unit=10)
    first, *rest = (Image.fromarray(pixels) for pixels in frames)
    first.save(path, save_all=True, append_images=rest, duration=durations, loop=0, disposal=1)


def _write_webp(path: Path, frames: np.ndarray, fps: float) -> None:
    durations = frame_durations(len(frames), fps, unit=1)
    first, *rest = (Image.fromarray(pixels) for pixels in frames)
    first.save(
        path, save_all=True, append_images=rest, duration=durations, loop=0, quality=90, method=4
    )


def _write_png(path: Path, frames: np.ndarray, _fps: float) -> None:
    Image.fromarray(contact_sheet(frames)).save(path)
