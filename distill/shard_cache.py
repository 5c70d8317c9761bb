"""Shards behind URLs, as webdataset's gopen reads them: fetched whole, and kept within bounds."""

import contextlib
import hashlib
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from filelock import FileLock

from ..motion_module.files import atomic_path
from .cache import cache_folder

MAX_BYTES = 64 * 2**30  # of fetched shards; the longest unused ones go first
_URL = re.compile(r"pipe:|[a-z0-9]{2,}://")  # a single letter is a drive of Windows
_TAR = re.compile(r".*?([^/\s]+\.tar)(?=[^/]*$)", re.DOTALL)


def is_url(source: str) -> bool:
    """Tell whether a shard is behind a URL, such as http://... or pipe:..., and no path."""
    return _URL.match(source) is not None


def home(source: str) -> Path:
    """Return the folder of a shard's file."""
    return cache_folder() / "shards" if is_url(source) else Path(source).parent


def key_of(source: str) -> str:
    """Return the name of a shard's file in its folder."""
    if is_url(source):
        return f"{hashlib.sha256(source.encode()).hexdigest()[:16]}.tar"
    return Path(source).name


def file_name(url: str) -> str:
    """Return the name of the tar file that a URL ends in, or that a pipe's command names last."""
    found = _TAR.search(url)
    return found[1] if found else url


def neighbour(url: str, name: str) -> str | None:
    """Return the URL of another file beside a shard's; None where the shard's name is not told."""
    found = _TAR.search(url)
    return url[: found.start(1)] + name + url[found.end(1) :] if found else None


def local(source: str) -> Path:
    """Return a shard's file; that of a URL is fetched into the cache, which is kept bounded.

    One process and thread fetches it while the others that want it wait.
    """
    if not is_url(source):
        return Path(source)
    file = home(source) / key_of(source)
    file.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(file.with_name(f".{file.name}.lock")):
        if file.is_file():
            os.utime(file)
        else:
            _fetch(source, file)
            _forget_oldest(file)
    return file


def fetch_text(url: str) -> str:
    """Return a small UTF-8 file behind a URL; ValueError where there is none."""
    with _opened(url) as content:
        return content.read().decode("utf-8")


def _fetch(url: str, file: Path) -> None:
    with atomic_path(file) as temporary, temporary.open("wb") as target, _opened(url) as content:
        shutil.copyfileobj(content, target, 2**20)


@contextlib.contextmanager
def _opened(url: str) -> Iterator[BinaryIO]:
    from webdataset.gopen import gopen  # slow to import, and only URLs need it

    try:
        with gopen(url) as content:
            yield content
    except (OSError, ValueError) as error:
        raise ValueError(f"{url} cannot be fetched; check the address and the network.") from error


def _forget_oldest(keep: Path) -> None:
    found = []
    for file in keep.parent.glob("[!.]*.tar"):
        with contextlib.suppress(FileNotFoundError):  # another process was faster
            status = file.stat()
            found.append((status.st_mtime, status.st_size, file))
    total = sum(size for _, size, _ in found)
    for _, size, file in sorted(found):
        if total <= MAX_BYTES:
            break
        if file != keep:
            total -= size
            file.unlink(missing_ok=True)
