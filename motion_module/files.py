"""Reads weights files of any origin safely, and writes files that appear whole or not at all."""

import os
import pickle
import struct
import tempfile
from pathlib import Path

import safetensors
import torch
from torch import Tensor

from . import recognise

EXTENSIONS = (".safetensors", ".sft", ".ckpt", ".pth", ".pt", ".bin")
# what torch.load(weights_only=True) raised on files cut at every length, in both of its formats
_DAMAGED_PICKLE = (
    RuntimeError,
    EOFError,
    OSError,
    ValueError,
    LookupError,
    AttributeError,
    TypeError,
    struct.error,
)


class CheckpointError(ValueError):
    """A weights file that cannot be used; the message is one sentence for the user."""


def read(
    path: Path, kind: recognise.FileKind = "motion module"
) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Return the tensors by key, and the metadata, of a .safetensors file or a pickle of tensors.

    Raises CheckpointError for a file that is missing, damaged, holds more than tensors, or none
    and so is not of that `kind`.
    """
    if path.is_dir():
        raise CheckpointError("is a folder; give the weights file inside it")
    if not path.is_file():
        raise CheckpointError(f"was not found in {path.parent}; check the name and the folder")
    if path.suffix.lower() not in EXTENSIONS:
        raise CheckpointError(
            f"does not have the extension of a weights file; use one of {', '.join(EXTENSIONS)}"
        )
    if path.suffix.lower() in (".safetensors", ".sft"):
        content, metadata = _read_safetensors(path)
    else:
        content, metadata = _read_pickle(path), {}
    return _unwrap(content, kind), metadata


def _read_safetensors(path: Path) -> tuple[dict[str, object], dict[str, str]]:
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            return {k: file.get_tensor(k) for k in file.keys()}, file.metadata() or {}  # noqa: SIM118
    except safetensors.SafetensorError as error:
        reason = str(error).rpartition(": ")[2]
        raise CheckpointError(
            f"is truncated, or is not a safetensors file ({reason}); download it again"
        ) from error
    except OSError as error:
        raise CheckpointError(
            f"cannot be read ({error.strerror}); check the file's permissions"
        ) from error


def _read_pickle(path: Path) -> dict[str, object]:
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise CheckpointError(
            "is damaged or holds more than tensors, and is not opened, for safety; use the "
            ".safetensors version"
        ) from error
    except _DAMAGED_PICKLE as error:
        raise CheckpointError(
            "is truncated, or is not a PyTorch file; download it again"
        ) from error
    if not isinstance(content, dict):
        raise CheckpointError(
            f"holds a {type(content).__name__} in place of a state dict; use the .safetensors "
            "version"
        )
    return content


def _unwrap(content: dict, kind: recognise.FileKind) -> dict[str, Tensor]:
    """Drop what trainers wrap around the weights: nesting, a config, a "module." prefix."""
    if isinstance(content.get("state_dict"), dict):
        content = content["state_dict"]
    content = {k.removeprefix("module."): v for k, v in content.items() if isinstance(k, str)}
    if not content:
        raise CheckpointError("holds no tensors; download it again")
    tensors = {k: t for k, t in content.items() if isinstance(t, Tensor)}
    if not tensors:
        raise CheckpointError(recognise.refuse_other(content, kind))
    return tensors


class atomic_path:  # noqa: N801 - reads as a verb in `with atomic_path(path) as temporary`
    """Context manager giving a temporary name beside `path`, renamed to it only on success."""

    def __init__(self, path: str | os.PathLike) -> None:
        self.path = Path(path)

    def __enter__(self) -> Path:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(
            prefix=f".{self.path.stem}-", suffix=self.path.suffix, dir=self.path.parent
        )
        os.close(handle)
        self.temporary = Path(name)
        return self.temporary

    def __exit__(self, kind: type | None, error: object, trace: object) -> None:
        try:
            if kind is None:
                umask = os.umask(0)
                os.umask(umask)
                self.temporary.chmod(0o666 & ~umask)  # mkstemp makes files for the owner alone
                with self.temporary.open("rb+") as file:
                    os.fsync(file.fileno())  # or a power cut could leave the name of an empty file
                os.replace(self.temporary, self.path)
        finally:
            self.temporary.unlink(missing_ok=True)


def remove_half_written(path: Path) -> None:
    """Remove what processes killed inside `atomic_path(path)` left; no other may be writing."""
    for leftover in path.parent.glob(f".{path.stem}-*{path.suffix}"):
        leftover.unlink(missing_ok=True)
