"""A record of what a folder holds, so that no other command goes on with it."""

import json
from collections.abc import Mapping
from pathlib import Path

from ...motion_module.files import atomic_path
from . import records

ANOTHER_FOLDER = "choose another --out"


def claim(
    file: Path,
    record: Mapping[str, object],
    what: str,
    begun: Mapping[str, int] | None = None,
    remedy: str = ANOTHER_FOLDER,
) -> None:
    """Write a record of what will be in a file's folder, or find the same one there.

    record: what the folder's content depends on, as JSON has it; what: a noun, such as "a run";
    begun: how many entries of a list have begun; those after them may change, and are written down
    anew; remedy: what a user can do about another record. Raises ValueError for another one.
    """
    if not _is_claimed(file, record, what, begun, remedy):
        with atomic_path(file) as temporary:
            temporary.write_text(json.dumps(record, indent=2), encoding="utf-8")


def check_claim(
    file: Path, record: Mapping[str, object], what: str, remedy: str = ANOTHER_FOLDER
) -> None:
    """Raise ValueError where `claim` would, and write nothing."""
    _is_claimed(file, record, what, None, remedy)


def _is_claimed(
    file: Path,
    record: Mapping[str, object],
    what: str,
    begun: Mapping[str, int] | None,
    remedy: str,
) -> bool:
    """Tell whether a folder has just this record; ValueError where it is one of something else."""
    if not file.is_file():
        return False
    new, old, counts = json.loads(json.dumps(record)), read_record(file), begun or {}
    changed = [
        key
        for key in new
        if _first(old.get(key), counts.get(key)) != _first(new[key], counts.get(key))
    ]
    if changed:
        changes = ", ".join(_change(key, old.get(key), new[key]) for key in changed)
        raise ValueError(
            f"{file.parent} holds {what} with other {changes}; go on with the same command, or "
            f"{remedy}."
        )
    return new == old


def _change(key: str, old: object, new: object) -> str:
    """Return the key of what changed, with both values where they are numbers or words."""
    values = (old, new)
    if any(value is None or isinstance(value, (list, dict)) for value in values):
        return key
    return key if max(len(str(value)) for value in values) > 20 else f"{key} ({old}, now {new})"


def read_record(file: Path) -> dict[str, object]:
    """Return a folder's record; ValueError where it is damaged."""
    try:
        return records.read(file, dict)
    except ValueError as error:
        raise ValueError(
            f"{file} is damaged; restore it, or start again with an empty folder."
        ) from error


def _first(value: object, count: int | None) -> object:
    return value[:count] if count is not None and isinstance(value, list) else value


def claim_shards(file: Path, record: Mapping[str, object], what: str) -> None:
    """Claim a folder of shards as `claim` does; ValueError where it holds some and no record."""
    if not file.is_file() and any(file.parent.glob("*.tar")):
        raise ValueError(
            f"{file.parent} holds shards that another command made; choose another --out."
        )
    claim(file, record, what)
