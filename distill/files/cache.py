"""Where the program keeps what it makes once: $ANIMATEDIFF_LIGHTNING_CACHE or the platform's."""

import contextlib
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

CACHE_VARIABLE = "ANIMATEDIFF_LIGHTNING_CACHE"


def cache_folder() -> Path:
    """Return where downloads and generated models are kept."""
    if os.environ.get(CACHE_VARIABLE):
        return Path(os.environ[CACHE_VARIABLE])
    if os.name == "nt" and os.environ.get("LOCALAPPDATA"):
        return Path(os.environ["LOCALAPPDATA"]) / "animatediff-lightning"
    caches = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser()
    return caches / "animatediff-lightning"


def made_once(folder: Path, write: Callable[[Path], object]) -> Path:
    """Return the folder, filled by `write` first where it is missing: whole or not at all."""
    if folder.is_dir():
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        write(temporary)
        _rename(temporary, folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return folder


def _rename(temporary: Path, folder: Path) -> None:
    umask = os.umask(0)
    os.umask(umask)
    temporary.chmod(0o777 & ~umask)  # mkdtemp makes folders for the owner alone
    with contextlib.suppress(OSError):  # unless another process was first: its content is the same
        temporary.rename(folder)
    if not folder.is_dir():
        raise OSError(f"cannot make the folder {folder}; free some space or set {CACHE_VARIABLE}.")
