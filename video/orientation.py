"""How a picture is turned and mirrored: the display matrix of MP4, MOV and H.264."""

import struct
from dataclasses import dataclass

import av
import numpy as np
from av.sidedata.sidedata import SideData


@dataclass(frozen=True)
class Orientation:
    """Rows and columns are swapped first, then the picture is mirrored."""

    swapped: bool = False
    left_right: bool = False
    upside_down: bool = False
    exact: bool = True  # False: the angle is no multiple of 90 degrees, the nearest one is taken

    def apply(self, pixels: np.ndarray) -> np.ndarray:
        """Return pixels (h, w, 3) as they are meant to be seen."""
        pixels = pixels.swapaxes(0, 1) if self.swapped else pixels
        return pixels[:: -1 if self.upside_down else 1, :: -1 if self.left_right else 1]


def read_orientation(frame: av.VideoFrame) -> Orientation:
    """Return what a frame's display matrix says; nothing to do where it has none.

    ISO/IEC 14496-12, 6.2.2: (x', y') = (a x + c y, b x + d y), y from top to bottom. The matrix is
    a, b, u, c, d, v, x, y, w; a and b are rows here, whatever the scale.
    """
    data = frame.side_data.get("DISPLAYMATRIX")
    if not isinstance(data, SideData):
        return Orientation()
    a, b, _, c, d = struct.unpack("=5i", bytes(data)[:20])
    large, small = sorted((abs(a) + abs(d), abs(b) + abs(c)), reverse=True)
    exact = small <= 0.01 * large  # half a degree
    if abs(b) + abs(c) > abs(a) + abs(d):
        return Orientation(True, c < 0, b < 0, exact)
    return Orientation(False, a < 0, d < 0, exact)
