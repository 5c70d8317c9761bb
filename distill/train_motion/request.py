"""What a user asks of `train-motion`, checked before anything heavy is imported or read."""

import math
from dataclasses import dataclass
from pathlib import Path

from ..files.output import check_writable
from ..models.load_options import LoadOptions
from ..sampling.ranges import check_ranges
from ..sampling.settings import MAX_FPS, ClipSize

MAX_SEED = 2**63 - 1
# these change where things run or lie, and not what comes out
_NOT_IN_FINGERPRINT = (
    "out",
    "work",
    "device",
    "workers",
    "save_every",
    "save_dtype",
    "sample",
    "tokenizer",
    "config",
)
_RANGES = {
    "frames": (2, 1024),
    "fps": (0.1, MAX_FPS),
    "width": (8, 8192),
    "height": (8, 8192),
    "iterations": (1, 10**8),
    "batch": (1, 10**6),
    "accumulate": (1, 10**6),
    "learning_rate": (1e-9, 1),
    "warmup": (1, 10**8),
    "no_caption": (0, 1),
    "high_noise": (1, 10),
    "ema": (0, 0.999999),
    "clip": (1e-9, 1e9),
    "seed": (0, MAX_SEED),
    "save_every": (0, math.inf),
    "workers": (1, 256),
    "lora": (1, 1280),
    "lora_alpha": (1e-3, 1e4),
}


@dataclass(frozen=True)
class MotionRequest(LoadOptions):
    """A training of a motion module, or of a motion LoRA of rank `lora`; holds the defaults.

    lora_alpha: None for the rank; a LoRA is scaled by alpha / rank;
    data: folder or shards; batch: clips a step on all processes together, in `accumulate` parts;
    no_caption: share of clips trained without caption, for guidance; high_noise: see
    draw_timesteps; clip: largest norm of the gradient; save_every: seconds between checkpoints;
    work: where they lie. Raises ValueError, with one sentence, for anything out of range.
    """

    data: str
    base: Path
    out: Path
    motion_module: Path | None = None
    lora: int | None = None
    lora_alpha: float | None = None
    frames: int = ClipSize.frames
    fps: float = 8.0
    width: int | None = None
    height: int | None = None
    iterations: int = 2000
    batch: int = 4
    accumulate: int = 1
    learning_rate: float = 1e-4
    warmup: int = 50
    no_caption: float = 0.1
    high_noise: float = 1.0
    ema: float = 0.999
    clip: float = 1.0
    seed: int = 0
    save_every: float = 300.0
    work: Path | None = None
    workers: int = 2
    save_dtype: str = "float16"
    sample: str | None = None

    def __post_init__(self) -> None:
        check_ranges(self, _RANGES, prefix="--")
        self._check_files()
        if self.batch % self.accumulate:
            raise ValueError(
                f"--batch {self.batch} cannot be trained in {self.accumulate} equal parts; make "
                "it a multiple of --accumulate."
            )

    def _check_files(self) -> None:
        if self.lora is not None and self.motion_module is None:
            raise ValueError(
                "--lora needs --motion-module; give the motion module that the LoRA is for."
            )
        if self.lora_alpha is not None and self.lora is None:
            raise ValueError("--lora-alpha needs --lora; give the rank of the motion LoRA, too.")
        for what, file in (("base model", self.base), ("motion module", self.motion_module)):
            if file is not None and not file.exists():
                raise ValueError(f"the {what} {file} was not found.")
        if self.out.suffix != ".safetensors":
            raise ValueError(f"{self.out.name} must end in .safetensors.")
        check_writable(self.out)

    @property
    def what(self) -> str:
        return "motion module" if self.lora is None else "motion LoRA"

    @property
    def alpha(self) -> float:
        """The alpha of the motion LoRA that is trained."""
        assert self.lora is not None, "a motion module has no alpha"
        return self.lora if self.lora_alpha is None else self.lora_alpha

    @property
    def work_folder(self) -> Path:
        """Where the checkpoint lies while training."""
        return self.work or self.out.with_suffix(".training")

    def share(self, rank: int, processes: int) -> range:
        """Return the samples of a step that a process trains on.

        Raises ValueError where the batch cannot be shared out evenly.
        """
        if self.batch % (processes * self.accumulate):
            raise ValueError(
                f"--batch {self.batch} cannot be shared by {processes} processes in "
                f"{self.accumulate} parts each; make it a multiple of "
                f"{processes * self.accumulate}."
            )
        return range(rank, self.batch, processes)

    def fingerprint(self) -> dict[str, str]:
        """Return what the trained weights depend on, as text."""
        return {k: str(v) for k, v in self.as_record().items() if k not in _NOT_IN_FINGERPRINT}
