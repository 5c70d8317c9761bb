"""What a folder holds is written down in it, so that no other command goes on with it."""

import json
from collections.abc import Mapping
from pathlib import Path

from ...motion_module.files import atomic_path


def claim(
    file: Path, told: Mapping[str, object], what: str, begun: Mapping[str, int] | None = None
) -> None:
    """Write down what will be in a file's folder, or find the same there.

    told: what the folder's content depends on, as JSON has it; what: a noun, such as "a run";
    begun: how many entries of a list have begun; those after them may change, and are written down
    anew. Raises ValueError where the file tells otherwise.
    """
    wanted = json.loads(json.dumps(told))
    if file.is_file():
        found = read(file)
        if found == wanted:
            return
        counts = begun or {}
        other = [
            key
            for key in wanted
            if _first(found.get(key), counts.get(key)) != _first(wanted[key], counts.get(key))
        ]
        if other:
            raise ValueError(
                f"{file.parent} holds {what} with other {', '.join(other)}; go on with the same "
                "command, or choose another --out."
            )
    with atomic_path(file) as temporary:
        temporary.write_text(json.dumps(wanted, indent=2), encoding="utf-8")


def read(file: Path) -> dict[str, object]:
    """Return what a folder's record tells; ValueError where it is damaged."""
    try:
        told = json.loads(file.read_text(encoding="utf-8"))
        if isinstance(told, dict):
            return told
    except ValueError:
        pass
    raise ValueError(f"{file} is damaged; put it back as it was, or make the folder anew.")


def _first(value: object, count: int | None) -> object:
    return value[:count] if count is not None and isinstance(value, list) else value


def claim_shards(file: Path, told: Mapping[str, object], what: str) -> None:
    """Claim a folder of shards as `claim` does; ValueError where it holds some and no record."""
    if not file.is_file() and any(file.parent.glob("*.tar")):
        raise ValueError(f"{file.parent} holds shards of another command; choose another --out.")
    claim(file, told, what)
