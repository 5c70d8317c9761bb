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
