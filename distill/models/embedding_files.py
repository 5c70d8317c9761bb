"""Finds the file of a textual inversion by the name that a prompt gives it."""

import difflib
import os
from pathlib import Path

EXTENSIONS = (".safetensors", ".pt", ".bin")  # in the order that ComfyUI tries them
_LISTED = 5


def check_folder(folder: Path | None) -> None:
    """Raise ValueError where a folder is named and is none."""
    if folder is not None and not folder.is_dir():
        raise ValueError(f"--embeddings {folder} is not a folder; give one of textual inversions.")


def find(folder: Path, name: str) -> Path:
    """Return the file of a name, with or without its extension, in a folder or a subfolder of it.

    The folder itself comes first. Raises ValueError, with one sentence, where there is none.
    """
    if not name:
        raise ValueError("embedding: in a prompt names no file; write embedding:NAME.")
    for place in _folders(folder):
        path = Path(os.path.abspath(place / name))  # not resolve: links out of it are the user's
        if Path(os.path.abspath(place)) not in path.parents:
            raise ValueError(
                f"embedding:{name} in a prompt leads out of {folder}; give the name of a file in "
                "that folder."
            )
        for extension in ("", *EXTENSIONS):
            file = path.with_name(path.name + extension)
            if os.path.isfile(file):  # False, too, for a name that no file can have
                return file
    raise ValueError(_missing(folder, name))


def _folders(folder: Path) -> list[Path]:
    """Return a folder and those in it, also behind links, each once: links may lead in circles."""
    found: list[Path] = []
    seen: set[tuple[int, int]] = set()
    for name, inner, _ in os.walk(folder, followlinks=True):
        status = os.stat(name)
        if (status.st_dev, status.st_ino) in seen:
            inner.clear()
            continue
        seen.add((status.st_dev, status.st_ino))
        found.append(Path(name))
    return [folder, *sorted(found)[1:]]


def _missing(folder: Path, name: str) -> str:
    files = (file for place in _folders(folder) for file in place.iterdir())
    names = sorted({file.stem for file in files if file.suffix.lower() in EXTENSIONS})
    near = difflib.get_close_matches(name, names, n=1)
    listed = ", ".join(names[:_LISTED]) + (", ..." if len(names) > _LISTED else "")
    return (
        f"embedding:{name} in a prompt was not found in {folder}"
        f"{f'; did you mean {near[0]!r}?' if near else ';'} "
        f"{f'the folder holds {listed}' if names else 'the folder holds no embedding'}."
    )
