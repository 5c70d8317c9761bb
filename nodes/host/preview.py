"""The preview while sampling: a contact sheet of frames in the place of the host's first frame.

Knows how the host's callback is made but imports nothing of it, and changes none of its objects.
"""

from collections.abc import Callable
from dataclasses import dataclass
from types import CellType, FunctionType

import torch
from PIL import Image

HOST_MODULE = "latent_preview"
PREVIEWER = "previewer"  # what the host's callback calls the object that draws for it


def choose_sheet_shape(num_frames: int, landscape: bool = False) -> tuple[int, int]:
    """Return (rows, columns) of a sheet without gaps: 4, 6 or 9 frames, fewer of shorter clips."""
    if num_frames >= 9:
        return 3, 3
    rows, columns = (2, 3) if num_frames >= 6 else (2, 2) if num_frames >= 4 else (1, num_frames)
    return (columns, rows) if landscape else (rows, columns)


def choose_frames(num_frames: int, count: int) -> list[int]:
    """Return `count` frames of a clip, evenly spaced from its first to its last."""
    if count == 1:
        return [0]
    return [round(i * (num_frames - 1) / (count - 1)) for i in range(count)]


def make_contact_sheet(pictures: list[Image.Image], columns: int) -> Image.Image:
    """Return pictures of one size side by side, row after row."""
    width, height = pictures[0].size
    sheet = Image.new(pictures[0].mode, (columns * width, len(pictures) // columns * height))
    for i, picture in enumerate(pictures):
        sheet.paste(picture, (i % columns * width, i // columns * height))
    return sheet


@dataclass(frozen=True)
class SheetPreviewer:
    """Stands in for a previewer of the host, which draws the first frame that it is given."""

    previewer: object

    def decode_latent_to_preview_image(self, preview_format: str, x0: torch.Tensor) -> tuple:
        """Return the host's (format, picture, size limit), the picture being a contact sheet."""
        rows, columns = choose_sheet_shape(len(x0), landscape=x0.shape[-1] > x0.shape[-2])
        drawn = [
            self.previewer.decode_latent_to_preview_image(preview_format, x0[i : i + 1])
            for i in choose_frames(len(x0), rows * columns)
        ]
        kind, _, limit = drawn[0]
        return kind, make_contact_sheet([picture for _, picture, _ in drawn], columns), limit


def add_contact_sheets(callback: Callable | None) -> Callable | None:
    """Return the host's callback with contact sheets; any other one, or a blind one, as it is."""
    if not isinstance(callback, FunctionType) or callback.__module__ != HOST_MODULE:
        return callback
    names, cells = callback.__code__.co_freevars, list(callback.__closure__ or ())
    position = names.index(PREVIEWER) if PREVIEWER in names else None
    # None: previews are off. Another module's: a pack with previews of its own, such as moving ones
    if position is None or type(cells[position].cell_contents).__module__ != HOST_MODULE:
        return callback
    # No extension point lies between x0 and the picture: x0 is what the callback also hands on to
    # denoised_output. So the run gets the same function around another previewer.
    cells[position] = CellType(SheetPreviewer(cells[position].cell_contents))
    return FunctionType(
        callback.__code__,
        callback.__globals__,
        callback.__name__,
        callback.__defaults__,
        tuple(cells),
    )
