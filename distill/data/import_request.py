"""What a user asks of `data import`, checked before anything heavy is imported or read."""

from dataclasses import dataclass
from pathlib import Path

from ..files.output import check_writable
from ..sampling.ranges import check_range
from ..sampling.settings import ClipSize, check_fps, check_seed

RECORD = "import.json"  # what a folder of clips was imported from


@dataclass(frozen=True)
class ImportRequest:
    """The videos and what becomes of them; holds the defaults of `data import`.

    table: CSV of captions, None: one in the folder, or NAME.txt beside NAME.mp4; base: whose VAE
    encodes; size: (width, height) in pixels, None: the base's own; workers: decoding processes.
    """

    videos: Path
    base: str
    out: Path
    table: Path | None = None
    frames: int = ClipSize.frames
    fps: float = 8.0
    size: tuple[int, int] | None = None
    flip: bool = True
    shard_size: int = 64
    seed: int = 0
    workers: int = 4
    device: str = "auto"
    tokenizer: Path | None = None

    def __post_init__(self) -> None:
        check_range("--shard-size", self.shard_size, 1)
        check_range("--workers", self.workers, 1)
        _ = self.clip_size  # raises for what is out of range
        check_fps(self.fps)
        check_seed(self.seed)
        check_writable(self.out / RECORD)
        if not self.videos.is_dir():
            raise ValueError(f"the folder of videos {self.videos} was not found.")

    @property
    def clip_size(self) -> ClipSize:
        """How large clips are, as far as the request says."""
        width, height = self.size or (None, None)
        return ClipSize(frames=self.frames, width=width, height=height)
