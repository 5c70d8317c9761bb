"""What a distillation keeps in its folder: its config, checkpoints and finished students.

Every file is written under a temporary name and renamed, so that a kill at any instant leaves the
last good one.
"""

import re
from dataclasses import dataclass
from pathlib import Path

import torch

from ...motion_module import checkpoint
from ...motion_module.files import atomic_path
from ...motion_module.module import MotionModule
from ..files import claim
from ..library_errors import one_sentence
from ..models import student_files
from .config import TrainConfig

RUN = "run.json"
FORMAT = 4  # of the record and of checkpoints; raise it when their names change
_NAME = re.compile(r"(\d+)-(\d+)-(\d+)\.pt")
_HALF_WRITTEN = re.compile(r"\..+-[a-z0-9_]{8}\.(pt|safetensors)")  # as atomic_path names them
CONTENT = (  # of a checkpoint, see PhaseTrainer.state_dict
    "student",
    "optimizer",
    "average",
    "best",
    "saturated_iterations",
    "skipped",
    "skipped_in_a_row",
    "critic",
    "critic_optimizer",
)


@dataclass(frozen=True, order=True)
class Place:
    """A place in a run: the stage and the phase by their indices, and a count within the phase.

    count: iterations that are done, or batches that were consumed before.
    """

    stage: int
    phase: int
    count: int

    @property
    def in_phase(self) -> tuple[int, int]:
        """The stage and the phase."""
        return self.stage, self.phase


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

        pools: the digest of each pool. Two things may differ from when the run was started: the
        stages after the last that has left a checkpoint or a student, and how many clips go
        through a forward, which like the number of processes changes nothing.
        """
        file = self.root / RUN
        if file.is_file() and claim.read_record(file).get("format") != FORMAT:
            raise ValueError(
                f"{self.root} holds a run of another version of this program; finish it with that "
                "version, or choose another --out."
            )
        done = [i for i, stage in enumerate(config.stages) if self.student(stage.name).is_file()]
        begun = max([*done, *(place.stage for place in self.places())], default=-1) + 1
        record = config.fingerprint() | {"clips": pools, "format": FORMAT}
        del record["clips_per_rank"]
        claim.claim(file, record, "a run", {"stages": begun})
        for folder in (self._checkpoints, self.root / student_files.FOLDER):
            if not folder.is_symlink():
                _remove_half_written(folder)

    @property
    def is_claimed(self) -> bool:
        """Whether somebody has written down what is trained here."""
        return (self.root / RUN).is_file()

    def save(
        self, place: Place, content: dict, keep: int, unsaturated: Place | None = None
    ) -> Path:
        """Write a checkpoint, and remove all others but the newest `keep` and the last sound one.

        unsaturated: the last place at which D was not saturated, None: this one; the newest
        checkpoint up to there is the last sound one.
        """
        file = self.file(place)
        with atomic_path(file) as temporary:
            torch.save(content, temporary)
        sound = self.newest(unsaturated)
        for old in sorted(self.places())[:-keep]:
            if old != sound:
                self.file(old).unlink(missing_ok=True)
        return file

    def newest(self, by: Place | None = None) -> Place | None:
        """Return the place of the newest checkpoint, or of the newest no later than `by`."""
        return max((p for p in self.places() if by is None or p <= by), default=None)

    def file(self, place: Place) -> Path:
        """Return the file of a checkpoint."""
        return self._checkpoints / f"{place.stage}-{place.phase}-{place.count:08d}.pt"

    def load(self, place: Place) -> dict:
        """Read a checkpoint's content, on the CPU; ValueError where it is damaged."""
        file = self.file(place)
        with one_sentence(str(file), "delete it, and the same command starts this stage again"):
            content = torch.load(file, map_location="cpu", weights_only=True)
            if not isinstance(content, dict) or not set(CONTENT) <= content.keys():
                raise ValueError("it does not hold what training saves")
            return content

    def set_aside(self, place: Place) -> Path:
        """Rename a damaged checkpoint, so that the one before is the newest; return its file."""
        file = self.file(place)
        return file.rename(file.with_name(f"{file.name}.damaged"))

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


def _remove_half_written(folder: Path) -> None:
    """Remove the files of processes that were killed while they wrote."""
    for file in folder.glob(".*"):
        if _HALF_WRITTEN.fullmatch(file.name):
            file.unlink(missing_ok=True)
