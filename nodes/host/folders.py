"""Files that the user chooses from: those in the host's model folders, and in its input folder."""

import os
from pathlib import Path

import folder_paths

from ...motion_module import content
from ...video import kinds

MODELS_FOLDER = "animatediff_models"
LORAS_FOLDER = "animatediff_motion_lora"


def register_model_folder(name: str) -> None:
    """Add models/<name> to the host's model folders, for our known file types only."""
    folder_paths.add_model_folder_path(name, str(Path(folder_paths.models_dir) / name))
    folders, extensions = folder_paths.folder_names_and_paths[name]
    if not extensions:  # the host leaves it empty, which would list every file
        folder_paths.folder_names_and_paths[name] = (folders, set(content.EXTENSIONS))


def list_model_files(folder: str) -> list[str]:
    """Return the weights files of a model folder that the user can choose from."""
    names = folder_paths.get_filename_list(folder)
    return [name for name in names if Path(name).suffix.lower() in content.EXTENSIONS]


def find_model_file(folder: str, name: str) -> Path:
    """Return the path of a listed file; raises ValueError when it is gone."""
    path = folder_paths.get_full_path(folder, name)
    if path is None:
        raise ValueError(f"{name} is not in models/{folder}; put the file there.")
    return Path(path)


def read_file_state(folder: str, name: str | None) -> tuple[str, float] | None:
    """Return a listed file's name and time of change; None: the name comes from a link.

    The host asks for it before links are known, and sees their changes itself.
    """
    return None if name is None else (name, find_model_file(folder, name).stat().st_mtime)


def list_input_videos() -> list[str]:
    """Return the videos of the host's input folder, animated pictures too, that can be chosen.

    Newer hosts refuse a link that leads out of the folder; what they refuse is not offered.
    """
    entries = Path(folder_paths.get_input_directory()).iterdir()
    names = sorted(entry.name for entry in entries if kinds.find_fault(entry) is None)
    return [name for name in names if folder_paths.exists_annotated_filepath(name)]


def find_input_file(name: str) -> Path:
    """Return the path of a file in the host's input folder; raises ValueError for any other.

    Whether a link that somebody put into that folder may lead out of it is the host's choice.
    """
    folder = os.path.abspath(folder_paths.get_input_directory())
    outside = f"{name} is outside ComfyUI's input folder; upload it with the node's button."
    try:
        path = Path(os.path.abspath(folder_paths.get_annotated_filepath(name)))
    except ValueError as error:  # newer hosts look at the path themselves
        raise ValueError(outside) from error
    if not path.is_relative_to(folder):
        raise ValueError(outside)
    if not path.is_file():
        raise ValueError(
            f"{name} is not in ComfyUI's input folder; upload it with the node's button."
        )
    return path
