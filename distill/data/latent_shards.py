"""Shards of latents: webdataset tar files whose clips are read by their place, not as a stream.

A clip is KEY.latents.npy (frames, channels, h, w), KEY.flipped.npy (of the mirrored frames, which
is not the mirrored latents), KEY.txt and KEY.json; index.json beside the shards tells their places.
"""

import contextlib
import functools
import io
import json
import math
import os
import tarfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, BinaryIO

import numpy as np
from tqdm import tqdm

from ...motion_module.files import atomic_path
from ..files import records
from . import video_shards
from .url_cache import (
    check_address,
    fetch_text,
    file_name,
    home,
    is_url,
    key_of,
    local_file,
    neighbour,
)

INDEX = "index.json"
LATENTS, FLIPPED, CAPTION = "latents.npy", "flipped.npy", "txt"
_VERSION = 1
_MEMBERS = (LATENTS, FLIPPED, CAPTION)  # two columns of `places` each
_NOWHERE = (-1, 0)
_ODD = (ValueError, KeyError, TypeError, AttributeError, OverflowError)  # an index that is
_DTYPES = (np.dtype("<f2"), np.dtype("<f4"))
Shape = tuple[int, int, int, int]
Header = tuple[tuple[int, ...], np.dtype]  # of a .npy file: shape and dtype
_END = bytes(1024)  # what a whole tar file ends in


@dataclass(frozen=True)
class Shard:
    """A shard's index; `shape` is (frames, channels, h, w), and the same for all its clips.

    source: a path or a URL; size: of the file in bytes; changed: when, ns; places (clips, 6):
    offset and size of the latents, of the flipped ones (-1 where there are none), of the caption.
    """

    source: str
    size: int
    changed: int
    shape: Shape
    places: np.ndarray

    def __len__(self) -> int:
        return len(self.places)

    @property
    def name(self) -> str:
        return Path(self.source).name

    @property
    def can_flip(self) -> bool:
        """Tell whether every clip has its flipped latents."""
        return bool((self.places[:, 2] >= 0).all())

    def caption(self, clip: int) -> str:
        """Return a clip's caption as stored; ValueError where it is damaged."""
        path = local_file(self.source)
        with self._damage_told(clip), path.open("rb") as file:
            return _bytes(file, self.places[clip, 4:]).decode("utf-8")

    def read(self, clip: int, flip: bool) -> tuple[np.ndarray, str]:
        """Return a clip's latents, plain or flipped, and its caption as stored."""
        plain, mirrored, caption = self.places[clip].reshape(3, 2)
        place = mirrored if flip else plain
        if place[0] < 0:
            raise ValueError(f"{self.name} has no flipped latents; make the clips with --flip.")
        path = local_file(self.source)
        with self._damage_told(clip), path.open("rb") as file:
            array = _decoded(_bytes(file, place))
            text = _bytes(file, caption).decode("utf-8")
        if array.shape != self.shape:
            raise ValueError(f"clip {clip} of {self.name} has changed; delete {INDEX} beside it.")
        return array, text

    @contextlib.contextmanager
    def _damage_told(self, clip: int) -> Iterator[None]:
        try:
            yield
        except (OSError, EOFError, ValueError) as error:
            raise ValueError(
                f"clip {clip} of {self.name} is damaged; copy the shard again, or delete the "
                f"{INDEX} beside it."
            ) from error


def open_shards(shards: str) -> list[Shard]:
    """Return the shards of a folder, a file, a brace pattern or URLs (http, https, s3, gs).

    What an index.json does not tell yet is looked up in the tar files, and noted there. One beside
    URLs is read as well: no shard that it tells is fetched before its clips are asked for. Raises
    ValueError with one sentence where nothing is found, or one is no whole shard of latents.
    """
    sources = find_shards(shards)
    if not sources:
        raise ValueError(
            f"{shards} holds no shards of clips; give a folder with .tar files, or a pattern such "
            "as clips-{000000..000007}.tar; `data generate` makes them."
        )
    index_of = {folder: read_index(folder) for folder in sorted({home(s) for s in sources})}
    opened, new = [], set()
    beside = functools.cache(_index_of_url)
    for source in tqdm(sources, desc="checking the shards", disable=None, leave=False):
        shard = index_of[home(source)].get(key_of(source))
        if shard is None or not _is_current(shard, source):
            remote = beside(neighbour(source, INDEX)) if is_url(source) else {}
            shard = remote.get(file_name(source)) or index_shard(source)
            new.add(home(source))
            index_of[home(source)][key_of(source)] = shard
        opened.append(replace(shard, source=source))
    for folder in new:
        _write_index(folder, index_of[folder])
    return opened


