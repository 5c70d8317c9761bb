"""Which frame is on show at which time."""

import itertools
from collections.abc import Iterable, Iterator
from typing import TypeVar

Frame = TypeVar("Frame")


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
