"""A folder of videos with captions: NAME.txt beside each video, or a table of all of them."""

import csv
import hashlib
import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np
from tqdm import tqdm

from ...video.container import UnusableVideoError
from ...video.reader import ClipShape, probe_video, read_clip
from .walk import CAPTION, TABLES, explain_no_videos, find_videos

logger = logging.getLogger(__name__)

FILE_COLUMNS = ("file_name", "file", "filename", "path", "video", "videoid")
TEXT_COLUMNS = ("text", "caption", "prompt", "name")  # WebVid's caption is its "name"
URL_COLUMN = "contentUrl"  # of WebVid
HOW_TO_CAPTION = (
    "write NAME.txt beside NAME.mp4, or a captions.csv with the columns file_name and text"
)
NO_CAPTION = "no caption"


@dataclass(frozen=True)
class VideoFolder:
    """Usable videos in the order of their names; `bad` tells why others are not, by name."""

    folder: Path
    names: Sequence[str]
    captions: Sequence[str]
    bad: dict[str, str] = field(default_factory=dict)

    def read(self, index: int, shape: ClipShape, where: float) -> np.ndarray:
        """Return a clip of a video, see read_clip; raises UnusableVideoError."""
        name = self.names[index]
        return read_clip(self.folder / name, shape, where, warn_once, name)


@cache
def warn_once(sentence: str) -> None:
    """Log what is the matter with a video, once however often it is read."""
    logger.warning(sentence)


def scan_folder(folder: Path, frames: int, fps: float) -> VideoFolder:
    """Return the videos under a folder that have a caption and are long enough for a clip.

    `bad` of the result also names the files that are no videos. Each video is opened, and its first
    frame decoded. Raises ValueError where no video is left.
    """
    names, bad = find_videos(folder)
    if not names:
        raise ValueError(f"{explain_no_videos(folder, bad)}, or webdataset shards.")
    captions = read_captions(folder)
    good = {}
    for name in tqdm(names, desc="checking the videos", unit="file", disable=None, leave=False):
        try:
            caption = captions.of(folder / name, name)
            probe_video(folder / name, frames, fps)
            good[name] = caption
        except (UnusableVideoError, OSError) as error:
            bad[name] = str(error)
    for name, reason in bad.items():
        logger.debug("%s is skipped: %s", name, reason)
    if not good:
        raise ValueError(explain_none_usable(folder, {name: bad[name] for name in names}))
    return VideoFolder(folder, tuple(good), tuple(good.values()), bad)


def explain_none_usable(place: Path | str, bad: dict[str, str]) -> str:
    """Return the sentence for data without a single usable video, with the first reason."""
    name, reason = next(iter(bad.items()))
    advice = HOW_TO_CAPTION if reason == NO_CAPTION else "use longer or undamaged videos"
    return f"none of the {len(bad)} videos in {place} can be used ({name}: {reason}); {advice}."


def list_skipped(bad: dict[str, str], at_most: int = 20) -> str:
    """Return which files are skipped and why, in one line; beyond `at_most` only their number."""
    reasons = [f"{name} ({reason})" for name, reason in sorted(bad.items())[:at_most]]
    more = [f"and {len(bad) - at_most} more"] if len(bad) > at_most else []
    return f"{len(bad)} file{'s' * (len(bad) > 1)} skipped: {', '.join(reasons + more)}."


@dataclass(frozen=True)
class Captions:
    """Captions of videos: by file name from a table, else from NAME.txt beside each."""

    table: dict[str, str]

    def of(self, file: Path, name: str) -> str:
        """Return the caption of a video under its name in the folder; UnusableVideoError if none.

        The text file beside a video wins.
        """
        beside = file.with_suffix(CAPTION)
        if beside.is_file():
            try:
                caption = " ".join(beside.read_text(encoding="utf-8-sig").split())
            except UnicodeDecodeError as error:
                raise UnusableVideoError("its caption is not UTF-8 text") from error
        else:
            keys = (name, file.name, file.stem)
            caption = next((self.table[k] for k in keys if k in self.table), "")
        if not caption:
            raise UnusableVideoError(NO_CAPTION)
        return caption


def read_captions(folder: Path, table: Path | None = None) -> Captions:
    """Return the captions of a folder's videos: from a table, or the one in the folder if any.

    Raises ValueError for a table that is missing or lacks the two columns.
    """
    if table is not None and not table.is_file():
        raise ValueError(f"the table of captions {table} was not found.")
    file = table or next((folder / t for t in TABLES if (folder / t).is_file()), None)
    return Captions(_read_table(file) if file is not None else {})


def _read_table(file: Path) -> dict[str, str]:
    """Return captions by file name; a table with contentUrl (WebVid's) tells by both names."""
    try:
        with file.open(newline="", encoding="utf-8-sig") as source:
            reader = csv.DictReader(source)
            columns = [(c, c.strip().lower()) for c in reader.fieldnames or () if c]
            name, text = (_column(columns, names) for names in (FILE_COLUMNS, TEXT_COLUMNS))
            if name is None or text is None:
                raise ValueError(
                    f"{file} lacks a column of {'file names' if name is None else 'captions'}; "
                    "name the two columns file_name and text."
                )
            captions: dict[str, str] = {}
            for row in reader:
                caption = " ".join((row[text] or "").split())
                url = Path(urlsplit(row.get(URL_COLUMN) or "").path).name
                captions |= {key: caption for key in (row[name], url) if key and caption}
            return captions
    except (UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f"{file} is not a CSV file in UTF-8; save it as CSV again.") from error


def digest_videos(names: Sequence[str], captions: Sequence[str]) -> str:
    """Return a short fingerprint of which videos there are, and of their captions."""
    lines = "\n".join(f"{n}\t{c}" for n, c in zip(names, captions, strict=True))
    return hashlib.sha256(lines.encode()).hexdigest()[:16]


def _column(columns: list[tuple[str, str]], names: tuple[str, ...]) -> str | None:
    """Return the column that has the first of the known names."""
    return next((c for name in names for c, lower in columns if lower == name), None)
