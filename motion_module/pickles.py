"""Reads a pickle of tensors (.ckpt, .pth, .pt, .bin) without running anything, and within bounds.

torch.load(weights_only=True) runs nothing, but it does what a pickle says: a kilobyte of it may
unpack to any size, repeat one number a billion times, or nest tuples until the process crashes.
"""

import contextlib
import io
import os
import pickle
import pickletools
import re
import struct
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO

import torch
from torch import Tensor

from .content import CheckpointError

# before it, weights_only=True could be tricked into running code (CVE-2025-32434)
_SAFE_FROM = (2, 6)
_ZIP_START, _LEGACY_PICKLES = b"PK\x03\x04", 5  # of torch's two formats
_LOCAL_HEADER = struct.Struct("<26xHH")  # of an entry in an archive: lengths of name and extra
_MOST_TUPLES = 200_000  # a tensor needs five; a tuple in a tuple some 10^5 deep crashes Python
# what torch.load(weights_only=True) raised on files cut at every length, in both of its formats
_DAMAGED = (
    RuntimeError,
    EOFError,
    OSError,
    ValueError,
    LookupError,
    AttributeError,
    TypeError,
    struct.error,
    zipfile.BadZipFile,
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


def read(path: Path) -> dict[str, object]:
    """Return the dict in a file of torch.save, without running anything that it holds.

    Raises CheckpointError for one that is damaged, or holds more than tensors and plain values, or
    more than its size.
    """
    _check_torch()
    try:
        _check_bounds(path)
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
    except CheckpointError:
        raise
    except (*_DAMAGED, RecursionError) as error:
        raise CheckpointError(
            "is truncated, or is not a PyTorch file; download it again"
        ) from error
    if not isinstance(holds, dict):
        raise CheckpointError(
            f"holds a {type(holds).__name__} in place of a state dict; use the .safetensors version"
        )
    _check_tensors(holds)
    return holds


def _check_torch() -> None:
    version = tuple(int(n) for n in re.findall(r"\d+", torch.__version__)[:2])
    if version < _SAFE_FROM:
        raise CheckpointError(
            f"is a pickle, which PyTorch {torch.__version__} cannot open safely; use the "
            f".safetensors version, or PyTorch {'.'.join(map(str, _SAFE_FROM))} or newer"
        )


def _check_bounds(path: Path) -> None:
    """Raise CheckpointError for a pickle that unpacks to more than the file, or nests too much."""
    with path.open("rb") as file:
        if file.read(len(_ZIP_START)) == _ZIP_START:
            tuples = _count_tuples(io.BytesIO(_pickle_in(path)), 1)
        else:
            file.seek(0)
            tuples = _count_tuples(file, _LEGACY_PICKLES)
    if tuples > _MOST_TUPLES:
        raise CheckpointError(
            "holds more nested values than a state dict has, and is not opened, for safety; use "
            "the .safetensors version"
        )


def _pickle_in(path: Path) -> bytes:
    """Return the pickle in an archive of torch.save, which compresses nothing; b"" without one."""
    with zipfile.ZipFile(path) as archive:
        entries = archive.infolist()
    if any(e.compress_type != zipfile.ZIP_STORED for e in entries):
        raise CheckpointError(
            "is compressed, which PyTorch's own files never are, and is not opened, for safety; "
            "use the .safetensors version"
        )
    named = (e for e in entries if e.filename.rpartition("/")[2] == "data.pkl")
    entry = next(named, None)
    if entry is None:
        return b""
    with path.open("rb") as file:  # not ZipFile.read: torch can be told to write no checksums
        file.seek(entry.header_offset)
        name, extra = _LOCAL_HEADER.unpack(file.read(_LOCAL_HEADER.size))
        file.seek(name + extra, os.SEEK_CUR)
        return file.read(entry.file_size)


def _count_tuples(file: IO[bytes], pickles: int) -> int:
    """Return how many tuples some pickles make, one after the other; stops at what is damaged."""
    count = 0
    with contextlib.suppress(ValueError):  # torch.load tells what is wrong
        for _ in range(pickles):
            for code, _argument, _place in pickletools.genops(file):
                count += code.name.startswith("TUPLE")
    return count


def _check_tensors(holds: Mapping) -> None:
    """Raise CheckpointError for a tensor that claims more values than the file has for it."""
    pending: list[object] = [holds]
    seen: set[int] = set()
    while pending:
        value = pending.pop()
        if id(value) in seen:
            continue
        seen.add(id(value))
        if isinstance(value, Mapping):
            pending += value.values()
        elif isinstance(value, list | tuple):
            pending += value
        elif isinstance(value, Tensor) and not _is_plain(value):
            raise CheckpointError(
                "holds a tensor that is not stored value by value; use the .safetensors version"
            )


def _is_plain(tensor: Tensor) -> bool:
    if tensor.layout != torch.strided or tensor.is_meta or tensor.is_nested or tensor.is_quantized:
        return False
    return tensor.numel() * tensor.element_size() <= tensor.untyped_storage().nbytes()


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
