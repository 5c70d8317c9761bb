"""Makes the pixels that a viewer sees from a decoded frame: upright, of one size, in SDR."""

from dataclasses import dataclass
from fractions import Fraction

import av
import numpy as np

from . import colour
from .container import UnusableVideoError
from .orientation import Orientation, read_orientation
from .size import crop_and_resize


@dataclass(frozen=True)
class Picture:
    """A decoded frame, and what its file says about it."""

    frame: av.VideoFrame
    pixel_aspect: Fraction = Fraction(1)  # as it is stored
    transfer: int = 0

    @property
    def orientation(self) -> Orientation:
        """How it is turned and mirrored."""
        return read_orientation(self.frame)

    @property
    def shape(self) -> tuple[Fraction, Fraction]:
        """Width and height as a viewer sees them, in stored pixels as high as one."""
        width, height = self.frame.width * self.pixel_aspect, Fraction(self.frame.height)
        return (height, width) if self.orientation.swapped else (width, height)

    def render(self, size: tuple[int, int]) -> np.ndarray:
        """Return uint8 RGB (height, width, 3) of size (width, height), cropped evenly to fit.

        Pixels are resized as they are stored, and HDR is mapped to SDR after that.
        """
        turn = self.orientation
        try:
            pixels = turn.apply(colour.read_rgb(self.frame, self.transfer))
        except av.error.FFmpegError as error:
            reason = f"its pixels are of an unknown kind ({self.frame.format.name})"
            raise UnusableVideoError(reason) from error
        aspect = 1 / self.pixel_aspect if turn.swapped else self.pixel_aspect
        # a float may round the other way where half a pixel decides
        pixels = crop_and_resize(pixels, size, Fraction(*size) / aspect)
        return colour.to_sdr(pixels, self.transfer) if self.transfer in colour.HDR else pixels
