"""Writes a small video of every kind that the reader has to understand, with PyAV and Pillow.

    python tests/video_corpus.py FOLDER

Every file shows a grey square on its way over a smooth ramp of colours, 64 x 48 where nothing asks
for more. CORPUS tells how ffmpeg is to show a file: its filter, which names matrix and range.
"""

import struct
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from PIL import Image

COUNT, RATE = 24, 12
SOUND_RATE = 48000
BT601, BT709, BT2020 = 5, 1, 9
LIMITED, FULL = 1, 2
PQ, HLG = 16, 18
SD, HD, UHD = "in_color_matrix=bt601", "in_color_matrix=bt709", "in_color_matrix=bt2020"
QUALITY = {
    "libx264": {"crf": "4", "preset": "veryfast", "g": "8"},
    "libx265": {"crf": "4", "preset": "ultrafast", "x265-params": "log-level=none:keyint=8"},
    "libsvtav1": {"crf": "4", "preset": "10", "g": "8", "svtav1-params": "lp=1"},
    "libvpx-vp9": {"crf": "4", "b": "0", "cpu-used": "8", "g": "8"},
    "libvpx": {"crf": "4", "b": "4M", "cpu-used": "8", "g": "8"},
}
COARSE = {"qmin": "2", "qmax": "2", "g": "8"}  # of the older encoders
EVEN = tuple(range(COUNT))
UNEVEN = (0, 1, 2, 7, 8, 13, 14, 15, 21, 23, 24, 30)  # in frames at RATE


@dataclass(frozen=True)
class Video:
    """What is written into a file, and how ffmpeg shows it; None: not compared with ffmpeg."""

    codec: str = "libx264"
    reference: str | None = SD
    scale: str = "iw*sar:ih"  # of ffmpeg, to square pixels
    size: tuple[int, int] = (64, 48)
    pixels: str = "yuv420p"
    rate: int = RATE
    times: Sequence[float] = EVEN  # of each frame, in 1 / rate
    colour: dict[str, int] = field(default_factory=dict)  # attributes of the encoder
    aspect: Fraction = Fraction(1)
    sound: Sequence[str] = ()  # codecs of the tracks
    options: dict[str, str] = field(default_factory=dict)  # of the container
    change: Callable[[bytes], bytes] = bytes  # of the finished file


def colours(matrix: int, spread: int = LIMITED, transfer: int = 1, primaries: int = 1) -> dict:
    """Return the encoder's attributes of a colour space."""
    names = ("colorspace", "color_range", "color_trc", "color_primaries")
    return dict(zip(names, (matrix, spread, transfer, primaries), strict=True))


def draw(index: int, size: tuple[int, int]) -> np.ndarray:
    """Return frame `index`, uint8 RGB (height, width, 3)."""
    width, height = size
    y, x = np.mgrid[:height, :width]
    turn = index / COUNT
    ramps = (x / width, y / height, (x / width + y / height) / 2 + turn / 2)
    pixels = np.stack([40 + 175 * (r % 1.0001) for r in ramps], axis=-1)
    left, side = round(turn * (width - 16)), 12
    pixels[4 : 4 + side, left : left + side] = 128
    return pixels.round().astype(np.uint8)


# ---- changes of finished files -------------------------------------------------------------------


def turned(a: int, b: int, c: int, d: int) -> Callable[[bytes], bytes]:
    """Return the change that writes a display matrix into an MP4's track header (version 0)."""
    numbers = [round(n * 65536) for n in (a, b, 0, c, d, 0, 0, 0)]

    def change(content: bytes) -> bytes:
        place = content.index(b"tkhd") + 4 + 40
        matrix = struct.pack(">9i", *numbers, 1 << 30)
        return content[:place] + matrix + content[place + 36 :]

    return change


def renamed(old: bytes, new: bytes) -> Callable[[bytes], bytes]:
    """Return the change of a name, such as a codec's, into one of the same length."""
    return lambda content: content.replace(old, new, 1)


def broken(kind: str, *numbers: int) -> Callable[[bytes], bytes]:
    """Return the change that overwrites packets of the first "video" or "audio" stream."""

    def change(content: bytes) -> bytes:
        return overwrite(content, packet_places(content, kind), numbers)

    return change


def packet_places(content: bytes, kind: str) -> list[tuple[int, int]]:
    """Return place and size of each packet of the first stream of a kind, in their order."""
    import io

    with av.open(io.BytesIO(content)) as file:
        stream = getattr(file.streams, kind)[0]
        return [(p.pos, p.size) for p in file.demux(stream) if p.size]


def overwrite(content: bytes, places: list[tuple[int, int]], numbers: Sequence[int]) -> bytes:
    """Return the content with 0xff in place of some packets."""
    changed = bytearray(content)
    for number in numbers:
        place, size = places[number]
        changed[place : place + size] = b"\xff" * size
    return bytes(changed)


