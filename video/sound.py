"""Reads the sound of a span of a video file; what is wrong with it never costs the picture."""

import itertools
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import av
import numpy as np
import torch

from .container import (
    SETTLED,
    UnusableVideoError,
    has_index,
    open_video,
    read_packets,
    seek,
)

_PREROLL = 0.2  # seconds decoded before the span: the first packets after a seek sound wrong
_PREROLLS = (_PREROLL, 2.0, 16.0)  # where a file has no good index, a seek leads too far
_GAP = 0.05  # seconds; timestamps in milliseconds stray by less, true gaps are longer
_SILENCE_RATE = 44100  # samples a second, of silence in place of a track


@dataclass(frozen=True)
class Sound:
    """AUDIO as the host has it: waveform (1, 1 or 2 channels, samples) float32, sample_rate."""

    audio: dict
    warnings: tuple[str, ...] = ()


def read_sound(path: Path, start: float, seconds: float, memory: float = math.inf) -> Sound:
    """Return the sound of exactly that span, silent where the file has none.

    `start` is on the clock of the file. The first track that can be decoded is taken; more than
    two channels are mixed down to stereo, all that the host can save. Raises ValueError where the
    samples do not fit into `memory` bytes.
    """
    tracks = _list_tracks(path)
    for track in tracks:
        samples = track.read(start, seconds, memory)
        if samples is not None:
            audio = {"waveform": torch.from_numpy(samples)[None], "sample_rate": track.rate}
            return Sound(audio, track.warnings)
    silence = torch.from_numpy(_silence(path.name, seconds, _SILENCE_RATE, 2, memory))[None]
    problem = "its sound cannot be decoded" if tracks else "it has no sound"
    return Sound(
        {"waveform": silence, "sample_rate": _SILENCE_RATE},
        (f"the audio of {path.name} is silence, since {problem}.",),
    )


class _Track:
    """A sound track of a file; `rate` in samples a second is known once it is read."""

    def __init__(self, path: Path, index: int, has_index: bool) -> None:
        self.path, self.index, self.has_index, self.rate = path, index, has_index, 0
        self._broken = 0  # packets of the last reading

    @property
    def warnings(self) -> tuple[str, ...]:
        if not self._broken:
            return ()
        packets = f"{self._broken} broken packet{'s' * (self._broken > 1)}"
        return (f"the sound of {self.path.name} has {packets}; it is silent there.",)

    def read(self, start: float, seconds: float, memory: float) -> np.ndarray | None:
        """Return the samples (channels, n) of a span; None where nothing can be decoded at all."""
        frames = self._frames(start)
        first = next(frames, None)
        if first is None:
            return None
        self.rate = first.sample_rate
        channels = 1 if first.layout.nb_channels == 1 else 2
        samples = _silence(self.path.name, seconds, self.rate, channels, memory)
        for time, chunk in self._chunks(itertools.chain([first], frames), start, channels):
            place = round((time - start) * self.rate)
            _write_chunk(samples, chunk, place)
            if place + chunk.shape[1] >= samples.shape[1]:
                break
        return samples

    def _chunks(
        self, frames: Iterable[av.AudioFrame], start: float, channels: int
    ) -> Iterator[tuple[float, np.ndarray]]:
        """Yield samples (channels, n), and when they begin on the clock of the file.

        They join without a seam unless the file leaves a gap.
        """
        layout = ("mono", "stereo")[channels - 1]
        resamplers: dict[tuple, av.AudioResampler] = {}  # broadcasts change what they send
        place: float | None = None  # of the next chunk
        for frame in frames:
            if frame.time is not None and frame.time < start - _PREROLL:
                continue
            setup = frame.format.name, frame.layout.name, frame.sample_rate
            if setup not in resamplers:
                resamplers[setup] = av.AudioResampler("fltp", layout, self.rate)
            if place is None or (frame.time is not None and abs(frame.time - place) > _GAP):
                place = start if frame.time is None else frame.time
            for part in self._resample(resamplers[setup], frame):
                yield place, part.to_ndarray()
                place += part.samples / self.rate

    def _resample(self, resampler: av.AudioResampler, frame: av.AudioFrame) -> list[av.AudioFrame]:
        try:
            return resampler.resample(frame)
        except av.error.FFmpegError:  # of channels that nobody knows
            self._broken += 1
            return []

    def _frames(self, start: float) -> Iterator[av.AudioFrame]:
        """Decode from a little before `start` on, or from the beginning."""
        latest = start if self.has_index else start - SETTLED
        for preroll in _PREROLLS:
            if start > preroll:
                frames = self._decode(start - preroll)
                first = next(frames, None)
                if first is not None and first.time is not None and first.time <= latest:
                    return itertools.chain([first], frames)
        return self._decode(0.0)

    def _decode(self, start: float) -> Iterator[av.AudioFrame]:
        """Yield what can be decoded."""
        self._broken = 0
        with open_video(self.path) as container:
            stream = next(s for s in container.streams.audio if s.index == self.index)
            if stream.codec_context is None:  # no decoder
                return
            if start > 0:
                seek(container, stream, start)
            for packet in read_packets(container, stream):
                try:
                    yield from stream.decode(packet)
                except av.error.FFmpegError:
                    self._broken += 1


def _list_tracks(path: Path) -> list[_Track]:
    try:
        with open_video(path) as container:
            indexed = has_index(container)
            return [_Track(path, stream.index, indexed) for stream in container.streams.audio]
    except UnusableVideoError:  # an animated WebP
        return []


def _silence(name: str, seconds: float, rate: int, channels: int, memory: float) -> np.ndarray:
    """Return zeros (channels, n); ValueError where they would not fit into `memory` bytes.

    NumPy's zeros take memory only once they are written to, and are contiguous, which an expanded
    zero is not: nodes that change or save sound would copy that one, or fail.
    """
    count = round(seconds * rate)
    size = channels * count * np.dtype(np.float32).itemsize
    if size > memory:
        raise ValueError(
            f"the loaded part of {name} lasts {seconds:.0f} s, and its sound of "
            f"{size / 1e6:.0f} MB does not fit into memory; set a smaller max_frames, or a higher "
            "fps."
        )
    return np.zeros((channels, count), np.float32)


def _write_chunk(samples: np.ndarray, chunk: np.ndarray, place: int) -> None:
    first, last = max(place, 0), min(place + chunk.shape[1], samples.shape[1])
    if first < last:
        samples[:, first:last] = chunk[:, first - place : last - place]
