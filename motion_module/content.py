"""Tells what a file holds by its beginning, and reads the header of a safetensors file.

Nothing here needs torch, so that a file can be described at once.
"""

import json
import math
import struct
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

EXTENSIONS = (".safetensors", ".sft", ".ckpt", ".pth", ".pt", ".bin")
_START = 512  # bytes of a file that tell a web page from weights
_LFS_POINTER = b"version https://git-lfs"
_WEB_PAGES = (b"<!doctype", b"<html", b"<head", b"<?xml", b"<!--")
_LONGEST_HEADER = 100_000_000  # bytes, safetensors' own limit
_LONGEST_NAME = 512  # of a tensor, in characters; released files need fewer than 120


class CheckpointError(ValueError):
    """A weights file that cannot be used; the message is one sentence for the user."""


def unreadable(error: OSError) -> CheckpointError:
    """Return the refusal of a file that the system does not let us read."""
    return CheckpointError(f"cannot be read ({error.strerror}); check the file's permissions")


@dataclass(frozen=True)
class TensorInfo:
    """What a header tells of a tensor: its dtype as safetensors names it, and its shape."""

    dtype: str
    shape: tuple[int, ...]

    @property
    def ndim(self) -> int:
        """The number of dimensions."""
        return len(self.shape)

    def numel(self) -> int:
        """Return the number of elements."""
        return math.prod(self.shape)


def check_file(path: Path) -> None:
    """Raise CheckpointError where no weights file can be at a path, see check_content."""
    if path.is_dir():
        raise CheckpointError("is a folder; give the weights file inside it")
    if not path.is_file():
        raise CheckpointError(f"was not found in {path.parent}; check the name and the folder")
    if path.suffix.lower() not in EXTENSIONS:
        raise CheckpointError(
            f"does not have the extension of a weights file; use one of {', '.join(EXTENSIONS)}"
        )
    check_content(path)


def check_content(path: Path) -> None:
    """Raise CheckpointError where a file begins as what is saved in the place of weights.

    That is a web page, a server's answer in JSON, the pointer that Git LFS leaves, or nothing.
    """
    start = _read_start(path)
    text = start.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if not start:
        raise CheckpointError("is empty; download it again")
    if start.startswith(_LFS_POINTER):
        raise CheckpointError(
            "is a Git LFS pointer, a note of where the weights are, and not the weights; run "
            "`git lfs pull` in its folder, or download the file from its page"
        )
    if text.startswith(_WEB_PAGES):
        raise CheckpointError(
            "is a saved web page and not a weights file; download it with the download button of "
            "that page"
        )
    if text.startswith((b'{"', b"{\n", b"{\r", b"{ ")):
        raise CheckpointError(
            "is a text in JSON, such as a server's refusal, and not a weights file; log in to the "
            "site and download it again"
        )


def is_safetensors(path: Path) -> bool:
    """Tell whether a file is to be read as safetensors: its name says so, or its beginning."""
    start = _read_start(path)
    is_pickle = start.startswith((b"PK\x03\x04", b"\x80"))  # torch's two formats
    named = path.suffix.lower() in (".safetensors", ".sft")
    return (named and not is_pickle) or start[8:9] == b"{"


def read_header(path: Path) -> tuple[dict[str, TensorInfo], dict[str, str]]:
    """Return the tensors of a safetensors file by key, and its metadata; no weights are read.

    Raises CheckpointError for a file that is cut or is no safetensors file.
    """
    size = path.stat().st_size
    try:
        with path.open("rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            if length > min(size - 8, _LONGEST_HEADER):
                raise ValueError("header too large")
            header = json.loads(file.read(length))
        metadata = header.pop("__metadata__", {})
        if not all(isinstance(text, str) for text in metadata.values()):
            raise ValueError("metadata that is not text")
        tensors = {k: TensorInfo(str(t["dtype"]), _shape(t["shape"])) for k, t in header.items()}
        end = max((int(t["data_offsets"][1]) for t in header.values()), default=0)
    except (
        LookupError,
        ValueError,
        TypeError,
        AttributeError,
        RecursionError,
        struct.error,
    ) as error:
        raise CheckpointError(
            f"is truncated, or is not a safetensors file ({error}); download it again"
        ) from error
    if 8 + length + end != size:
        raise CheckpointError("is truncated; download it again")
    check_names(tensors)
    return tensors, metadata


def check_names(tensors: Iterable[str]) -> None:
    """Raise CheckpointError for a name that is far too long to be a tensor's."""
    if any(len(name) > _LONGEST_NAME for name in tensors):
        raise CheckpointError(
            f"has a tensor whose name is longer than {_LONGEST_NAME} characters; download it again"
        )


def _shape(sides: list) -> tuple[int, ...]:
    if any(not isinstance(side, int) or side < 0 for side in sides):
        raise ValueError("a shape that is none")
    return tuple(sides)


def _read_start(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(_START)
    except OSError as error:
        raise unreadable(error) from error
