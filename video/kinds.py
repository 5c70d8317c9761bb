"""Which files are videos: by their extension, and pictures by whether they move."""

import io
import struct
from functools import lru_cache
from pathlib import Path
from typing import IO

PICTURE_EXTENSIONS = (".webp", ".apng", ".png")  # videos only where they are animated
VIDEO_EXTENSIONS = (
    *(".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi", ".mpg", ".mpeg", ".vob", ".gif"),
    *(".ts", ".mts", ".m2ts", ".mxf", ".3gp", ".3g2", ".wmv", ".asf", ".flv", ".ogv"),
    *PICTURE_EXTENSIONS,
)
NO_VIDEO = "not a kind of video that is read"
STILL = "a still picture"
_PNG = b"\x89PNG\r\n\x1a\n"
_WEBP_ANIMATION = 1 << 1  # a flag of the chunk VP8X


def find_fault(path: Path) -> str | None:
    """Return why a file is no video, as far as name and header tell; None: it may be one."""
    try:
        return _find_fault(path)
    except OSError as error:
        return f"it cannot be opened ({error.strerror})"


def _find_fault(path: Path) -> str | None:
    if not path.exists():
        return "a link that leads nowhere"
    if path.suffix.lower() not in VIDEO_EXTENSIONS:
        return NO_VIDEO
    if not path.is_file():
        return "not a file"
    if path.suffix.lower() not in PICTURE_EXTENSIONS:
        return None
    status = path.stat()
    return STILL if _is_still_file(str(path), status.st_mtime_ns, status.st_size) else None


@lru_cache(maxsize=65536)  # the nodes ask for a whole folder again and again
def _is_still_file(path: str, _changed: int, _size: int) -> bool:
    with open(path, "rb") as source:
        return is_still(source)


def is_still(source: IO[bytes]) -> bool:
    """Tell whether a file is a PNG or WebP picture that does not move; leaves it at its start."""
    head = source.read(21)
    try:
        if head.startswith(_PNG):
            return not _has_animation_chunk(source)
        return is_webp(head) and not (head[12:16] == b"VP8X" and head[20] & _WEBP_ANIMATION)
    finally:
        source.seek(0)


def is_webp(head: bytes) -> bool:
    """Tell whether the first bytes of a file are those of a WebP picture."""
    return head[:4] == b"RIFF" and head[8:12] == b"WEBP"


def read_size(source: IO[bytes]) -> tuple[int, int]:
    """Return width and height of a PNG or an animated WebP, (0, 0) of all else."""
    head = source.read(30).ljust(30, b"\0")
    if head.startswith(_PNG):
        width, height = struct.unpack_from(">II", head, 16)  # IHDR, always the first chunk
        return width, height
    if is_webp(head) and head[12:16] == b"VP8X":
        return 1 + int.from_bytes(head[24:27], "little"), 1 + int.from_bytes(head[27:30], "little")
    return 0, 0


def _has_animation_chunk(source: IO[bytes]) -> bool:
    """Look for PNG's acTL, which stands before the picture data."""
    source.seek(len(_PNG))
    while len(head := source.read(8)) == 8:
        length, kind = struct.unpack(">I4s", head)
        if kind in (b"acTL", b"IDAT"):
            return kind == b"acTL"
        source.seek(length + 4, io.SEEK_CUR)  # and the checksum
    return False
