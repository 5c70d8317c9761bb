"""Shards behind URLs: fetched whole, and kept within bounds.

http and https are read by urllib, s3 and gs by fsspec. An address is only ever opened as one: no
scheme that runs a command or reads another file of this machine is taken.
"""

import contextlib
import hashlib
import os
import re
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from filelock import FileLock

from ...motion_module.files import atomic_path
from ..files.cache import cache_folder

MAX_BYTES = 64 * 2**30  # of fetched shards; the longest unused ones go first
_MAX_TEXT_BYTES = 64 * 2**20  # of an index
TIMEOUT = 60  # seconds in which a server must send something
SCHEMES = ("http", "https", "s3", "gs")
_CLOUD_PACKAGES = {"s3": "s3fs", "gs": "gcsfs"}  # which fsspec needs for them
_URL = re.compile(rf"({'|'.join(SCHEMES)})://", re.IGNORECASE)
_SCHEME = re.compile(r"[a-z][a-z0-9+.-]+:", re.IGNORECASE)  # one letter is a drive of Windows
_CHUNK_BYTES = 2**20


def is_url(source: str) -> bool:
    """Tell whether a shard is behind a URL of SCHEMES, and no path."""
    return _URL.match(source) is not None


def check_address(source: str) -> None:
    """Raise ValueError for an address that is not read: one that names a command, say."""
    if _SCHEME.match(source) and not is_url(source):
        starts = ", ".join(f"{scheme}://" for scheme in SCHEMES)
        raise ValueError(
            f"{source} is not an address that shards can be read from; give a folder, a .tar file "
            f"or an address that starts with one of {starts} (a path with a colon starts with ./)."
        )


def home(source: str) -> Path:
    """Return the folder of a shard's file."""
    return cache_folder() / "shards" if is_url(source) else Path(source).parent


def key_of(source: str) -> str:
    """Return the name of a shard's file in its folder."""
    if is_url(source):
        return f"{hashlib.sha256(source.encode()).hexdigest()[:16]}.tar"
    return Path(source).name


def file_name(url: str) -> str:
    """Return the name of the tar file that a URL ends in, the whole URL where it ends in none."""
    parts = _split_at_name(url)
    return parts[1] if parts else url


def neighbour(url: str, name: str) -> str | None:
    """Return the URL of another file beside a shard's; None where the shard's name is not told."""
    parts = _split_at_name(url)
    return parts[0] + name + parts[2] if parts else None


def _split_at_name(url: str) -> tuple[str, str, str] | None:
    """Return what is before, in and behind the name of the tar file that a URL ends in."""
    folder, slash, last = url.rpartition("/")
    name, extension, rest = last.rpartition(".tar")
    return (folder + slash, name + extension, rest) if name else None


def local_file(source: str) -> Path:
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
    """Return a small UTF-8 file behind a URL; ValueError where there is none, or a large one."""
    return b"".join(_chunks(url, _MAX_TEXT_BYTES)).decode("utf-8")


def _fetch(url: str, file: Path) -> None:
    with atomic_path(file) as temporary, temporary.open("wb") as target:
        for chunk in _chunks(url, MAX_BYTES):
            target.write(chunk)


def _chunks(url: str, limit: int) -> Iterator[bytes]:
    """Yield the content behind a URL; ValueError where it cannot be had whole, or is too large."""
    is_http = url.lower().startswith("http")
    try:
        with _opened_http(url) if is_http else _opened_in_cloud(url) as (content, size):
            count = 0
            while chunk := content.read(_CHUNK_BYTES):
                count += len(chunk)
                if count > limit:
                    raise _ExplainedError(
                        f"{url} is larger than {limit / 2**20:g} MiB, which is the most that is "
                        "fetched; check the address."
                    )
                yield chunk
            if size is not None and count != size:  # a lost connection may look like the end
                raise OSError(f"{count} of {size} bytes")
    except _ExplainedError:
        raise
    except Exception as error:  # each cloud has exceptions of its own
        raise ValueError(f"{url} cannot be fetched; check the address and the network.") from error


class _ExplainedError(ValueError):
    """What a user can mend, other than by another address or network."""


@contextlib.contextmanager
def _opened_http(url: str) -> Iterator[tuple[BinaryIO, int | None]]:
    """Give what is behind a URL, and its size in bytes where the server tells it."""
    with _web().open(url, timeout=TIMEOUT) as content:
        length = content.headers.get("Content-Length")
        yield content, None if length is None else int(length)


@contextlib.contextmanager
def _opened_in_cloud(url: str) -> Iterator[tuple[BinaryIO, int | None]]:
    """Give what is behind an address of a cloud, and its size in bytes."""
    import fsspec  # slow to import, and only the clouds need it

    scheme, _, path = url.partition("://")
    package = _CLOUD_PACKAGES[scheme.lower()]
    try:
        cloud = fsspec.filesystem(scheme.lower())
    except ImportError as error:
        raise _ExplainedError(
            f"{url} needs the package {package}; install it with `pip install {package}` (it is in "
            "the optional extra `cloud`)."
        ) from error
    # not fsspec.open, whose addresses may chain other file systems
    with cloud.open(path, "rb") as content:
        yield content, getattr(content, "size", None)


def _web() -> urllib.request.OpenerDirector:
    """Return an opener for http and https alone; urllib's own also reads file:, ftp: and data:."""
    opener = urllib.request.OpenerDirector()
    proxies = urllib.request.getproxies()
    for handler in (
        urllib.request.ProxyHandler({k: v for k, v in proxies.items() if k in ("http", "https")}),
        urllib.request.HTTPHandler(),
        urllib.request.HTTPSHandler(),
        urllib.request.HTTPRedirectHandler(),
        urllib.request.HTTPDefaultErrorHandler(),
        urllib.request.HTTPErrorProcessor(),
        urllib.request.UnknownHandler(),
    ):
        opener.add_handler(handler)
    return opener


def _forget_oldest(keep: Path) -> None:
    shards = []
    for file in keep.parent.glob("[!.]*.tar"):
        with contextlib.suppress(FileNotFoundError):  # another process was faster
            status = file.stat()
            shards.append((status.st_mtime, status.st_size, file))
    total = sum(size for _, size, _ in shards)
    for _, size, file in sorted(shards):
        if total <= MAX_BYTES:
            break
        if file != keep:
            total -= size
            file.unlink(missing_ok=True)
