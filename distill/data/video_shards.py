"""Webdataset shards: tar files whose samples are a video and a caption of the same name.

A training step is a pure function of its number, so samples are read by their place in the tar
files instead of as a stream: nothing is lost or repeated where a run was killed.
"""

import math
import re
import tarfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

import numpy as np
from braceexpand import braceexpand
from tqdm import tqdm

from ...video.kinds import VIDEO_EXTENSIONS, is_still
from ...video.reader import ClipShape, read_clip
from ..files import records
from ..library_errors import one_sentence
from .video_folder import NO_CAPTION, TEXT_COLUMNS, explain_none_usable, warn_once

MAX_SHARDS = 100_000  # of a brace pattern
_MAX_NESTING = 20  # of braces within braces
# a sample's key ends at the first dot of the file name, as webdataset has it
_MEMBER = re.compile(r"^((?:.*/)?[^/.]+)\.([^/]+)$")
_BRACES = re.compile(r"\{([^{}]*)\}")  # innermost ones
_RANGE = re.compile(r"(-?\d+)\.\.(-?\d+)(?:\.\.-?(\d+))?|([A-Za-z])\.\.([A-Za-z])(?:\.\.-?\d+)?")
_COUNT = re.compile(r"<(\d+)>")


@dataclass(frozen=True)
class Video:
    """Where a video lies in a tar file: bytes from `offset` on."""

    shard: Path
    offset: int
    size: int


@dataclass(frozen=True)
class VideoShards:
    """The videos with a caption of all shards, in their order; `bad` as in VideoFolder."""

    videos: Sequence[Video]
    names: Sequence[str]
    captions: Sequence[str]
    bad: dict[str, str] = field(default_factory=dict)

    def read(self, index: int, shape: ClipShape, where: float) -> np.ndarray:
        """Return a clip of a video, see read_clip; raises UnusableVideoError."""
        video = self.videos[index]
        with video.shard.open("rb") as source:
            source.seek(video.offset)
            content = source.read(video.size)
        return read_clip(content, shape, where, warn_once, self.names[index])


def find_tars(data: str) -> list[Path]:
    """Return the shards of a folder, a file or a pattern such as "a-{000..123}.tar"; may be none.

    Raises ValueError where one that the pattern names is missing.
    """
    if Path(data).is_dir():
        return sorted(file for file in Path(data).glob("*.tar") if file.is_file())
    shards = [Path(p) for p in expand_braces(data)] if data.endswith(".tar") else []
    missing = [s for s in shards if not s.is_file()]
    if missing:
        raise ValueError(
            f"{len(missing)} of {len(shards)} shards were not found, first {missing[0]}; check "
            "the numbers in --data."
        )
    return shards


def expand_braces(pattern: str) -> list[str]:
    """Return the names that a pattern such as "a-{000..123}.tar" stands for.

    Raises ValueError for unbalanced braces, and for more than MAX_SHARDS names.
    """
    with one_sentence(pattern, "check its braces"):
        count = _count_names(pattern)
        names = list(braceexpand(pattern)) if count <= MAX_SHARDS else []
    if count > MAX_SHARDS:
        raise ValueError(
            f"{pattern} stands for more than {MAX_SHARDS} shards; check its numbers, or give "
            "a folder."
        )
    return names


def _count_names(pattern: str) -> int:
    """Return how many names a pattern stands for, without making them: braceexpand is not lazy.

    From the innermost braces outwards, each pair is replaced by its count, such as <124>.
    """
    text = re.sub(r"\\.|[<>]", "", pattern)
    for _ in range(_MAX_NESTING):
        text, replaced = _BRACES.subn(lambda braces: f"<{_count_choices(braces[1])}>", text)
        if not replaced:
            return _count_product(text)
    raise ValueError("its braces are nested too deeply")


