"""Which clips a training step sees: drawn, read and resized as a pure function of seed and step."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import torch

from ...video.container import UnusableVideoError
from ...video.reader import ClipShape
from ..data import video_folder, video_shards, walk

_DRAWS = 100  # unusable videos in a row before it is the data's fault
_CLIP, _NOISE = 0, 1  # streams of random numbers


class Videos(Protocol):
    """A set of captioned videos: VideoFolder or VideoShards."""

    @property
    def names(self) -> Sequence[str]: ...

    @property
    def captions(self) -> Sequence[str]: ...

    @property
    def bad(self) -> dict[str, str]: ...

    def read(self, index: int, shape: ClipShape, where: float) -> np.ndarray: ...


@dataclass(frozen=True)
class Clip:
    """Pixels, uint8 RGB (frames, height, width, 3), and the caption, empty where it is dropped."""

    pixels: np.ndarray
    caption: str


def open_videos(data: str, frames: int, fps: float) -> Videos:
    """Return the videos of a folder or of webdataset shards.

    Raises ValueError with one sentence where there is none that can be used.
    """
    shards = video_shards.find_tars(data)
    if shards:
        videos = video_shards.scan_shards(shards)
        if Path(data).is_dir():
            videos.bad.update(walk.list_beside_shards(Path(data)))
        return videos
    if not Path(data).is_dir():
        raise ValueError(
            f"--data {data} was not found; give a folder of videos, or shards such as "
            "clips-{0000..0003}.tar."
        )
    return video_folder.scan_folder(Path(data), frames, fps)


def draw_clip(
    videos: Videos, shape: ClipShape, no_caption: float, seed: int, step: int, sample: int
) -> Clip:
    """Return the clip of a sample of a step: any video, any start, now and then no caption.

    A video that turns out unusable is noted in `videos.bad`, and another one is drawn.
    """
    generator = np.random.default_rng((seed, step, sample, _CLIP))
    dropped = generator.random() < no_caption
    for _ in range(_DRAWS):
        index, where = int(generator.integers(len(videos.names))), generator.random()
        try:
            pixels = videos.read(index, shape, where)
        except UnusableVideoError as error:
            videos.bad[videos.names[index]] = str(error)
            continue
        return Clip(pixels, "" if dropped else videos.captions[index])
    raise ValueError(
        f"{_DRAWS} videos in a row are unusable; {video_folder.list_skipped(videos.bad)}"
    )


def noise_generator(seed: int, step: int, sample: int) -> torch.Generator:
    """Return the random numbers for a sample's timestep and noise, on any process the same."""
    entropy = np.random.SeedSequence((seed, step, sample, _NOISE))
    return torch.Generator().manual_seed(int(entropy.generate_state(1, np.uint64)[0]))
