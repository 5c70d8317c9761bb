"""Tells what a weights file is from its keys and shapes, and why one cannot be used."""

from pathlib import Path
from typing import Literal

from . import kinds
from .config import MotionModuleConfig

FileKind = Literal["motion module", "motion LoRA", "base model"]

_WANTED: dict[FileKind, kinds.Kind] = {
    "motion module": kinds.MOTION_MODULE,
    "motion LoRA": kinds.MOTION_LORA,
    "base model": kinds.CHECKPOINT,
}
_USE_INSTEAD: dict[FileKind, str] = {
    "motion module": kinds.USE_SUPPORTED,
    "motion LoRA": "use one for AnimateDiff v2 or v3",
    "base model": "use a full SD1.5 checkpoint",
}
_PIPELINE_PARTS = ("unet", "vae", "text_encoder", "safety_checker", "image_encoder")


def identify(keys: kinds.Keys) -> kinds.Kind | None:
    """Return the kind of a file by its tensors, None for one that is in no rule."""
    return next((kind for kind in kinds.KINDS if kind.fits(keys)), None)


def refuse_other(keys: kinds.Keys, wanted: FileKind, path: Path | None = None) -> str | None:
    """Return why a file is none of the wanted kind, and what to do with it; None where it is one.

    path: where it lies, from which a part of a diffusers pipeline is known.
    """
    kind = identify(keys)
    if kind is _WANTED[wanted]:
        return None
    pipeline = _find_pipeline(path)
    if pipeline is not None and path is not None:
        return (
            f"is the {path.parent.name} of the diffusers pipeline {pipeline.name}, not a {wanted}; "
            f"use the whole folder {pipeline.name} as the base model"
        )
    if kind is None:
        return f"is not a {wanted}, and its kind is unknown; {_USE_INSTEAD[wanted]}"
    return f"is {kind.name}{_but_not(kind, wanted)}; {kind.advice}"


def _but_not(kind: kinds.Kind, wanted: FileKind) -> str:
    return "" if "motion module" in kind.name and wanted == "motion module" else f", not a {wanted}"


def _find_pipeline(path: Path | None) -> Path | None:
    """Return the folder of the diffusers pipeline that a file is a part of, None if it is none."""
    if path is None or path.parent.name not in _PIPELINE_PARTS:
        return None
    folder = path.absolute().parent.parent  # links, as the hub's cache has them, stay
    return folder if (folder / "model_index.json").is_file() else None


def family(config: MotionModuleConfig, has_positions: bool, steps: int) -> str:
    """Return the family name of a supported motion module."""
    if steps:
        return "AnimateDiff-Lightning"
    if not has_positions:
        return "AnimateLCM"
    return "AnimateDiff v2" if config.mid_block else "AnimateDiff v3"
