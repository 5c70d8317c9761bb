"""Shards behind URLs, as webdataset's gopen reads them: fetched whole, and kept within bounds."""

import hashlib
import os
import re
import shutil
import threading
from pathlib import Path

from ..motion_module.files import atomic_path
from .cache import cache_folder

MAX_BYTES = 64 * 2**30  # of fetched shards; the longest unused ones go first
_URL = re.compile(r"pipe:|[a-z0-9]{2,}://")  # a single letter is a drive of Windows
_fetching = threading.Lock()


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


def local(source: str) -> Path:
    """Return a shard's file; that of a URL is fetched into the cache, which is kept bounded."""
    if not is_url(source):
        return Path(source)
    file = home(source) / key_of(source)
    with _fetching:
        if file.is_file():
            os.utime(file)
        else:
            _fetch(source, file)
            _forget_oldest(file)
    return file


def _fetch(url: str, file: Path) -> None:
    from webdataset.gopen import gopen  # slow to import, and only URLs need it

    try:
        with (
            atomic_path(file) as temporary,
            temporary.open("wb") as target,
            gopen(url) as content,
        ):
            shutil.copyfileobj(content, target, 2**20)
    except (OSError, ValueError) as error:
        raise ValueError(f"{url} cannot be fetched; check the address and the network.") from error


def _forget_oldest(keep: Path) -> None:
    files = sorted(keep.parent.glob("[!.]*.tar"), key=lambda f: f.stat().st_mtime)
    total = sum(f.stat().st_size for f in files)
    for file in files:
        if total <= MAX_BYTES:
            break
        if file != keep:
            total -= file.stat().st_size
            file.unlink(missing_ok=True)
