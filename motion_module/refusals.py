"""How a weights file that cannot be used is refused: in one sentence, after the file's name."""

from collections.abc import Sequence
from pathlib import Path

from .content import CheckpointError


def named(path: Path, error: ValueError) -> CheckpointError:
    """Return the error as a sentence that begins with the name of the file."""
    text = " ".join(str(error).split())
    return CheckpointError(f"{path.name} {text}{'' if text.endswith('.') else '.'}")


def refuse(*problems: tuple[str, Sequence[str], str]) -> None:
    """Raise CheckpointError for the first (verb, findings, advice) that has findings."""
    for verb, findings, advice in problems:
        if findings:
            raise CheckpointError(f"{verb} {_first(findings)}; {advice}")


def _first(names: Sequence[str], count: int = 3) -> str:
    more = f" and {len(names) - count} more" if len(names) > count else ""
    return ", ".join(names[:count]) + more
