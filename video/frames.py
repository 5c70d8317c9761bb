"""The frames of a span of a video, even in time and of one size: what nodes and training share."""

import itertools
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

import numpy as np

from .animation import WebpDecoder
from .container import Source, check_readable, is_webp_source
from .decoder import Decoder
from .picture import Picture

Frame = TypeVar("Frame")


def open_decoder(source: Source, name: str, on_frame: Callable[[], None] = lambda: None) -> Decoder:
    """Return the decoder of a file; UnusableVideoError where it has no picture that moves.

    Its warnings call the file by `name`; `on_frame` is called for every decoded frame.
    """
    check_readable(source)
    kind = WebpDecoder if is_webp_source(source) else Decoder
    return kind(source, name, on_frame)


def render_frames(
    decoder: Decoder,
    fps: float,
    start: float,
    limit: float,
    choose_size: Callable[[Picture], tuple[int, int]],
) -> Iterator[np.ndarray]:
    """Yield uint8 RGB (height, width, 3) on show at start, start + 1 / fps, ...: at most `limit`.

    The first frame chooses the (width, height) of all. A frame that is shown again is the same
    array again.
    """
    last: Picture | None = None
    size = (0, 0)
    for picture in resample_frames(decoder.frames(start), fps, start, limit):
        if last is None:
            size = choose_size(picture)
        if picture is not last:
            last, pixels = picture, picture.render(size)
        yield pixels


def resample_frames(
    frames: Iterable[tuple[float, float, Frame]], fps: float, start: float, limit: float
) -> Iterator[Frame]:
    """Yield the frame on show at start, start + 1 / fps, ...: at most `limit`, to the end.

    `frames` are (from, until, frame). A change of frame counts from half a frame earlier, of the
    old frame or the new rate: equal rates give every frame once in spite of rounded timestamps.
    """
    count, begin, end = 0, 0.0, 0.0
    shown: Frame | None = None
    entries: Iterable[tuple[float, float, Frame] | None] = itertools.chain(frames, [None])
    for entry in entries:  # None: the end
        change = end if entry is None else entry[0]
        change -= max(0.0, 0.5 * min(1 / fps, change - begin))
        while shown is not None and start + count / fps < change:
            yield shown
            count += 1
            if count >= limit:
                return
        if entry is not None:
            begin, end, shown = entry
