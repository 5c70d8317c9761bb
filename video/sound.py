"""Reads the sound of a span of a video file."""

import av
import numpy as np
import torch

_PREROLL = 0.2  # seconds decoded before the span: the first packets after a seek sound wrong
_GAP = 0.05  # seconds; timestamps in milliseconds stray by less, true gaps are longer


def read_sound(container: av.container.InputContainer, start: float, seconds: float) -> dict | None:
    """Return AUDIO of exactly that span, silent where the file has none; None without a track.

    `start` is on the clock of the container. The waveform is (1, 1 or 2 channels, samples)
    float32; more channels are mixed down to stereo, all that the host can save.
    """
    stream = next(iter(container.streams.audio), None)
    if stream is None:
        return None
    layout = "mono" if stream.channels == 1 else "stereo"
    resampler = av.AudioResampler(format="fltp", layout=layout, rate=stream.rate)
    shape = (1 if layout == "mono" else 2, round(seconds * stream.rate))
    samples = np.zeros(shape, dtype=np.float32)
    if start > _PREROLL and stream.time_base is not None:
        container.seek(int((start - _PREROLL) / stream.time_base), stream=stream)
    place = None  # of the next chunk, in samples from start
    for frame in container.decode(stream):
        stamp = place or 0 if frame.time is None else round((frame.time - start) * stream.rate)
        # chunks join without a seam unless the file leaves a gap
        if place is None or abs(stamp - place) > _GAP * stream.rate:
            place = stamp
        for part in resampler.resample(frame):
            chunk = part.to_ndarray()
            _write_chunk(samples, chunk, place)
            place += chunk.shape[1]
        if place >= samples.shape[1]:
            break
    return {"waveform": torch.from_numpy(samples)[None], "sample_rate": stream.rate}


def _write_chunk(samples: np.ndarray, chunk: np.ndarray, place: int) -> None:
    first, last = max(place, 0), min(place + chunk.shape[1], samples.shape[1])
    if first < last:
        samples[:, first:last] = chunk[:, first - place : last - place]
