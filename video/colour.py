"""Colours of decoded frames as 8-bit RGB: matrix and range made explicit, HDR mapped to SDR.

HDR: the transfer functions of ITU-R BT.2100 (tables 4 and 5), the tone curve (EETF) of ITU-R
BT.2390, BT.2020 to BT.709 by the matrix of ITU-R BT.2407, and the inverse of ITU-R BT.1886.
docs/design/hdr-to-sdr.md writes them out.
"""

from functools import lru_cache

import av
import numpy as np

PQ, HLG = 16, 18  # AVColorTransferCharacteristic
HDR = {PQ: "PQ", HLG: "HLG"}
PEAK = 1000.0  # cd/m2, the brightest light that is told apart; BT.2100's nominal peak of HLG
WHITE = 203.0  # cd/m2, white of the result: BT.2408's reference white
# BT.2407: linear BT.2020 to linear BT.709
_TO_BT709 = np.array(
    [[1.6605, -0.5876, -0.0728], [-0.1246, 1.1329, -0.0083], [-0.0182, -0.1006, 1.1187]], np.float32
)
_LUMINANCE = np.array([0.2627, 0.6780, 0.0593], np.float32)  # of BT.2020
_M1, _M2 = 2610 / 16384, 2523 / 4096 * 128
_C1, _C2, _C3 = 3424 / 4096, 2413 / 4096 * 32, 2392 / 4096 * 32

_MPEG, _JPEG = 1, 2  # AVColorRange: limited and full
_BT709, _BT601 = 1, 5
# AVColorSpace to the matrix of that name in swscale; 10 is BT.2020 with constant luminance
_MATRICES = {1: _BT709, 4: 4, 5: _BT601, 6: _BT601, 7: 7, 9: 9, 10: 9}
_QUICK = 0x4  # SWS_BICUBIC, ffmpeg's own default
_EXACT = _QUICK | 0x2000 | 0x40000  # and FULL_CHR_H_INT, ACCURATE_RND: HDR spreads its errors


def read_rgb(frame: av.VideoFrame, transfer: int) -> np.ndarray:
    """Return a frame as RGB (h, w, 3): uint8, or uint16 for HDR, whose transfer stays as it is."""
    matrix = choose_matrix(int(frame.colorspace), frame.width, frame.height)
    other = _BT709 if matrix == _BT601 else _BT601
    rgb = frame.reformat(
        format="rgb48le" if transfer in HDR else "rgb24",
        src_colorspace=matrix,
        # PyAV leaves out the matrix where both are equal, which is right for RGB alone
        dst_colorspace=matrix if frame.format.is_rgb else other,
        src_color_range=choose_range(int(frame.color_range), frame.format),
        dst_color_range=_JPEG,
        interpolation=_EXACT if transfer in HDR else _QUICK,
    )
    return rgb.to_ndarray()


def choose_matrix(told: int, width: int, height: int) -> int:
    """Return the matrix of a frame; where it tells none, BT.709 for HD and BT.601 below."""
    return _MATRICES.get(told, _BT709 if width >= 1280 or height > 576 else _BT601)


def choose_range(told: int, pixel_format: av.VideoFormat) -> int:
    """Return the range of a frame; where it tells none, YUV is limited, and all else is full."""
    if pixel_format.is_rgb:
        return _JPEG
    if told in (_MPEG, _JPEG):
        return told
    full = ("yuvj", "gray", "ya", "mono", "pal8")
    return _JPEG if pixel_format.name.startswith(full) else _MPEG


def to_sdr(pixels: np.ndarray, transfer: int) -> np.ndarray:
    """Return uint8 BT.709 pixels of uint16 BT.2020 ones (h, w, 3) whose transfer is PQ or HLG."""
    light = _light_table(transfer)[pixels]
    if transfer == HLG:  # BT.2100 table 5: the OOTF of a display of PEAK, gamma 1.2
        light *= PEAK * (light @ _LUMINANCE)[..., None] ** 0.2
    light *= _gain(light.max(axis=-1, keepdims=True)) / WHITE
    linear = np.clip(light @ _TO_BT709.T, 0, 1)
    return np.round(255 * linear ** (1 / 2.4)).astype(np.uint8)  # BT.1886 with a black of 0


@lru_cache
def _light_table(transfer: int) -> np.ndarray:
    """Return for each 16-bit value the light: of the display in cd/m2 (PQ), or of the scene."""
    value = np.arange(65536) / 65535
    if transfer == PQ:
        return _from_pq(value).astype(np.float32)
    a, b, c = 0.17883277, 0.28466892, 0.55991073
    light = np.where(value <= 0.5, value**2 / 3, (np.exp((value - c) / a) + b) / 12)
    return light.astype(np.float32)


def _from_pq(value: np.ndarray) -> np.ndarray:
    """Return the light in cd/m2 of PQ values in 0..1."""
    root = value ** (1 / _M2)
    return 10000 * (np.maximum(root - _C1, 0) / (_C2 - _C3 * root)) ** (1 / _M1)


def _to_pq(light: np.ndarray) -> np.ndarray:
    power = (light / 10000) ** _M1
    return ((_C1 + _C2 * power) / (1 + _C3 * power)) ** _M2


def _gain(light: np.ndarray) -> np.ndarray:
    """Return what the largest of R, G and B (cd/m2) is multiplied with to fit into 0..WHITE.

    BT.2390's EETF from a display of PEAK to one of WHITE; black is 0 on both.
    """
    peak, white = _to_pq(np.array([PEAK, WHITE], np.float32))
    highest = white / peak
    knee = 1.5 * highest - 0.5
    value = np.minimum(_to_pq(light) / peak, 1)
    t = np.maximum(value - knee, 0) / (1 - knee)
    spline = (
        (2 * t**3 - 3 * t**2 + 1) * knee
        + (t**3 - 2 * t**2 + t) * (1 - knee)
        + (-2 * t**3 + 3 * t**2) * highest
    )
    mapped = _from_pq(np.where(value < knee, value, spline) * peak)
    return mapped / np.maximum(light, 1e-4)
