"""Packs a finished build, or a run's students, as the weights that ship, with their model card."""

import json
import shutil
from collections.abc import Collection, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from safetensors.torch import save_file

from ...motion_module import checkpoint
from ...motion_module.checkpoint import MotionCheckpoint
from ...motion_module.files import atomic_path
from ..engine.loop import training_minutes
from ..models.base_model import load_base
from ..models.student_files import load_student, students
from . import card, shipped, styles
from .build import Folders, teacher_cfg
from .recipe import MOTION_STAGE, RECIPES


def pack_build(
    build: Path, target: Path = shipped.WEIGHTS, names: Sequence[str] = tuple(styles.STYLES)
) -> Path:
    """Write a finished build's weights as they ship: in float16, with gates' figures and card.

    Raises ValueError, before anything is written, where a student in `target` is none of `train`'s.
    """
    folders, listed = Folders(build), _students_in(target)
    for style in names:
        made = load_base(folders.base(style))
        _save_half(made.unet, target / f"{style}.safetensors")
        if style == styles.F0:
            _save_half(made.text_encoder, target / shipped.TEXT_ENCODER)
            with atomic_path(target / shipped.VAE_CONFIG) as temporary:
                temporary.write_text(made.vae.to_json_string())
    minutes = {}
    for stage in (*names, MOTION_STAGE):
        took = training_minutes(folders.work(stage))
        if took is not None:
            minutes[stage] = round(took, 1)
    with atomic_path(target / card.MINUTES) as temporary:
        temporary.write_text(json.dumps(minutes, indent=1))
    module = checkpoint.load(folders.motion_module).build(dtype=torch.float16)
    metadata = {"family": "AnimateDiff (miniature)", "steps": 0, "cfg": teacher_cfg(folders)}
    checkpoint.save(module, target / shipped.MOTION_MODULE, metadata=metadata)
    for report in sorted((build / "gates").glob("*.json")):
        with atomic_path(target / "gates" / report.name) as temporary:
            shutil.copy(report, temporary)
    write_card(target, teacher_cfg(folders), listed)
    return target


def pack_students(
    run: Path, target: Path = shipped.WEIGHTS, steps: Collection[int] = ()
) -> list[Path]:
    """Write students of a distillation of the miniature as they ship, and the card anew.

    run: the folder that `train` wrote; steps: of the students to take, none: of all that there
    are. A consistency student is none of them: `generate` draws with Euler. Raises ValueError where
    the run lacks one of them, or a student does not tell its training, and then writes nothing.
    """
    finished = {s.steps: s for s in students(run) if s.metadata["loss"] != "consistency"}
    chosen = steps or [n for n in shipped.STUDENTS if n in finished] or shipped.STUDENTS
    if missing := [str(n) for n in chosen if n not in finished]:
        raise ValueError(f"{run} holds no student for {', '.join(missing)} steps; train it first.")
    new = [
        replace(student, path=target / shipped.student(n).name)
        for n, student in finished.items()
        if n in chosen
    ]
    listed = _students_in(target, new)
    for student in new:
        checkpoint.save(student.build(dtype=torch.float16), student.path, metadata=student.metadata)
    write_card(target, shipped.cfg(), listed)
    return [student.path for student in new]


def write_card(target: Path, teacher_cfg: float, listed: Sequence[MotionCheckpoint]) -> None:
    """Write the model card of the weights in a folder, with the students that it lists."""
    with atomic_path(target / "README.md") as temporary:
        temporary.write_text(
            card.format_card(RECIPES["full"], teacher_cfg, target, listed),
            encoding="utf-8",
        )


def _students_in(target: Path, new: Sequence[MotionCheckpoint] = ()) -> list[MotionCheckpoint]:
    """Return the students of a folder, `new` in place of those of the same file, most steps first.

    Raises ValueError for one that does not tell its training.
    """
    by_file = {s.path: s for s in new}
    files = [target / shipped.student(steps).name for steps in shipped.STUDENTS]
    return [by_file.get(f) or load_student(f) for f in files if f in by_file or f.is_file()]


def _save_half(module: torch.nn.Module, file: Path) -> None:
    tensors = {
        k: t.half().contiguous() for k, t in module.state_dict().items() if t.is_floating_point()
    }
    with atomic_path(file) as temporary:
        save_file(tensors, temporary)
