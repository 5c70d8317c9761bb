"""Reads the sound of a span of a video file; what is wrong with it never costs the picture."""

import contextlib
import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import av
import numpy as np
import torch

from .container import UnusableVideoError, open_video

# seconds decoded before the span: the first packets after a seek sound wrong, and where a file
# has no good index a seek leads too far
_PREROLLS = (0.2, 2.0, 16.0)
_GAP = 0.05  # seconds; timestamps in milliseconds stray by less, true gaps are longer
_SILENCE_RATE = 44100  # samples a second, of silence in place of a track


@dataclass(frozen=True)
class Sound:
    """AUDIO as the host has it: waveform (1, 1 or 2 channels, samples) float32, sample_rate."""

    audio: dict
    warnings: tuple[str, ...] = ()


def read_sound(path: Path, start: float, seconds: float) -> Sound:
    """Return the sound of exactly that span, silent where the file has none.

    `start` is on the clock of the file. The first track that can be decoded is taken; more than
    two channels are mixed down to stereo, all that the host can save.
    """
    indices = _list_tracks(path)
    for track in (_Track(path, index) for index in indices):
        samples = track.read(start, seconds)
        if samples is not None:
            audio = {"waveform": torch.from_numpy(samples)[None], "sample_rate": track.rate}
            return Sound(audio, track.warnings)
    silence = torch.zeros(1, 2, round(seconds * _SILENCE_RATE))
    problem = "its sound cannot be decoded" if indices else "it has no sound"
    return Sound(
        {"waveform": silence, "sample_rate": _SILENCE_RATE},
        (f"the audio of {path.name} is silence, since {problem}.",),
    )


def _list_tracks(path: Path) -> list[int]:
    try:
        with open_video(path) as container:
            return [stream.index for stream in container.streams.audio]
    except UnusableVideoError:  # an animated WebP
        return []


class _Track:
    """A sound track of a file; `rate` in samples a second is known once it is read."""

    def __init__(self, path: Path, index: int) -> None:
        self.path, self.index, self.rate = path, index, 0
        self._broken = 0  # packets of the last reading

    @property
    def warnings(self) -> tuple[str, ...]:
        if not self._broken:
            return ()
        packets = f"{self._broken} broken packet{'s' * (self._broken > 1)}"
        return (f"the sound of {self.path.name} has {packets}; it is silent there.",)

    def read(self, start: float, seconds: float) -> np.ndarray | None:
        """Return the samples (channels, n) of a span; None where nothing can be decoded at all."""
        samples: np.ndarray | None = None
        for time, chunk in self._chunks(start):
            if samples is None:
                samples = np.zeros((len(chunk), round(seconds * self.rate)), dtype=np.float32)
            place = round((time - start) * self.rate)
            _write_chunk(samples, chunk, place)
            if place + chunk.shape[1] >= samples.shape[1]:
                break
        return samples

    def _chunks(self, start: float) -> Iterator[tuple[float, np.ndarray]]:
        """Yield samples (1 or 2 channels, n), and when they begin on the clock of the file.

        They join without a seam unless the file leaves a gap.
        """
        resamplers: dict[tuple, av.AudioResampler] = {}  # broadcasts change what they send
        place: float | None = None  # of the next chunk
        layout = ""
        for frame in self._frames(start):
            if not layout:
                self.rate = frame.sample_rate
                layout = "mono" if frame.layout.nb_channels == 1 else "stereo"
            setup = frame.format.name, frame.layout.name, frame.sample_rate
            if setup not in resamplers:
                resamplers[setup] = av.AudioResampler("fltp", layout, self.rate)
            if place is None or (frame.time is not None and abs(frame.time - place) > _GAP):
                place = start if frame.time is None else frame.time
            for part in resamplers[setup].resample(frame):
                yield place, part.to_ndarray()
                place += part.samples / self.rate

    def _frames(self, start: float) -> Iterator[av.AudioFrame]:
        """Decode from a little before `start` on, or from the beginning."""
        for preroll in _PREROLLS:
            if start > preroll:
                frames = self._decode(start - preroll)
                first = next(frames, None)
                if first is not None and first.time is not None and first.time <= start:
                    return itertools.chain([first], frames)
        return self._decode(0.0)

    def _decode(self, start: float) -> Iterator[av.AudioFrame]:
        """Yield what can be decoded; what cannot be read from the file is the end."""
        self._broken = 0
        with open_video(self.path) as container, contextlib.suppress(av.error.FFmpegError):
            stream = next(s for s in container.streams.audio if s.index == self.index)
            if stream.codec_context is None:  # no decoder
                return
            if start > 0 and stream.time_base is not None:
                with contextlib.suppress(av.error.FFmpegError):
                    container.seek(int(start / stream.time_base), stream=stream)
            for packet in container.demux(stream):
                try:
                    yield from stream.decode(packet)
                except av.error.FFmpegError:
                    self._broken += 1


def _write_chunk(samples: np.ndarray, chunk: np.ndarray, place: int) -> None:
    first, last = max(place, 0), min(place + chunk.shape[1], samples.shape[1])
    if first < last:
        samples[:, first:last] = chunk[:, first - place : last - place]
