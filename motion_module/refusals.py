"""How a weights file that cannot be used is refused: in one sentence, after the file's name."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from .content import CheckpointError

_LONGEST = 160  # characters of a name or finding in an error


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Make a sentence of each CheckpointError that begins with the name of the file."""
    try:
        yield
    except CheckpointError as error:
        text = " ".join(str(error).split())
        end = "" if text.endswith(".") else "."
        raise CheckpointError(f"{path.name} {text}{end}") from error


def refuse(*problems: tuple[str, Sequence[str], str]) -> None:
    """Raise CheckpointError for the first (verb, findings, advice) that has findings."""
    for verb, findings, advice in problems:
        if findings:
            raise CheckpointError(f"{verb} {_first(findings)}; {advice}")


def _first(names: Sequence[str], count: int = 3) -> str:
    more = f" and {len(names) - count} more" if len(names) > count else ""
    return ", ".join(map(_shown, names[:count])) + more


def _shown(name: str) -> str:
    """Return a name as a terminal can show it: without control characters, and not too long."""
    plain = "".join(c if c.isprintable() or c.isspace() else "?" for c in name)
    return plain if len(plain) <= _LONGEST else f"{plain[:_LONGEST]}..."