def find_shards(shards: str) -> list[str]:
    """Return the paths or URLs of shards, sorted in a folder; may be none.

    Raises ValueError for an address that is not read.
    """
    check_address(shards)
    if is_url(shards):
        return video_shards.expand_braces(shards)
    # a name that begins with a dot is not finished yet
    return [str(f) for f in video_shards.find_tars(shards) if not f.name.startswith(".")]


def index_shard(source: str) -> Shard:
    """Look up a shard's clips in its tar file; ValueError where it is no whole one of latents."""
    file = local_file(source)
    name = Path(source).name
    clips: dict[str, dict[str, tuple[int, int]]] = {}
    headers: set[Header] = set()
    try:
        for key, member, entry, tar in video_shards.members(file):
            if member in _MEMBERS:
                clips.setdefault(key, {})[member] = (entry.offset_data, entry.size)
            if member in (LATENTS, FLIPPED):
                headers.add(_header(video_shards.open_member(tar, entry), entry.size))
        _check_end(file)
    except (tarfile.TarError, OSError, EOFError) as error:
        raise ValueError(
            f"{name} is damaged, or is not a tar file; copy or make it again."
        ) from error
    except ValueError as error:
        raise ValueError(f"{name} holds arrays that are damaged; copy or make it again.") from error
    shape = _check_clips(name, clips, headers)
    rows = [[n for p in _MEMBERS for n in clip.get(p, _NOWHERE)] for clip in clips.values()]
    status = file.stat()
    places = np.array(rows, np.int64)
    return Shard(source, status.st_size, status.st_mtime_ns, shape, places)


def read_index(folder: Path) -> dict[str, Shard]:
    """Return the shards that a folder's index tells, by name; none where it is missing or odd."""
    file = folder / INDEX
    try:
        return _parsed(file.read_text(encoding="utf-8")) if file.is_file() else {}
    except (OSError, ValueError):
        return {}


def _index_of_url(url: str | None) -> dict[str, Shard]:
    try:
        return _parsed(fetch_text(url)) if url is not None else {}
    except ValueError:  # there is none
        return {}


def _parsed(text: str) -> dict[str, Shard]:
    """Return the shards that an index's text tells, by name, but for those that are odd."""
    shards: dict[str, Shard] = {}
    with contextlib.suppress(*_ODD):
        content = records.parse(text, dict)
        told = content["shards"].items() if content["version"] == _VERSION else ()
        for name, entry in told:
            with contextlib.suppress(*_ODD):
                shards[name] = _shard(name, entry)
    return shards


def _shard(name: str, told: dict) -> Shard:
    """Return a shard as an index tells it; ValueError where no shard can be like that."""
    size, changed, shape = told["size"], told["changed"], tuple(told["shape"])
    places = np.array(told["places"], np.int64)
    if not (isinstance(size, int) and isinstance(changed, int) and _is_shape(shape)):
        raise ValueError("no size, time or shape")
    if not len(places) or places.shape[1:] != (2 * len(_MEMBERS),):
        raise ValueError("no places")
    starts, sizes = places[:, ::2], places[:, 1::2]
    missing = (places[:, 2:4] == _NOWHERE).all(axis=1)  # the flipped latents
    inside = (starts >= 0) & (sizes >= 0) & (starts <= size) & (sizes <= size - starts)
    inside[missing, 1] = True
    if not inside.all():
        raise ValueError("places beyond the end of the file")
    return Shard(name, size, changed, shape, places)


