"""Whether a file can be written, found before the work that makes it."""

import os
from pathlib import Path

_LONGEST_NAME = 240  # bytes; file systems take 255


def check_writable(path: Path) -> None:
    """Raise ValueError where no file can be written at `path`; its folder may yet be missing."""
    folder = path.absolute().parent
    while not folder.exists():
        folder = folder.parent
    if not folder.is_dir() or not os.access(folder, os.W_OK):
        raise ValueError(f"cannot write into {folder}; choose another folder for {path.name}.")
    if path.is_dir():
        raise ValueError(f"{path} is a folder; give the name of a file.")
    # a temporary name beside it needs a few characters more
    if len(os.fsencode(path.name)) > _LONGEST_NAME:
        raise ValueError(
            f"the name {path.name[:40]}... is too long for a file; give a shorter one."
        )
