"""What a file holds, in a few letters, so that another one of its name is not taken for it."""

import hashlib
from pathlib import Path


def digest(path: Path) -> str:
    """Return 16 hex digits of the SHA-256 of a file, or of a folder's visible files and names."""
    if path.is_file():
        return _of_file(path)
    files = sorted(f.relative_to(path).as_posix() for f in path.rglob("[!.]*") if f.is_file())
    lines = "\n".join(f"{name}\t{_of_file(path / name)}" for name in files)
    return hashlib.sha256(lines.encode()).hexdigest()[:16]


def _of_file(file: Path) -> str:
    sha256 = hashlib.sha256()
    with file.open("rb") as content:
        while piece := content.read(2**20):
            sha256.update(piece)
    return sha256.hexdigest()[:16]
