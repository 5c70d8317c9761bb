"""The miniature's trained weights, as they ship with the package, and how they get there.

Shared parts are stored once; a base model is assembled as an ordinary diffusers folder in the
cache when it is first asked for.
"""

import hashlib
import shutil
from collections.abc import Collection, Sequence
from dataclasses import replace
from functools import lru_cache
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from ...motion_module import checkpoint
from ...motion_module.checkpoint import MotionCheckpoint
from ...motion_module.files import atomic_path
from ..files.cache import cache_folder, made_once
from ..models.base_model import load_base
from ..train.export import load_student, students
from . import card, models, styles
from .build import Folders, teacher_cfg
from .recipe import RECIPES

WEIGHTS = Path(__file__).with_name("weights")
PREFIX = "miniature:"
STEPS = 32  # how the undistilled motion module is sampled best
STUDENTS = (8, 4, 2, 1)  # step counts of the distilled motion modules
DEFAULT_STUDENT = 4
_TEXT = "text_encoder.safetensors"
_MOTION = "motion_module.safetensors"


def base(style: str = styles.F0) -> Path:
    """Return the diffusers folder of a style's base model; ValueError for an unknown style."""
    if style not in styles.STYLES:
        known = ", ".join(styles.STYLES)
        raise ValueError(f"the miniature has no base model {style!r}; it has {known}.")
    folder = cache_folder() / f"miniature-{_digest()}" / style
    return made_once(folder, lambda temporary: _assemble(temporary, style))


def motion_module() -> Path:
    """Return the motion module's file."""
    return WEIGHTS / _MOTION


def student(steps: int) -> Path:
    """Return the file of the motion module that was distilled for so many steps."""
    return WEIGHTS / f"{steps}step.safetensors"


def motion_module_for(steps: int | None, sampler: str = "euler", cfg: float | None = None) -> Path:
    """Return the file to draw with: a student's where the steps are its own, else the undistilled.

    steps, cfg: None where none are asked for; guidance and other samplers are not for students.
    """
    wanted = student(steps or DEFAULT_STUDENT)
    fits = sampler == "euler" and cfg in (None, 1) and wanted.is_file()
    return wanted if fits else motion_module()


def cfg() -> float:
    """Return the guidance under which the motion module was found to be best."""
    return float(checkpoint.load(motion_module()).metadata["cfg"])


def pack(build: Path, target: Path = WEIGHTS, names: Sequence[str] = tuple(styles.STYLES)) -> Path:
    """Write a finished build's weights as they ship: in float16, with gates' figures and card.

    Raises ValueError, before anything is written, where a student in `target` is none of `train`'s.
    """
    folders, listed = Folders(build), _students_in(target)
    for style in names:
        made = load_base(folders.base(style))
        _save_half(made.unet, target / f"{style}.safetensors")
        if style == styles.F0:
            _save_half(made.text_encoder, target / _TEXT)
    module = checkpoint.load(folders.motion_module).build(dtype=torch.float16)
    metadata = {
        "family": "AnimateDiff (miniature)", "steps": 0, "cfg": teacher_cfg(folders)
    }  # fmt: skip
    checkpoint.save(module, target / _MOTION, metadata=metadata)
    for report in sorted((build / "gates").glob("*.json")):
        with atomic_path(target / "gates" / report.name) as temporary:
            shutil.copy(report, temporary)
    write_card(target, teacher_cfg(folders), listed)
    return target


def pack_students(run: Path, target: Path = WEIGHTS, steps: Collection[int] = ()) -> list[Path]:
    """Write students of a distillation of the miniature as they ship, and the card anew.

    run: the folder that `train` wrote; steps: of the students to take, none: of all that there
    are. A consistency student is none of them: `generate` draws with Euler. Raises ValueError where
    the run lacks one of them, or a student does not tell its training, and then writes nothing.
    """
    found = {s.steps: s for s in students(run) if s.metadata["loss"] != "consistency"}
    wanted = steps or [n for n in STUDENTS if n in found] or STUDENTS
    if missing := [str(n) for n in wanted if n not in found]:
        raise ValueError(f"{run} holds no student for {', '.join(missing)} steps; train it first.")
    new = [
        replace(known, path=target / student(n).name) for n, known in found.items() if n in wanted
    ]
    listed = _students_in(target, new)
    for known in new:
        checkpoint.save(known.build(dtype=torch.float16), known.path, metadata=known.metadata)
    write_card(target, cfg(), listed)
    return [known.path for known in new]


def write_card(target: Path, teacher_cfg: float, listed: Sequence[MotionCheckpoint]) -> None:
    """Write the model card of the weights in a folder, with the students that it lists."""
    with atomic_path(target / "README.md") as temporary:
        temporary.write_text(
            card.write(RECIPES["full"], teacher_cfg, target / "gates", listed), encoding="utf-8"
        )


def _students_in(target: Path, new: Sequence[MotionCheckpoint] = ()) -> list[MotionCheckpoint]:
    """Return the students of a folder, `new` in place of those of the same file, most steps first.

    Raises ValueError for one that does not tell its training.
    """
    known = {s.path: s for s in new}
    files = [target / student(steps).name for steps in STUDENTS]
    return [known.get(f) or load_student(f) for f in files if f in known or f.is_file()]


def _assemble(folder: Path, style: str) -> None:
    unet, encoder = models.unet(), models.text_encoder()
    unet.load_state_dict(load_file(WEIGHTS / f"{style}.safetensors"))
    encoder.load_state_dict(load_file(WEIGHTS / _TEXT))
    models.write_base(folder, unet, encoder)


def _save_half(part: torch.nn.Module, file: Path) -> None:
    tensors = {
        k: t.half().contiguous() for k, t in part.state_dict().items() if t.is_floating_point()
    }
    with atomic_path(file) as temporary:
        save_file(tensors, temporary)


@lru_cache(maxsize=1)
def _digest() -> str:
    digest = hashlib.sha256()
    for name in (*styles.STYLES, _TEXT.removesuffix(".safetensors")):
        digest.update((WEIGHTS / f"{name}.safetensors").read_bytes())
    return digest.hexdigest()[:12]
