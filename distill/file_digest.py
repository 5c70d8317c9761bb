"""What a file holds, in a few letters, so that another one of its name is not taken for it."""

import hashlib
from pathlib import Path


def file_digest(file: Path) -> str:
    """Return the first 16 hex digits of the SHA-256 of a file's bytes, read piece by piece."""
    digest = hashlib.sha256()
    with file.open("rb") as content:
        while piece := content.read(2**20):
            digest.update(piece)
    return digest.hexdigest()[:16]


def digest(path: Path) -> str:
    """Return the digest of a file, or of a folder's visible files and their names."""
    if path.is_file():
        return file_digest(path)
    files = sorted(f.relative_to(path).as_posix() for f in path.rglob("[!.]*") if f.is_file())
    lines = "\n".join(f"{name}\t{file_digest(path / name)}" for name in files)
    return hashlib.sha256(lines.encode()).hexdigest()[:16]