# ---- the files -----------------------------------------------------------------------------------

HDR = {"codec": "libx265", "pixels": "yuv420p10le", "reference": None}
CORPUS: dict[str, Video] = {
    # codecs and containers
    "h264.mp4": Video(),
    "h264.mov": Video(sound=["aac"]),
    "h264.m4v": Video(options={"format": "mp4"}),
    "h264.mkv": Video(sound=["aac"]),
    "hevc.mp4": Video("libx265"),
    "av1.mp4": Video("libsvtav1", size=(64, 64)),
    "av1.webm": Video("libsvtav1", size=(64, 64), sound=["libopus"]),
    "vp9.webm": Video("libvpx-vp9"),
    "vp8.ogv": Video("libvpx"),
    "mpeg4.avi": Video("mpeg4", sound=["mp3"]),
    "mpeg1.mpeg": Video("mpeg1video", rate=25),
    "mpeg2.mpg": Video("mpeg2video", rate=25, sound=["ac3"], options={"format": "dvd"}),
    "mpeg2.vob": Video("mpeg2video", rate=25, sound=["ac3"]),
    "h264.ts": Video(sound=["mp2"]),
    "h264.m2ts": Video(sound=["ac3"]),
    "mpeg2.mxf": Video("mpeg2video", rate=25, sound=["pcm_s16le"]),
    "h263.3gp": Video("h263", size=(128, 96)),
    "wmv2.wmv": Video("wmv2", sound=["wmav2"]),
    "flv1.flv": Video("flv", rate=25, sound=["mp3"]),
    "moving.gif": Video("gif", reference="", pixels="rgb8"),
    "moving.apng": Video("apng", reference="", pixels="rgb24"),
    "moving.png": Video("apng", reference="", pixels="rgb24", options={"format": "apng"}),
    # shape
    "odd_size.mkv": Video("ffv1", size=(70, 50)),
    "wide_pixels.mp4": Video(aspect=Fraction(3, 2)),
    "narrow_pixels.mkv": Video(aspect=Fraction(3, 4)),
    "turned_90.mp4": Video(change=turned(0, 1, -1, 0)),
    "turned_180.mp4": Video(change=turned(-1, 0, 0, -1)),
    "turned_270.mp4": Video(change=turned(0, -1, 1, 0)),
    "mirrored.mp4": Video(change=turned(-1, 0, 0, 1)),
    "upside_down.mp4": Video(change=turned(1, 0, 0, -1)),
    "mirrored_and_turned_90.mp4": Video(change=turned(0, 1, 1, 0)),
    "mirrored_and_turned_270.mp4": Video(change=turned(0, -1, -1, 0)),
    "turned_wide_pixels.mp4": Video(
        aspect=Fraction(3, 2), change=turned(0, 1, -1, 0), scale="iw:ih/sar"
    ),
    # colour
    "bt601.mp4": Video(colour=colours(6, transfer=6, primaries=6)),
    "bt709.mp4": Video(colour=colours(BT709), reference=HD),
    "bt2020.mp4": Video(colour=colours(BT2020, transfer=14, primaries=9), reference=UHD),
    "full_range.mp4": Video(colour=colours(BT709, FULL), reference=HD + ":in_range=full"),
    "full_range_mjpeg.mov": Video("mjpeg", pixels="yuvj420p", reference=SD + ":in_range=full"),
    "untold_hd.mp4": Video(size=(1280, 32), reference=HD),
    "rgb.mkv": Video("ffv1", pixels="bgr0", reference=""),
    "deep_rgb.mkv": Video("ffv1", pixels="gbrp10le", reference=""),
    "deep_grey.mkv": Video("ffv1", pixels="gray10le", reference=""),
    "grey.mkv": Video("ffv1", pixels="gray", reference=""),
    "ten_bit.mkv": Video("libx265", pixels="yuv420p10le", colour=colours(BT709), reference=HD),
    "ten_bit_full_422.mkv": Video(
        "ffv1",
        pixels="yuv422p10le",
        colour=colours(BT709, FULL),
        reference=HD + ":in_range=full",
    ),
    "hlg.mp4": Video(**HDR, colour=colours(BT2020, transfer=HLG, primaries=9)),
    "pq.mp4": Video(**HDR, colour=colours(BT2020, transfer=PQ, primaries=9)),
    "hlg_av1.webm": Video(
        "libsvtav1",
        size=(64, 64),
        pixels="yuv420p10le",
        reference=None,
        colour=colours(BT2020, transfer=HLG, primaries=9),
    ),
    # time
    "variable.mp4": Video(times=UNEVEN, sound=["aac"]),
    "variable.webm": Video("libvpx-vp9", times=UNEVEN),
    "late.mkv": Video(times=[t + 6 for t in EVEN], sound=["aac"]),
    "late.ts": Video(times=[t + 6 for t in EVEN], sound=["aac"]),
    "late.mp4": Video(times=[t + 6 for t in EVEN], sound=["aac"]),
    "negative.mp4": Video(
        times=[t - 3 for t in EVEN], sound=["aac"], options={"avoid_negative_ts": "disabled"}
    ),
    # the clock of a transport stream starts over after 26.5 hours
    "negative.ts": Video(
        rate=25, times=[t + 25 * 95443 for t in EVEN], options={"mpegts_copyts": "1"}
    ),
    # a title that is no UTF-8, as older programs write it
    "odd_title.avi": Video("mpeg4", change=renamed(b"TITLE", b"Caf\xe9!")),
    # sound
    "odd_sound.mov": Video(sound=["pcm_s16le"], change=renamed(b"sowt", b"zzzz")),
    "odd_sound_first.mov": Video(sound=["pcm_s16le", "aac"], change=renamed(b"sowt", b"zzzz")),
    "broken_sound.mp4": Video(sound=["aac"], change=broken("audio", 40, 41, 42)),
    # damage
    "broken.mp4": Video(times=range(30), reference=None, change=broken("video", 13)),
    "broken_first.mp4": Video(reference=None, change=broken("video", 0)),
    "broken_last.mp4": Video(reference=None, change=broken("video", COUNT - 1)),
    "broken_many.avi": Video("mpeg4", reference=None, change=broken("video", 3, 4, 5)),
    "broken_av1.mp4": Video("libsvtav1", size=(64, 64), reference=None, change=broken("video", 11)),
}


