"""Decodes the picture of a video file frame by frame, with honest errors."""

import itertools
import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import TypeVar

import av
import numpy as np

# playlists are left out: they would read other files than the one that was chosen
_FORMATS = (
    "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,mpeg,mpegts,mpegvideo,flv,asf,ogg,mxf,dv,gif,"
    "mp3,wav,flac,aac"
)
_ATTACHED_PICTURE = 1 << 10  # AV_DISPOSITION_ATTACHED_PIC, the cover of a song
_NO_FRAME = "{} has no frames; copy or export it again."
Frame = TypeVar("Frame")


@contextmanager
def open_video(path: Path) -> Iterator[av.container.InputContainer]:
    """Open a file for reading; what PyAV cannot read becomes a ValueError of one sentence."""
    if path.stat().st_size == 0:
        raise ValueError(f"{path.name} is an empty file; copy or export it again.")
    try:
        with av.open(str(path), options={"format_whitelist": _FORMATS}) as container:
            yield container
    except av.error.EOFError as error:
        raise ValueError(_NO_FRAME.format(path.name)) from error
    except av.error.FFmpegError as error:
        raise ValueError(
            f"{path.name} is damaged, or is not a video that PyAV can read; if a player shows it, "
            "convert it to MP4 (H.264)."
        ) from error


@dataclass(frozen=True)
class Track:
    """What a file says about its picture."""

    index: int  # of the stream
    origin: float  # where the picture begins on the clock of the file, in seconds
    rate: float  # frames a second, on average where they vary; 0: not given
    duration: float  # in seconds; 0: not given
    pixel_aspect: float  # width of a pixel over its height


def read_track(container: av.container.InputContainer, name: str) -> Track:
    """Return what a file says about its first video; raises ValueError where it has none."""
    streams = [s for s in container.streams.video if not int(s.disposition) & _ATTACHED_PICTURE]
    if not streams:
        if container.streams.audio:
            raise ValueError(f"{name} has sound but no picture; load it with Load Audio.")
        raise ValueError(f"{name} has no picture; choose a video.")
    stream = streams[0]
    return Track(
        stream.index,
        _to_seconds(stream.start_time, stream.time_base),
        float(stream.average_rate or stream.guessed_rate or 0),
        _read_duration(stream),
        float(stream.sample_aspect_ratio or 1),
    )


def _read_duration(stream: av.VideoStream) -> float:
    if stream.duration:
        return _to_seconds(stream.duration, stream.time_base)
    written = stream.metadata.get("DURATION", "")  # Matroska: 00:00:01.033000000
    parts = re.fullmatch(r"(\d+):(\d+):(\d+\.?\d*)", written)
    if parts is None:
        return 0.0
    hours, minutes, seconds = map(float, parts.groups())
    return hours * 3600 + minutes * 60 + seconds


def _to_seconds(ticks: int | None, unit: Fraction | None) -> float:
    """Return a time that a file gives in units of its own; 0 where it gives none."""
    return float(ticks * unit) if ticks and unit else 0.0


class Decoder:
    """The frames of one file, each with the seconds since the first, and how far they went."""

    def __init__(self, path: Path, track: Track, rate: float, on_frame: Callable[[], None]) -> None:
        self.path, self.track, self.rate, self.on_frame = path, track, rate, on_frame
        self.end = 0.0  # where the last decoded frame ends
        self.ended = False  # no frame is left in the file

    def frames(self, start: float) -> Iterator[tuple[float, float, av.VideoFrame]]:
        """Yield (from, until, frame) in order, beginning at or before `start` seconds."""
        if start > 0:
            with open_video(self.path) as container:
                frames = self._decode(container, start)
                first = next(frames, None)
                if first is not None and first[0] <= start:
                    yield first
                    yield from frames
                    return
        # from the beginning, also where the file has no good index or start is past the end
        with open_video(self.path) as container:
            yield from self._decode(container)

    def check_complete(self, start: float, count: int, limit: float) -> None:
        """Raise ValueError where `count` frames are none, or fewer than the file should have."""
        name, duration = self.path.name, self.track.duration
        if count == 0 and self.end == 0:
            raise ValueError(_NO_FRAME.format(name))
        if count == 0:
            raise ValueError(
                f"start is {start:g} s, but {name} ends at {self.end:.2f} s; choose an earlier "
                "start."
            )
        slack = max(0.25, 0.05 * duration)  # files are seldom exact about their end
        if self.ended and count < limit and self.end < duration - slack:
            raise ValueError(
                f"{name} is cut off at {self.end:.2f} of {duration:.2f} s; copy it again, or set "
                f"max_frames to {count} to use the part that is there."
            )

    def _decode(
        self, container: av.container.InputContainer, start: float = 0.0
    ) -> Iterator[tuple[float, float, av.VideoFrame]]:
        stream = next(s for s in container.streams.video if s.index == self.track.index)
        stream.thread_type = "AUTO"
        time = -1 / self.rate
        try:
            if start > 0 and stream.time_base is not None:
                container.seek(int((self.track.origin + start) / stream.time_base), stream=stream)
            for frame in container.decode(stream):
                self.on_frame()
                # a frame without a time of its own follows the one before
                stamp = frame.time
                time = time + 1 / self.rate if stamp is None else stamp - self.track.origin
                lasts = _to_seconds(frame.duration, frame.time_base)
                self.end = time + (lasts or 1 / self.rate)
                yield time, self.end, frame
        except av.error.FFmpegError as error:
            if self.end == 0:
                raise
            raise ValueError(
                f"{self.path.name} is damaged after {self.end:.2f} s; copy or convert it again, "
                "or lower max_frames to stop before that."
            ) from error
        self.ended = True


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


def read_pixels(frame: av.VideoFrame, pixel_aspect: float) -> tuple[np.ndarray, float]:
    """Return RGB pixels (h, w, 3) turned as the camera was held, and what a pixel's aspect is."""
    quarters = round(frame.rotation / 90)  # counterclockwise
    pixels = np.rot90(frame.to_ndarray(format="rgb24"), quarters)
    return pixels, 1 / pixel_aspect if quarters % 2 else pixel_aspect