def read_keys(source: str) -> list[str]:
    """Return the clips' keys in the order of a shard's index."""
    members = video_shards.members(local_file(source))
    return list(dict.fromkeys(key for key, member, _, _ in members if member in _MEMBERS))


def write_tar(file: Path, members: Iterable[tuple[str, bytes]]) -> None:
    """Write named contents as a tar file, whose bytes depend on nothing else."""
    with file.open("wb") as target:
        with tarfile.open(fileobj=target, mode="w", format=tarfile.USTAR_FORMAT) as tar:
            for name, content in members:
                entry = tarfile.TarInfo(name)
                entry.size = len(content)
                tar.addfile(entry, io.BytesIO(content))
        target.flush()
        os.fsync(target.fileno())


def encode_npy(array: np.ndarray) -> bytes:
    """Return an array as a .npy file's content."""
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=False)
    return buffer.getvalue()


def _check_clips(name: str, clips: dict[str, dict], headers: set[Header]) -> Shape:
    """Return the shape of all clips; ValueError where they have none in common, or lack a part."""
    if not headers or not all(map(_is_latents, headers)):
        raise ValueError(
            f"{name} holds no latents (KEY.{LATENTS}, four-dimensional and not empty, float16 or "
            "float32, little-endian); make shards with `data generate`."
        )
    shapes = {shape for shape, _ in headers}
    if len(shapes) > 1:
        raise ValueError(f"{name} holds clips of several shapes; a shard may hold only one shape.")
    for key, clip in clips.items():
        for member in (LATENTS, CAPTION):
            if member not in clip:
                raise ValueError(f"{name} lacks {key}.{member}; make the shard again.")
    frames, channels, height, width = shapes.pop()
    return frames, channels, height, width


def _header(file: IO[bytes], size: int) -> Header:
    """Return shape and dtype of a .npy file of `size` bytes; ValueError where it is damaged."""
    try:
        version = np.lib.format.read_magic(file)
        read = np.lib.format.read_array_header_1_0
        shape, _, dtype = (read if version == (1, 0) else np.lib.format.read_array_header_2_0)(file)
    except OSError:
        raise
    except Exception as error:  # numpy lets Python's own parser read it
        raise ValueError("a header of an array is damaged") from error
    if math.prod(shape) * dtype.itemsize != size - file.tell():
        raise ValueError("an array has another size than its header tells")
    return shape, dtype


def _decoded(content: bytes) -> np.ndarray:
    """Return the latents that a .npy file holds; ValueError where it holds none."""
    if not _is_latents(_header(io.BytesIO(content), len(content))):
        raise ValueError("an array holds no latents")
    return np.load(io.BytesIO(content), allow_pickle=False)


def _is_latents(header: Header) -> bool:
    shape, dtype = header
    return _is_shape(shape) and dtype in _DTYPES


def _is_shape(shape: tuple) -> bool:
    return len(shape) == 4 and all(isinstance(side, int) and side >= 1 for side in shape)


def _check_end(file: Path) -> None:
    with file.open("rb") as content:
        content.seek(-len(_END), os.SEEK_END)
        if content.read() != _END:
            raise tarfile.ReadError("cut short")


def _bytes(file: BinaryIO, place: Iterable[int]) -> bytes:
    offset, size = map(int, place)
    if offset + size > os.fstat(file.fileno()).st_size:
        raise EOFError
    file.seek(offset)
    return file.read(size)


def _is_current(shard: Shard, source: str) -> bool:
    if is_url(source):  # may have left the cache; what is behind a URL must not change
        return True
    status = Path(source).stat()
    return (shard.size, shard.changed) == (status.st_size, status.st_mtime_ns)


def _write_index(folder: Path, shards: dict[str, Shard]) -> None:
    content = {
        name: {"size": s.size, "changed": s.changed, "shape": s.shape, "places": s.places.tolist()}
        for name, s in sorted(shards.items())
    }
    with contextlib.suppress(OSError), atomic_path(folder / INDEX) as temporary:  # read-only, full
        temporary.write_text(json.dumps({"version": _VERSION, "shards": content}))
