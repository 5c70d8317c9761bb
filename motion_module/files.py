"""Reads weights files of any origin safely, and writes files that appear whole or not at all."""

import contextlib
import os
import pickle
import re
import struct
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path

import safetensors
import torch
from torch import Tensor

from . import content, recognise
from .content import CheckpointError

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
# what pytorch-lightning saves with weights: its callback's name, and numbers of old and new numpy
_BESIDE_WEIGHTS = (
    "pytorch_lightning.callbacks.model_checkpoint.ModelCheckpoint",
    "numpy.core.multiarray.scalar",
    "numpy._core.multiarray.scalar",
    "numpy.dtype",
    "numpy.dtypes.Float64DType",
    "_codecs.encode",
)
_UNSAFE_GLOBAL = re.compile(r"[Uu]nsupported (?:global: )?GLOBAL ([\w.]*\w)")


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
        holds, metadata = read_pickle(path), {}
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


def read_pickle(path: Path) -> dict[str, object]:
    """Return the dict in a file of torch.save, without running anything that it holds.

    Raises CheckpointError for one that is damaged or holds more than tensors and plain values.
    """
    try:
        with _harmless_classes(), path.open("rb") as file:  # torch trusts a name's extension
            holds = torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        unsafe = _UNSAFE_GLOBAL.search(str(error))
        if unsafe is None or _ends_with(path, unsafe[1].rpartition(".")[2]):
            raise CheckpointError(
                "is damaged, or is not a PyTorch file; download it again"
            ) from error
        raise CheckpointError(
            f"holds more than tensors ({unsafe[1]}) and is not opened, for safety; "
            "use the .safetensors version"
        ) from error
    except _DAMAGED_PICKLE as error:
        raise CheckpointError(
            "is truncated, or is not a PyTorch file; download it again"
        ) from error
    if not isinstance(holds, dict):
        raise CheckpointError(
            f"holds a {type(holds).__name__} in place of a state dict; use the .safetensors version"
        )
    return holds


def _ends_with(path: Path, name: str) -> bool:
    """Tell whether a file was cut within a name, which looks like another name then."""
    with path.open("rb") as file:
        file.seek(-min(len(name) + 3, path.stat().st_size), os.SEEK_END)  # a line, cut
        return name.encode() in file.read()


@contextlib.contextmanager
def _harmless_classes() -> Iterator[None]:
    """Let a pickle name what pytorch-lightning leaves beside the weights, as ComfyUI does.

    For each of them stands a class that does nothing.
    """
    if not hasattr(torch.serialization, "safe_globals"):  # before torch 2.5
        yield
        return
    with torch.serialization.safe_globals([*map(_make_inert, _BESIDE_WEIGHTS)]):
        yield


def _make_inert(name: str) -> type:
    module, _, own_name = name.rpartition(".")
    members = {
        "__module__": module,
        "__new__": lambda cls, *_arguments: object.__new__(cls),
        "__setstate__": lambda _self, _state: None,
    }
    return type(own_name, (), members)


def _unwrap(holds: Mapping, kind: recognise.FileKind) -> dict[str, Tensor]:
    """Drop what trainers wrap around the weights: nesting, a config, a "module." prefix."""
    if isinstance(holds.get("state_dict"), dict):
        holds = holds["state_dict"]
    holds = {k.removeprefix("module."): v for k, v in _flatten(holds)}
    if not holds:
        raise CheckpointError("holds no tensors; download it again")
    tensors = {k: t for k, t in holds.items() if isinstance(t, Tensor)}
    if not tensors:
        raise CheckpointError(recognise.refuse_other(holds, kind))
    return tensors


def _flatten(holds: Mapping, prefix: str = "") -> Iterator[tuple[str, object]]:
    """Yield what a dict of dicts holds, by its names joined with dots."""
    for key, value in holds.items():
        if isinstance(key, str) and isinstance(value, Mapping):
            yield from _flatten(value, f"{prefix}{key}.")
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