def write(folder: Path, name: str) -> Path:
    """Write a file of the corpus and return its path."""
    video, path = CORPUS[name], folder / name
    options = dict(video.options)
    kind = options.pop("format", None)
    with av.open(str(path), "w", format=kind, options=options) as file:
        stream = file.add_stream(video.codec, rate=video.rate)
        stream.width, stream.height = video.size
        stream.pix_fmt = video.pixels
        stream.options = QUALITY.get(video.codec, COARSE)
        file.metadata["title"] = "TITLE"
        context = stream.codec_context
        context.sample_aspect_ratio = video.aspect
        for attribute, value in video.colour.items():
            setattr(context, attribute, value)
        tracks = [_add_sound(file, codec) for codec in video.sound]
        for index, time in enumerate(video.times):
            frame = av.VideoFrame.from_ndarray(draw(index, video.size), format="rgb24")
            frame.pts, frame.time_base = time, Fraction(1, video.rate)
            file.mux(stream.encode(frame))
        file.mux(stream.encode())
        for track in tracks:
            _write_sound(file, track, max(video.times) / video.rate + 0.1)
    path.write_bytes(video.change(path.read_bytes()))
    return path


def _add_sound(file, codec: str):
    track = file.add_stream(codec, rate=SOUND_RATE, layout="stereo")
    track.bit_rate = 128000
    return track


def _write_sound(file, track, seconds: float) -> None:
    """Write a tone whose pitch tells the time: 400 Hz at 0 s, 400 more each second."""
    time = np.arange(round(seconds * SOUND_RATE)) / SOUND_RATE
    samples = 0.3 * np.sin(2 * np.pi * (400 * time + 200 * time**2))
    frame = av.AudioFrame.from_ndarray(
        np.stack([samples] * 2).astype(np.float32), format="fltp", layout="stereo"
    )
    frame.sample_rate, frame.pts, frame.time_base = SOUND_RATE, 0, Fraction(1, SOUND_RATE)
    resampler = av.AudioResampler(
        format=track.codec_context.format, layout="stereo", rate=SOUND_RATE, frame_size=1024
    )
    for part in [*resampler.resample(frame), *resampler.resample(None)]:
        file.mux(track.encode(part))
    file.mux(track.encode())


def write_webp(path: Path, count: int = COUNT) -> Path:
    """Write an animated WebP without loss, or a still one of a single frame."""
    frames = [Image.fromarray(draw(i, (64, 48))) for i in range(count)]
    rest = {"save_all": True, "append_images": frames[1:], "duration": 80} if count > 1 else {}
    frames[0].save(path, lossless=True, **rest)
    return path


def write_all(folder: Path) -> dict[str, Path]:
    """Write the whole corpus and return the paths by name."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = {name: write(folder, name) for name in CORPUS}
    return paths | {"moving.webp": write_webp(folder / "moving.webp")}


if __name__ == "__main__":
    write_all(Path(sys.argv[1]))
