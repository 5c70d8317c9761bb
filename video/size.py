"""Which size a video gets, and how its frames are brought to it."""

from fractions import Fraction

import numpy as np

MAX_SIDE = 8192  # pixels of a frame, as in the host's own nodes
_GRID = 64  # pixels: latents are an eighth of them, and SD1.5's UNet halves those three times


def choose_size(
    own_width: float | Fraction, own_height: float | Fraction, width: int = 0, height: int = 0
) -> tuple[int, int]:
    """Return the (width, height) to make, multiples of 64; a 0 follows the picture's shape."""
    if not width and not height:
        return _round_to_grid(own_width), _round_to_grid(own_height)
    return (
        _round_to_grid(width or own_width * height / own_height),
        _round_to_grid(height or own_height * width / own_width),
    )


def _round_to_grid(side: float | Fraction) -> int:
    return max(_GRID, int(side / _GRID + 0.5) * _GRID)


def crop_and_resize(
    pixels: np.ndarray, size: tuple[int, int], aspect: float | Fraction
) -> np.ndarray:
    """Resize (h, w, 3) to size (width, height), cutting off evenly what is too wide or high.

    `aspect` is the width of what stays over its height, both in pixels of the original.
    """
    cv2 = _import_opencv()
    height, width = pixels.shape[:2]
    w, h = min(width, max(1, round(height * aspect))), min(height, max(1, round(width / aspect)))
    top, left = (height - h) // 2, (width - w) // 2
    pixels = np.ascontiguousarray(pixels[top : top + h, left : left + w])
    shrinks = size[0] < w or size[1] < h
    return cv2.resize(pixels, size, interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_CUBIC)


def _import_opencv():
    # a stock ComfyUI lacks opencv, and a pack that was copied by hand should still load
    try:
        import cv2
    except ModuleNotFoundError as error:
        raise ValueError(
            "Load Video Frames needs opencv; run `pip install -r requirements.txt` in the pack's "
            "folder with ComfyUI's Python, and restart ComfyUI."
        ) from error
    return cv2
