"""Names of models as users give them: files, folders, and the bundled miniature's parts."""

from pathlib import Path

from . import shipped

MINIATURE = "miniature"


def base_path(name: str) -> Path:
    """Return the folder or file of a base model: a path, or that of "miniature:STYLE".

    Raises ValueError for a style that the miniature lacks; whether a path exists is not checked.
    """
    if name.startswith(shipped.PREFIX):
        return shipped.base(name.removeprefix(shipped.PREFIX))
    return Path(name)


def motion_module_path(name: str) -> Path:
    """Return the file of a motion module: a path, or the bundled one's for "miniature"."""
    return shipped.motion_module() if name == MINIATURE else Path(name)


def is_miniature(base: Path | str | None) -> bool:
    """Tell whether a choice of base model means one of the miniature's."""
    return base is None or str(base).startswith(shipped.PREFIX)
