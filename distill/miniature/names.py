"""Names of models as users give them: files, folders, and the bundled miniature's parts.

Nothing heavy is imported before a name means one of the miniature's files.
"""

from pathlib import Path

MINIATURE = "miniature"
PREFIX = f"{MINIATURE}:"  # of a base model's style


def base_path(name: str) -> Path:
    """Return the folder or file of a base model: a path, or that of "miniature:STYLE".

    Raises ValueError for a style that the miniature lacks; whether a path exists is not checked.
    """
    if not name.startswith(PREFIX):
        return Path(name)
    from . import shipped

    return shipped.base(name.removeprefix(PREFIX))


def motion_module_path(name: str) -> Path:
    """Return the file of a motion module: a path, or the bundled one's for "miniature"."""
    if name != MINIATURE:
        return Path(name)
    from . import shipped

    return shipped.motion_module()


def is_miniature(base: Path | str | None) -> bool:
    """Tell whether a choice of base model means one of the miniature's."""
    return base is None or str(base).startswith(PREFIX)
