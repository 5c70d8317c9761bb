"""Opens video files, and reads what they say about their picture."""

import contextlib
import io
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import BinaryIO

import av
from av.stream import Disposition

from . import kinds

Source = Path | bytes  # a file, or the content of one
# playlists are left out: they would read other files than the one that was chosen
_OPTIONS = {
    "format_whitelist": "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,mpeg,mpegts,mpegvideo,flv,asf,"
    "ogg,mxf,dv,gif,apng,mp3,wav,flac,aac",
    "protocol_whitelist": "file",
}

SETTLED = 1.0  # seconds; a stream of MPEG repeats its clock more often
MAX_PIXELS = 8192 * 8192  # of a picture; a few bytes of a file can claim gigabytes of pixels
_MAX_PIXEL_ASPECT = 20  # the widest pixels of any standard are about twice as wide as high


class UnusableVideoError(ValueError):
    """A video that no clip can be taken from.

    str() says why in a few words, such as "an empty file"; `sentence` says what to do, and goes
    on from the name of the file.
    """

    def __init__(self, reason: str, sentence: str = "") -> None:
        super().__init__(reason)
        self.sentence = sentence or f"cannot be used: {reason}."


NO_FRAME = ("no frame can be decoded", "has no frames; copy or export it again.")
DAMAGED = (
    "damaged, or not a video that PyAV can read",
    "is damaged, or is not a video that PyAV can read; if a player shows it, convert it to MP4 "
    "(H.264).",
)


@contextlib.contextmanager
def open_video(source: Source) -> Iterator[av.container.InputContainer]:
    """Open a file for reading; UnusableVideoError for what PyAV cannot read."""
    place = str(source.absolute()) if isinstance(source, Path) else io.BytesIO(source)
    try:
        # as `options`, PyAV 14 crashes where a file has no header, such as MPEG's
        container = av.open(place, "r", container_options=_OPTIONS, metadata_errors="replace")
    except av.error.EOFError as error:
        raise UnusableVideoError(*NO_FRAME) from error
    except av.error.FFmpegError as error:
        raise UnusableVideoError(*DAMAGED) from error
    with container:
        yield container


def read_packets(container: av.container.InputContainer, stream: av.stream.Stream) -> Iterator:
    """Yield the packets of a stream; what cannot be read from the file is the end."""
    # PyAV raises IndexError at the end of a file whose other streams began late
    with contextlib.suppress(av.error.FFmpegError, IndexError):
        yield from container.demux(stream)


def seek(container: av.container.InputContainer, stream: av.stream.Stream, seconds: float) -> None:
    """Go to a time on the clock of the file, or before it; stay where that cannot be done."""
    if stream.time_base is not None:
        with contextlib.suppress(av.error.FFmpegError, OverflowError):  # of 64 bits
            container.seek(math.floor(seconds / stream.time_base), stream=stream)


def has_index(container: av.container.InputContainer) -> bool:
    """Tell whether a seek leads where it should; otherwise times behind it are guesses at first."""
    return container.format.name not in ("mpeg", "mpegts", "mpegvideo")


def check_readable(source: Source) -> None:
    """Raise UnusableVideoError for an empty file, a still picture, and one that is too large."""
    with _open_source(source) as file:
        if not file.read(1):
            raise UnusableVideoError("an empty file", "is an empty file; copy or export it again.")
        file.seek(0)
        if kinds.is_still(file):
            raise UnusableVideoError(kinds.STILL, "is a still picture; load it with Load Image.")
        # before PyAV opens the file, which decodes the first picture of an animated PNG
        _check_pixels(*kinds.read_size(file))


def _check_pixels(width: int, height: int) -> None:
    if width * height > MAX_PIXELS:
        limit = f"{MAX_PIXELS / 1e6:.0f} megapixels"
        raise UnusableVideoError(
            f"its pictures of {width}x{height} have more than {limit}",
            f"has pictures of {width}x{height} pixels; make them smaller than {limit}.",
        )


def is_webp_source(source: Source) -> bool:
    """Tell whether a file is a WebP picture."""
    with _open_source(source) as file:
        return kinds.is_webp(file.read(12))


def read_content(source: Source) -> bytes:
    """Return all of a file."""
    with _open_source(source) as file:
        return file.read()


def _open_source(source: Source) -> BinaryIO:
    return source.open("rb") if isinstance(source, Path) else io.BytesIO(source)


@dataclass(frozen=True)
class Track:
    """What a file says about its picture."""

    index: int  # of the stream
    origin: float  # where the picture begins on the clock of the file, in seconds
    rate: float  # frames a second, on average where they vary; 0: not given
    duration: float  # in seconds; 0: not given
    pixel_aspect: Fraction  # width of a pixel over its height
    transfer: int = 0  # AVColorTransferCharacteristic, see colour.py
    has_exact_rate: bool = True
    has_index: bool = True


def read_track(container: av.container.InputContainer) -> Track:
    """Return what a file says about its first video; UnusableVideoError where it has none."""
    covers = Disposition.attached_pic  # of songs
    videos = [s for s in container.streams.video if covers not in s.disposition]
    if not videos:
        if container.streams.audio:
            advice = "has sound but no picture; load it with Load Audio."
            raise UnusableVideoError("sound but no picture", advice)
        raise UnusableVideoError("no picture", "has no picture; choose a video.")
    stream = next((s for s in videos if s.codec_context is not None), None)
    if stream is None:
        raise UnusableVideoError(*DAMAGED)
    _check_pixels(stream.codec_context.width, stream.codec_context.height)
    return Track(
        stream.index,
        to_seconds(stream.start_time, stream.time_base),
        float(stream.average_rate or stream.guessed_rate or 0),
        _read_duration(stream),
        _read_pixel_aspect(stream),
        int(stream.codec_context.color_trc),
        has_exact_rate=container.format.name != "apng",
        has_index=has_index(container),
    )


def _read_pixel_aspect(stream: av.VideoStream) -> Fraction:
    aspect = Fraction(stream.sample_aspect_ratio or 1)
    if not 1 <= _MAX_PIXEL_ASPECT * aspect <= _MAX_PIXEL_ASPECT**2:
        reason = f"its pixels have an impossible shape ({aspect.numerator}:{aspect.denominator})"
        advice = "convert it to MP4 (H.264) with square pixels"
        raise UnusableVideoError(reason, f"cannot be used, since {reason}; {advice}.")
    return aspect


def _read_duration(stream: av.VideoStream) -> float:
    if stream.duration:
        return to_seconds(stream.duration, stream.time_base)
    written = stream.metadata.get("DURATION", "")  # Matroska: 00:00:01.033000000
    parts = re.fullmatch(r"(\d{1,6}):(\d{1,2}):(\d{1,2}(?:\.\d{0,20})?)", written)
    if parts is None:
        return 0.0
    hours, minutes, seconds = map(float, parts.groups())
    end = hours * 3600 + minutes * 60 + seconds
    return max(0.0, end - to_seconds(stream.start_time, stream.time_base))


def to_seconds(ticks: int | None, unit: Fraction | None) -> float:
    """Return a time that a file gives in units of its own; 0 where it gives none."""
    return float(ticks * unit) if ticks and unit else 0.0
