"""Shards of latents: webdataset tar files whose clips are read by their place, not as a stream.

A clip is KEY.latents.npy (frames, channels, h, w), KEY.flipped.npy (of the mirrored frames, which
is not the mirrored latents), KEY.txt and KEY.json; index.json beside the shards tells their places.
"""

import contextlib
import functools
import io
import json
import os
import tarfile
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, BinaryIO

import numpy as np
from braceexpand import braceexpand
from tqdm import tqdm

from ...motion_module.files import atomic_path
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
    shape: tuple[int, int, int, int]
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
        """Return a clip's caption as stored."""
        with local_file(self.source).open("rb") as file:
            return _bytes(file, self.places[clip, 4:]).decode("utf-8")

    def read(self, clip: int, flip: bool) -> tuple[np.ndarray, str]:
        """Return a clip's latents, plain or flipped, and its caption as stored."""
        plain, mirrored, caption = self.places[clip].reshape(3, 2)
        place = mirrored if flip else plain
        if place[0] < 0:
            raise ValueError(f"{self.name} has no flipped latents; make the clips with --flip.")
        path = local_file(self.source)
        try:
            with path.open("rb") as file:
                array = np.load(io.BytesIO(_bytes(file, place)), allow_pickle=False)
                text = _bytes(file, caption).decode("utf-8")
        except (OSError, EOFError, ValueError) as error:
            raise ValueError(f"clip {clip} of {self.name} is damaged; copy it again.") from error
        if array.shape != self.shape:
            raise ValueError(f"clip {clip} of {self.name} has changed; delete {INDEX} beside it.")
        return array, text


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
        return list(braceexpand(shards))
    # a name that begins with a dot is not finished yet
    return [str(f) for f in video_shards.find_tars(shards) if not f.name.startswith(".")]


def index_shard(source: str) -> Shard:
    """Look up a shard's clips in its tar file; ValueError where it is no whole one of latents."""
    file = local_file(source)
    name = Path(source).name
    clips: dict[str, dict[str, tuple[int, int]]] = {}
    shapes: set[tuple[int, ...]] = set()
    try:
        for key, member, entry, tar in video_shards.members(file):
            if member in _MEMBERS:
                clips.setdefault(key, {})[member] = (entry.offset_data, entry.size)
            if member in (LATENTS, FLIPPED):
                shapes.add(_shape(video_shards.open_member(tar, entry)))
        _check_end(file)
    except (tarfile.TarError, OSError, EOFError) as error:
        raise ValueError(
            f"{name} is damaged, or is not a tar file; copy or make it again."
        ) from error
    except ValueError as error:
        raise ValueError(f"{name} holds arrays that are damaged; copy or make it again.") from error
    _check_clips(name, clips, shapes)
    places = [[n for p in _MEMBERS for n in clip.get(p, _NOWHERE)] for clip in clips.values()]
    status = file.stat()
    frames, channels, height, width = shapes.pop()
    shape = (frames, channels, height, width)
    return Shard(source, status.st_size, status.st_mtime_ns, shape, _places(places))


def read_index(folder: Path) -> dict[str, Shard]:
    """Return the shards that a folder's index tells, by name; none where it is missing or odd."""
    try:
        return _parsed((folder / INDEX).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}


def _index_of_url(url: str | None) -> dict[str, Shard]:
    try:
        return _parsed(fetch_text(url)) if url is not None else {}
    except ValueError:  # there is none
        return {}


def _parsed(text: str) -> dict[str, Shard]:
    """Return the shards that an index's text tells, by name; none where it is odd."""
    try:
        content = json.loads(text)
        if content["version"] != _VERSION:
            return {}
        return {
            name: Shard(name, e["size"], e["changed"], tuple(e["shape"]), _places(e["places"]))
            for name, e in content["shards"].items()
        }
    except (ValueError, KeyError, TypeError, AttributeError):
        return {}


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


def _places(numbers: list) -> np.ndarray:
    return np.array(numbers, np.int64)


def _check_clips(name: str, clips: dict[str, dict], shapes: set[tuple]) -> None:
    if not shapes or any(len(shape) != 4 for shape in shapes):
        raise ValueError(
            f"{name} holds no latents (KEY.{LATENTS}, four-dimensional); make shards with "
            "`data generate`."
        )
    if len(shapes) > 1:
        raise ValueError(f"{name} holds clips of several shapes; a shard may hold only one shape.")
    for key, clip in clips.items():
        for member in (LATENTS, CAPTION):
            if member not in clip:
                raise ValueError(f"{name} lacks {key}.{member}; make the shard again.")


def _shape(file: IO[bytes]) -> tuple[int, ...]:
    version = np.lib.format.read_magic(file)
    read = np.lib.format.read_array_header_1_0
    return (read if version == (1, 0) else np.lib.format.read_array_header_2_0)(file)[0]


def _check_end(file: Path) -> None:
    with file.open("rb") as content:
        content.seek(-len(_END), os.SEEK_END)
        if content.read() != _END:
            raise tarfile.ReadError("cut short")


def _bytes(file: BinaryIO, place: Iterable[int]) -> bytes:
    offset, size = map(int, place)
    file.seek(offset)
    content = file.read(size)
    if len(content) < size:
        raise EOFError
    return content


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
