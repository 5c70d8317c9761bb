"""The curves of a distillation: every iteration's figures as CSV and for tensorboard.

A run that goes on from a checkpoint drops the rows behind it and writes them again.
"""

import csv
import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from torch.utils.tensorboard import SummaryWriter

from ...motion_module.files import atomic_path
from ..library_errors import one_sentence
from .run_folder import Place

COLUMNS = (
    "stage",
    "phase",
    "iteration",
    "loss_d",
    "loss_g",
    "d_on_teacher",
    "d_on_student",
    "d_gap",
    "norm_d",
    "norm_g",
    "loss_fake",
    "norm_fake",
    "error_of_fake",
    "error_of_teacher",
    "mse",
    "skipped",
    "loss_g_by_base",
    "seconds",
    "peak_gib",
)


class Curves:
    """Writes what each iteration measured; used by the first process alone.

    loss_g is the student's loss of any kind; d_on_*: share of clips about which D is right; d_gap:
    how much higher its logit is where the teacher lands than where the student does from the same
    x_t. Clips differ far more from each other than a student from its teacher, so d_gap shows that
    D learns long before d_on_* leave a half. error_of_*: of distribution.py; skipped: updates
    of the phase that were left out, as their gradient was not finite; loss_g_by_base: on each base
    model, as JSON.
    """

    def __init__(self, folder: Path, resumed: Place) -> None:
        self.file = folder / "curves.csv"
        kept = self._rows_before(resumed)
        with atomic_path(self.file) as temporary, open(temporary, "w", newline="") as target:
            writer = csv.DictWriter(target, COLUMNS, lineterminator="\n")
            writer.writeheader()
            writer.writerows(kept)
        self._count = len(kept)
        self._target = self.file.open("a", newline="")
        self._writer = csv.DictWriter(self._target, COLUMNS, lineterminator="\n")
        self._board = SummaryWriter(str(folder / "tensorboard"), purge_step=len(kept))

    def add(self, place: Place, values: Mapping[str, float], by_base: Mapping[str, float]) -> None:
        """Write an iteration's figures, exactly as they were computed."""
        row = {"stage": place.stage, "phase": place.phase, "iteration": place.count}
        told = {name: repr(value) for name, value in values.items()}
        self._writer.writerow(row | told | {"loss_g_by_base": json.dumps(by_base)})
        self._target.flush()
        for name, value in values.items():
            self._board.add_scalar(name, value, self._count)
        for base, value in by_base.items():
            self._board.add_scalar(f"{base}/loss_g", value, self._count)
        self._count += 1

    def add_scalar(self, name: str, value: float) -> None:
        """Show a figure in tensorboard alone, at the iterations that are done."""
        self._board.add_scalar(name, value, self._count)

    def picture(self, name: str, frames: np.ndarray) -> None:
        """Show a picture, uint8 (height, width, 3)."""
        self._board.add_image(name, frames, self._count, dataformats="HWC")

    def close(self) -> None:
        self._target.close()
        self._board.close()

    def _rows_before(self, resumed: Place) -> list[dict[str, str]]:
        if not self.file.is_file():
            return []
        advice = "delete it; the run goes on without its earlier rows"
        with one_sentence(str(self.file), advice), self.file.open(newline="") as source:
            # a kill may leave half a line at the end
            rows = [row for row in csv.DictReader(source) if row.get("peak_gib")]
            if any(not row.keys() <= set(COLUMNS) for row in rows):
                raise ValueError("it has cells of other columns")
            return [row for row in rows if _place(row) < resumed]


def _place(row: Mapping[str, str]) -> Place:
    return Place(*(int(row[name]) for name in ("stage", "phase", "iteration")))
