"""Reads weights files of any origin safely, and writes files that appear whole or not at all."""

import os
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path

import safetensors
from torch import Tensor

from . import content, pickles, recognise
from .content import CheckpointError


def read(
    path: Path, kind: recognise.FileKind = "motion module"
) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Return the tensors by key, and the metadata, of a .safetensors file or a pickle of tensors.

    What the file is, its content tells and not its extension. Raises CheckpointError for a file
    that is missing, damaged, holds more than tensors, or none and so is not of that `kind`.
    """
    content.check_file(path)
    if content.is_safetensors(path):
        holds, metadata = _read_safetensors(path)
    else:
        holds, metadata = pickles.read(path), {}
    return _unwrap(holds, kind), metadata


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
        raise content.unreadable(error) from error


def _unwrap(holds: Mapping, kind: recognise.FileKind) -> dict[str, Tensor]:
    """Drop what trainers wrap around the weights: nesting, a config, a "module." prefix."""
    if isinstance(holds.get("state_dict"), dict):
        holds = holds["state_dict"]
    holds = {k.removeprefix("module."): v for k, v in _flatten(holds)}
    if not holds:
        raise CheckpointError("holds no tensors; download it again")
    content.check_names(holds)
    tensors = {k: t for k, t in holds.items() if isinstance(t, Tensor)}
    if not tensors:
        raise CheckpointError(recognise.refuse_other(holds, kind))
    return tensors


def _flatten(holds: Mapping) -> Iterator[tuple[str, object]]:
    """Yield what a dict of dicts holds, by its names joined with dots; each dict once."""
    pending, seen = [("", holds)], set()
    while pending:
        prefix, part = pending.pop()
        if id(part) in seen:
            continue
        seen.add(id(part))
        for key, value in part.items():
            if isinstance(key, str) and isinstance(value, Mapping):
                pending.append((f"{prefix}{key}.", value))
            elif isinstance(key, str):
                yield prefix + key, value


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
