"""Which models `generate` draws with, without anything heavy."""

from dataclasses import dataclass
from pathlib import Path

from ..models.load_options import LoadOptions


@dataclass(frozen=True)
class ModelChoice(LoadOptions):
    """Which files to load and how; without files, the bundled miniature.

    `base` is a file, a diffusers folder or "miniature:STYLE", one of the miniature's base models;
    motion_loras: each file with its strength.
    """

    base: str | None = None
    motion_module: Path | None = None
    motion_loras: tuple[tuple[Path, float], ...] = ()
