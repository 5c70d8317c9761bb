"""A run's finished students, and what their files record of how they were made."""

from pathlib import Path

from ...motion_module import checkpoint
from ...motion_module.checkpoint import MotionCheckpoint

FOLDER = "students"  # within a run's folder
METHODS = {
    "adversarial": "progressive adversarial distillation, AnimateDiff-Lightning, arXiv 2403.12706",
    "mse": "progressive distillation by MSE, without a discriminator",
    "distribution": "distribution matching over several base models, after DMD2, arXiv 2405.14867, "
    "and TDM, arXiv 2503.06674",
    "consistency": "consistency distillation as AnimateLCM's, arXiv 2402.00769",
}
RECORDED = (
    "teacher_steps",
    "iterations",
    "loss",
    "training",
    "bases",
    "frames",
    "global_batch",
    "seed",
    "norm_scope",
)


def files(run: Path) -> list[Path]:
    """Return the files of a run's finished students, by name."""
    return sorted((run / FOLDER).glob("[!.]*.safetensors"))


def students(run: Path) -> list[MotionCheckpoint]:
    """Return a run's finished students, most steps first.

    Raises ValueError where there is none, or one lacks what `train` writes into it.
    """
    paths = files(run)
    if not paths:
        raise ValueError(
            f"{run} holds no finished student; give the folder that `train` wrote, once its first "
            "stage is done."
        )
    return sorted((load_student(f) for f in paths), key=lambda student: -student.steps)


def load_student(file: Path) -> MotionCheckpoint:
    """Return a student; ValueError where its file lacks what `train` writes into it."""
    student = checkpoint.load(file)
    if (
        any(key not in student.metadata for key in RECORDED)
        or student.metadata["loss"] not in METHODS
    ):
        raise ValueError(
            f"{file} does not say how it was distilled; move it out of {file.parent}, or train "
            "it again with `train`."
        )
    return student