def _count_choices(text: str) -> int:
    """Return how many choices there are between a pair of braces, at most MAX_SHARDS + 1."""
    match = _RANGE.fullmatch(text)
    if match is None:
        count = sum(map(_count_product, text.split(",")))
    elif match[4] is not None:
        count = abs(ord(match[4]) - ord(match[5])) + 1
    else:
        count = abs(int(match[1]) - int(match[2])) // (int(match[3] or 1) or 1) + 1
    return min(count, MAX_SHARDS + 1)


def _count_product(text: str) -> int:
    return math.prod(int(count) for count in _COUNT.findall(text))


def scan_shards(shards: Sequence[Path]) -> VideoShards:
    """Return the samples that have a video and a caption, without decoding any.

    Raises ValueError where a shard is no tar file or nothing is left.
    """
    samples: dict[str, tuple[Video, str]] = {}
    bad: dict[str, str] = {}
    for shard in tqdm(shards, desc="checking the shards", disable=None, leave=False):
        for key, sample in _samples(shard).items():
            name = f"{shard}/{key}"
            if "video" in sample and sample.get("caption"):
                samples[name] = (sample["video"], sample["caption"])
            else:
                bad[name] = NO_CAPTION if "video" in sample else "no video"
    if not samples:
        bad = bad or {shards[0].name: "no samples"}
        raise ValueError(explain_none_usable(shards[0].parent, bad))
    videos, captions = zip(*samples.values(), strict=True)
    return VideoShards(videos, tuple(samples), captions, bad)


def _samples(shard: Path) -> dict[str, dict]:
    """Return each sample's video and caption, where it has them, by its key."""
    samples: dict[str, dict] = {}
    try:
        for key, extension, entry, tar in members(shard):
            sample = samples.setdefault(key, {})
            if f".{extension}" in VIDEO_EXTENSIONS:
                if not is_still(open_member(tar, entry)):  # such as a thumbnail
                    sample["video"] = Video(shard, entry.offset_data, entry.size)
            elif extension in ("txt", "json"):
                caption = _caption(open_member(tar, entry).read(), extension)
                # plain text wins over JSON, wherever it comes
                if extension == "txt" or "caption" not in sample:
                    sample["caption"] = caption
    except (tarfile.TarError, EOFError) as error:
        raise ValueError(f"{shard} is damaged, or is not a tar file; copy it again.") from error
    return samples


def members(shard: Path) -> Iterator[tuple[str, str, tarfile.TarInfo, tarfile.TarFile]]:
    """Yield key, extension, entry and open archive of every file in a shard, in their order.

    Raises tarfile.ReadError where the shard is damaged, or is not a tar file.
    """
    size = shard.stat().st_size
    try:
        with tarfile.open(shard, "r:") as tar:
            for entry in tar:
                _check_entry(entry, size)
                match = _MEMBER.match(entry.name)
                if entry.isfile() and match:
                    yield match.group(1), match.group(2).lower(), entry, tar
    except OSError:
        raise
    except Exception as error:  # headers may ask for any memory, or follow each other without end
        raise tarfile.ReadError("damaged") from error


def _check_entry(entry: tarfile.TarInfo, size: int) -> None:
    """Raise tarfile.ReadError for an entry that does not lie within a file of `size` bytes.

    One of negative size would be read again and again (CVE-2025-8194).
    """
    reaches_beyond = entry.isfile() and entry.offset_data + entry.size > size
    if entry.size < 0 or reaches_beyond or entry.issparse():
        raise tarfile.ReadError(f"{entry.name} lies beyond the end")


def open_member(tar: tarfile.TarFile, entry: tarfile.TarInfo) -> IO[bytes]:
    """Return the content of an entry that `members` has yielded."""
    file = tar.extractfile(entry)
    assert file is not None, "members yields files alone"
    return file


def _caption(content: bytes, extension: str) -> str:
    """Return the caption that a text or JSON file tells, empty where it tells none."""
    try:
        text = content.decode("utf-8-sig")
        if extension == "json":
            fields = records.parse(text, dict)
            text = next((str(fields[k]) for k in TEXT_COLUMNS if fields.get(k)), "")
    except ValueError:
        return ""
    return " ".join(text.split())
