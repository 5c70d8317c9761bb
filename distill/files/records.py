"""JSON that a command wrote down earlier, and that somebody may have changed since."""

import json
from pathlib import Path
from typing import TypeVar

Kind = TypeVar("Kind")
_MAX_BYTES = 256 * 2**20
_NAMES: dict[type, str] = {dict: "an object", list: "a list"}


def parse(text: str, kind: type[Kind]) -> Kind:
    """Return what a JSON text holds; ValueError where it is damaged or holds another type."""
    try:
        content = json.loads(text)
    except RecursionError as error:
        raise ValueError("the JSON is nested too deeply") from error
    if not isinstance(content, kind):
        raise ValueError(f"the JSON does not hold {_NAMES[kind]}")
    return content


def read(file: Path, kind: type[Kind]) -> Kind:
    """Return what a JSON file holds; ValueError where it is no such file, damaged or too large."""
    if not file.is_file():
        raise ValueError(f"{file.name} is not a regular file")
    if file.stat().st_size > _MAX_BYTES:
        raise ValueError(f"{file.name} is larger than {_MAX_BYTES >> 20} MiB")
    return parse(file.read_text(encoding="utf-8"), kind)
