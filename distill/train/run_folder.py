"""What a distillation keeps in its folder: its config, checkpoints and finished students.

Every file is written under a temporary name and renamed, so that a kill at any instant leaves the
last good one.
"""

import pickle
import re
from dataclasses import dataclass
from pathlib import Path

import torch

from ...motion_module import checkpoint
from ...motion_module.files import atomic_path
from ...motion_module.module import MotionModule
from ..files import claim as folder_record
from ..models import student_files
from .config import TrainConfig

RUN = "run.json"
_NAME = re.compile(r"(\d+)-(\d+)-(\d+)\.pt")


@dataclass(frozen=True, order=True)
class Place:
    """How far a run is: the stage and the phase by index, and the iterations done in it."""

    stage: int
    phase: int
    iteration: int


class RunFolder:
    """The files of a run."""

    def __init__(self, root: Path) -> None:
        self.root = root

    @property
    def sheets(self) -> Path:
        return self.root / "sheets"

    def student(self, name: str) -> Path:
        """Return the file of a stage's finished student."""
        return self.root / student_files.FOLDER / f"{name}.safetensors"

    def claim(self, config: TrainConfig, pools: dict[str, str]) -> None:
        """Write down what is trained, or refuse the folder of something else with ValueError.

        pools: the digest of each pool. What may be otherwise than when the run was started: stages
        after the last that has left a checkpoint or a student, and, as the number of processes,
        how many clips go through a forward.
        """
        done = [i for i, stage in enumerate(config.stages) if self.student(stage.name).is_file()]
        begun = max([*done, *(place.stage for place in self.places())], default=-1) + 1
        told = config.fingerprint() | {"clips": pools}
        del told["clips_per_rank"]
        folder_record.claim(self.root / RUN, told, "a run", {"stages": begun})
        for folder in (self._checkpoints, self.root / student_files.FOLDER):
            for left in folder.glob(".*"):  # of a process that was killed while it wrote
                left.unlink(missing_ok=True)

    @property
    def is_claimed(self) -> bool:
        """Whether somebody has written down what is trained here."""
        return (self.root / RUN).is_file()

    def save(self, place: Place, content: dict, keep: int, sure: Place | None = None) -> Path:
        """Write a checkpoint, and remove all but the newest `keep`, and but the newest by `sure`.

        sure: where the run was certainly sound, the place itself by default.
        """
        file = self.file(place)
        with atomic_path(file) as temporary:
            torch.save(content, temporary)
        sound = self.newest(sure)
        for old in sorted(self.places())[:-keep]:
            if old != sound:
                self.file(old).unlink(missing_ok=True)
        return file

    def newest(self, by: Place | None = None) -> Place | None:
        """Return the place of the newest checkpoint, or of the newest no later than `by`."""
        return max((p for p in self.places() if by is None or p <= by), default=None)

    def file(self, place: Place) -> Path:
        """Return the file of a checkpoint."""
        return self._checkpoints / f"{place.stage}-{place.phase}-{place.iteration:08d}.pt"

    def load(self, place: Place) -> dict:
        """Read a checkpoint's content, on the CPU; ValueError where it is damaged."""
        file = self.file(place)
        try:
            return torch.load(file, map_location="cpu", weights_only=True)
        except (RuntimeError, EOFError, OSError, pickle.UnpicklingError) as error:
            raise ValueError(
                f"{file} is damaged; remove it, and the same command goes on from the one before."
            ) from error

    def places(self) -> list[Place]:
        """Return the places of all checkpoints."""
        names = (_NAME.fullmatch(f.name) for f in self._checkpoints.glob("*.pt"))
        return [Place(*map(int, name.groups())) for name in names if name]

    def save_student(self, name: str, module: MotionModule, metadata: dict[str, object]) -> Path:
        """Write a finished student in float32."""
        return checkpoint.save(module, self.student(name), metadata=metadata)

    @property
    def _checkpoints(self) -> Path:
        return self.root / "checkpoints"
