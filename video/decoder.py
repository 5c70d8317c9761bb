"""Decodes the picture of a video file frame by frame, past what is broken in it."""

from collections.abc import Callable, Generator, Iterable, Iterator
from dataclasses import replace
from fractions import Fraction

import av

from . import colour
from .container import (
    MAX_PIXELS,
    NO_FRAME,
    SETTLED,
    Source,
    Track,
    UnusableVideoError,
    open_video,
    read_packets,
    read_track,
    seek,
    to_seconds,
)
from .picture import Picture

Shown = tuple[float, float, Picture]  # from, until (seconds since the first frame), and what
_EARLIER = (0.0, 2.0, 16.0)  # seconds; where a file has no good index, a seek leads too far
_RATE = 25.0  # frames a second where a file tells neither rate nor times; FFmpeg's own


class Decoder:
    """The frames of one file, each with the seconds since the first, and how far they went."""

    def __init__(
        self, source: Source, name: str, on_frame: Callable[[], None] = lambda: None
    ) -> None:
        self.source, self.name, self.on_frame = source, name, on_frame
        self.track = self._read_track()
        self._tilted = False
        self._reset()

    def _reset(self) -> None:
        """Begin a reading."""
        self.end = 0.0  # where the last decoded frame ends
        self.ended = False  # no frame is left in the file
        self._broken = 0  # packets
        self._broken_end = 0.0  # where the last of them ends

    @property
    def warnings(self) -> tuple[str, ...]:
        """What was wrong with the frames that were read, or changed in them, in sentences."""
        told = []
        if self.track.transfer in colour.HDR:
            told.append(
                f"{self.name} is HDR ({colour.HDR[self.track.transfer]}); its brightness and "
                "colours were mapped to SDR."
            )
        if self._tilted:
            told.append(f"{self.name} is turned by an odd angle; the nearest right angle is used.")
        if self._broken:
            packets = f"{self._broken} broken packet{'s' * (self._broken > 1)}"
            told.append(f"{self.name} has {packets}; the frame before is shown for longer.")
        return tuple(told)

    @property
    def rate(self) -> float:
        """Frames a second, on average where they vary."""
        return self.track.rate or _RATE

    def frames(self, start: float = 0.0) -> Iterator[Shown]:
        """Yield (from, until, picture) in order, beginning at or before `start` seconds."""
        latest = start if self.track.has_index else start - SETTLED
        for earlier in _EARLIER:
            if start > earlier:
                shown = self._read(start - earlier)
                first = next(shown, None)
                if first is not None and first[0] <= latest and first[2].frame.key_frame:
                    yield first
                    yield from shown
                    return
                shown.close()
        # also where start is past the end
        yield from self._read(0.0)

    def check_complete(self, count: int, limit: float) -> None:
        """Raise UnusableVideoError where `count` frames are fewer than the file should have."""
        if count == 0 and self.end == 0:
            raise UnusableVideoError(*NO_FRAME)
        if count < limit and self.ended and not self.is_complete:
            place = f"cut off at {self.end:.2f} of {self.track.duration:.2f} s"
            raise UnusableVideoError(
                place,
                f"is {place}; copy it again, or set max_frames to {count} to use the part that is "
                "there.",
            )

    @property
    def is_complete(self) -> bool:
        """Whether the frames went to the end that the file tells; they are seldom exact."""
        slack = max(0.25, 0.05 * self.track.duration)
        return self.ended and self.end >= self.track.duration - slack

    def measure(self) -> float:
        """Return the duration in seconds: what the file says, or else where its packets end."""
        if self.track.duration:
            return self.track.duration
        return max(self._packet_ends(), default=0.0)

    def _read_track(self) -> Track:
        with open_video(self.source) as container:
            track = read_track(container)
        if track.has_exact_rate:
            return track
        self.track = track
        ends = self._packet_ends()
        end = max(ends, default=0.0)
        return replace(track, rate=len(ends) / end, duration=end) if end > 0 else track

    def _read(self, start: float) -> Generator[Shown, None, None]:
        """Yield the frames from the last point before `start` on where decoding can begin."""
        self._reset()
        with open_video(self.source) as container:
            stream = self._stream(container)
            stream.thread_type = "SLICE"  # threads for frames lose some beside a broken packet
            # pictures may grow in the middle of a file
            stream.codec_context.options = {"max_pixels": str(MAX_PIXELS)}
            if start > 0:
                seek(container, stream, self.track.origin + start)
            yield from self._time_frames(read_packets(container, stream))
        self.ended = True

    def _time_frames(self, packets: Iterable[av.Packet]) -> Iterator[Shown]:
        durations: dict[int | None, float] = {}  # by time, of packets whose frames are to come
        time = -self._usual_duration
        picture: Picture | None = None
        for packet in packets:
            durations[packet.pts] = to_seconds(packet.duration, packet.time_base)
            for frame in self._decode_packet(packet):
                self.on_frame()
                # a frame without a time of its own follows the one before
                stamp = frame.dts if frame.pts is None else frame.pts
                time = self._since_origin(stamp, frame.time_base, time + self._usual_duration)
                self.end = time + (durations.pop(frame.pts, 0.0) or self._usual_duration)
                picture = Picture(frame, self.track.pixel_aspect, self.track.transfer)
                self._tilted |= not picture.orientation.exact
                yield time, self.end, picture
        if picture is not None and self._broken_end > self.end:
            time, self.end = self.end, self._broken_end
            yield time, self.end, picture

    def _decode_packet(self, packet: av.Packet) -> list[av.VideoFrame]:
        """Return the frames that come out with a packet; none, and count it, where it is broken."""
        try:
            return packet.decode()
        except av.error.FFmpegError:
            self._broken += 1
            self._broken_end = max(self._broken_end, self._end_of(packet))
            return []

    def _packet_ends(self) -> list[float]:
        """Return when what is in each packet ends, in seconds."""
        ends = []
        with open_video(self.source) as container:
            for packet in read_packets(container, self._stream(container)):
                if packet.size:  # the last one only says that no more come
                    ends.append(self._end_of(packet))
        return ends

    def _end_of(self, packet: av.Packet) -> float:
        """Return when what is in a packet ends, in seconds; 0 where it does not say."""
        lasts = to_seconds(packet.duration, packet.time_base) or self._usual_duration
        stamp = packet.dts if packet.pts is None else packet.pts
        return self._since_origin(stamp, packet.time_base, -lasts) + lasts

    def _since_origin(self, ticks: int | None, unit: Fraction | None, without: float) -> float:
        """Return a time of the file in seconds since the first frame; `without` for None."""
        return without if ticks is None else to_seconds(ticks, unit) - self.track.origin

    @property
    def _usual_duration(self) -> float:
        """How long a frame lasts where the file does not say."""
        return 1 / self.rate

    def _stream(self, container: av.container.InputContainer) -> av.VideoStream:
        return next(s for s in container.streams.video if s.index == self.track.index)
