"""Animated WebP, through Pillow: the FFmpeg of older hosts cannot read it."""

import io
import struct
from collections.abc import Iterator
from fractions import Fraction

import av
import numpy as np
from PIL import Image

from .container import DAMAGED, NO_FRAME, Track, UnusableVideoError, read_content
from .decoder import Decoder, Shown
from .picture import Picture

_SHORTEST, _USUAL = 0.011, 0.1  # seconds; browsers show frames of less for the usual time


class WebpDecoder(Decoder):
    """The frames of an animated WebP; transparency is left out, as in every other video."""

    def frames(self, start: float = 0.0) -> Iterator[Shown]:  # noqa: ARG002 - each builds on the last
        """Yield (from, until, picture) in order, from the first one on."""
        self._reset()
        try:
            with Image.open(io.BytesIO(read_content(self.source))) as image:
                for index, duration in enumerate(self._durations):
                    self.on_frame()
                    image.seek(index)
                    frame = av.VideoFrame.from_ndarray(np.asarray(image.convert("RGB")), "rgb24")
                    time, self.end = self.end, self.end + duration
                    yield time, self.end, Picture(frame)
        # nothing can be read behind it; PyAV refuses pictures that are millions of pixels high
        except (OSError, EOFError, av.error.FFmpegError) as error:
            if self.end == 0:
                raise UnusableVideoError(*DAMAGED) from error
            self._broken = 1
        self.ended = True

    def _read_track(self) -> Track:
        self._durations = list(_frame_durations(read_content(self.source)))
        if not self._durations:
            raise UnusableVideoError(*NO_FRAME)
        duration = sum(self._durations)
        return Track(0, 0.0, len(self._durations) / duration, duration, Fraction(1))


def _frame_durations(content: bytes) -> Iterator[float]:
    """Yield the seconds of each frame: the chunks ANMF of a RIFF file (RFC 9649, 2.7.1.1)."""
    place = 12
    while place + 8 <= len(content):
        kind, size = struct.unpack_from("<4sI", content, place)
        if kind == b"ANMF":
            seconds = int.from_bytes(content[place + 20 : place + 23], "little") / 1000
            yield _USUAL if seconds < _SHORTEST else seconds
        place += 8 + size + size % 2
