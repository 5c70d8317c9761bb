"""Which files of a folder are videos, and why the others are not; links to folders are followed."""

import os
from collections import deque
from pathlib import Path

from ...video import kinds

TABLES = ("captions.csv", "metadata.csv")
CAPTION = ".txt"
LONELY = "a caption without a video"
READ_ALREADY = "a link to a folder that is read already"


def find_videos(
    folder: Path, table: Path | None = None, out: Path | None = None
) -> tuple[list[str], dict[str, str]]:
    """Return the names of the videos under a folder, sorted, and why each other file is left out.

    Names are paths from the folder on, with slashes. What belongs to the videos or to the system is
    not told: captions beside a video, the table of captions, the folder `out`, and hidden files.
    """
    files, left_out = _walk(folder, out)
    faults = {file: kinds.find_fault(file) for file in files}
    captions = {f.with_suffix(CAPTION) for f, fault in faults.items() if fault != kinds.NO_VIDEO}
    own_table = [f for f in files if table is not None and f.name == table.name]
    expected = {*captions, *own_table, *(folder / t for t in TABLES)}
    for file, fault in faults.items():
        hidden = any(part.startswith(".") for part in file.relative_to(folder).parts)
        if fault and not (fault == kinds.NO_VIDEO and (hidden or file in expected)):
            left_out[_name(file, folder)] = LONELY if file.suffix == CAPTION else fault
    videos = sorted(_name(file, folder) for file, fault in faults.items() if fault is None)
    return videos, dict(sorted(left_out.items()))


def list_beside_shards(folder: Path) -> dict[str, str]:
    """Return why the files beside a folder's webdataset shards are left out."""
    videos, left_out = find_videos(folder)
    others = {name: fault for name, fault in left_out.items() if not name.endswith(".tar")}
    return dict.fromkeys(videos, "beside shards, which are read instead") | others


def explain_no_videos(folder: Path, left_out: dict[str, str]) -> str:
    """Return the sentence for a folder without a single video."""
    first = next(iter(left_out.items()), None)
    held = f" ({first[0]}: {first[1]})" if first else ""
    kinds_read = ", ".join(kinds.VIDEO_EXTENSIONS[:4])
    return f"{folder} holds no videos{held}; give a folder with {kinds_read} ... files"


def _name(file: Path, folder: Path) -> str:
    return file.relative_to(folder).as_posix()


def _walk(folder: Path, out: Path | None) -> tuple[list[Path], dict[str, str]]:
    """Return all files outside of `out`, and why some folders are left out; each is read once.

    Links come last, so that what they lead to keeps the name that it has without them.
    """
    files: list[Path] = []
    left_out: dict[str, str] = {}
    seen: set[tuple[int, int]] = set()
    ours = _identity(out) if out is not None and out.is_dir() else None

    def note(error: OSError) -> None:
        left_out[_name(Path(error.filename), folder)] = f"it cannot be opened ({error.strerror})"

    starts = deque([folder])
    while starts:
        for place, folders, names in os.walk(starts.popleft(), onerror=note):
            identity = _identity(Path(place))
            if identity in seen or identity == ours:
                folders.clear()
                if identity != ours:
                    left_out[_name(Path(place), folder)] = READ_ALREADY
                continue
            seen.add(identity)
            files += [Path(place, name) for name in names]
            starts += sorted(p for p in (Path(place, f) for f in folders) if p.is_symlink())
    return files, left_out


def _identity(folder: Path) -> tuple[int, int]:
    """Return what a folder is known by, whatever links lead to it."""
    status = folder.stat()
    return status.st_dev, status.st_ino
