"""Files that claim too much (pixels, time, sound) are refused in one sentence, and cost nothing."""

import struct
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace

import av
import numpy as np
import pytest
from animatediff_lightning.distill.data.video_folder import scan_folder
from animatediff_lightning.video import container, decoder
from animatediff_lightning.video.clip import ClipRequest
from animatediff_lightning.video.clip import read_clip as read_node_clip
from animatediff_lightning.video.container import UnusableVideoError
from animatediff_lightning.video.reader import ClipShape, probe_video, read_clip

from . import video_corpus
from .video_files import numbered, write_lossless

SHAPE = ClipShape(2, 8, 64, 64)
STATUS = Path("/proc/self/statm")  # of Linux


def write_gif(path, width, height, count=2, hundredths=50):
    """Write a GIF of about a hundred bytes whose frames draw one pixel each."""
    content = b"GIF89a" + struct.pack("<HH", width, height) + b"\x80\0\0" + b"\0\0\0\xff\xff\xff"
    for _ in range(count):
        content += b"!\xf9\x04\0" + struct.pack("<H", hundredths) + b"\0\0"
        content += b"," + struct.pack("<HHHH", 0, 0, 1, 1) + b"\0\x02\x02D\x01\0"
    path.write_bytes(content + b";")
    return path


def write_webp(path, width, height):
    """Write an animated WebP whose header claims a size that its frames do not have."""
    _write_moving(path)
    content = bytearray(path.read_bytes())
    assert content[12:16] == b"VP8X"
    content[24:30] = (width - 1).to_bytes(3, "little") + (height - 1).to_bytes(3, "little")
    path.write_bytes(content)
    return path


def write_png(path, width, height):
    """Write an animated PNG whose header claims a size that its frames do not have."""
    _write_moving(path)
    content = bytearray(path.read_bytes())
    content[16:24] = struct.pack(">II", width, height)
    path.write_bytes(content)
    return path


def _write_moving(path):
    """Write a moving picture of one pixel."""
    images = [video_corpus.Image.new("RGB", (1, 1), (level,) * 3) for level in (0, 99)]
    images[0].save(path, save_all=True, append_images=images[1:], duration=500)


# ---- pixels --------------------------------------------------------------------------------------


@pytest.mark.parametrize("write", [write_gif, write_webp, write_png], ids=["gif", "webp", "png"])
def test_pictures_of_too_many_pixels_are_refused(tmp_path, write):
    path = write(tmp_path / f"a.{write.__name__.partition('_')[2]}", 16000, 16000)
    sentence = (
        f"^{path.name} has pictures of 16000x16000 pixels; make them smaller than 67 megapixels.$"
    )
    with pytest.raises(ValueError, match=sentence):
        read_node_clip(path, ClipRequest())
    reason = "^its pictures of 16000x16000 have more than 67 megapixels$"
    with pytest.raises(UnusableVideoError, match=reason):
        probe_video(path, SHAPE.frames, SHAPE.fps)


def test_pictures_that_grow_too_large_are_broken_packets(tmp_path, monkeypatch):
    path = tmp_path / "grows.avi"
    with av.open(str(path), "w") as file:
        stream = file.add_stream("mjpeg", rate=8, width=64, height=64, pix_fmt="yuvj420p")
        file.start_encoding()
        for index, side in enumerate((64, 64, 128, 64)):
            encoder = av.CodecContext.create("mjpeg", "w")
            encoder.width, encoder.height, encoder.pix_fmt = side, side, "yuvj420p"
            encoder.time_base = Fraction(1, 8)
            frame = av.VideoFrame.from_ndarray(numbered(1, side)[0], format="rgb24")
            for packet in [*encoder.encode(frame), *encoder.encode()]:
                packet.stream, packet.pts, packet.dts = stream, index, index
                packet.time_base = Fraction(1, 8)
                file.mux(packet)
    assert not any("broken" in warning for warning in read_node_clip(path, ClipRequest()).warnings)
    monkeypatch.setattr(decoder, "MAX_PIXELS", 64 * 64)
    clip = read_node_clip(path, ClipRequest())
    assert len(clip.images) == 4
    assert "grows.avi has 1 broken packet; the frame before is shown for longer." in clip.warnings


@pytest.mark.parametrize("size", [(16383, 16383), (16, 10485776), (1, 2**24)])
def test_a_picture_of_impossible_size_is_skipped_in_a_folder(tmp_path, size):
    write_webp(tmp_path / "bomb.webp", *size)
    write_lossless(tmp_path / "good.mkv", numbered(8))
    for name in ("bomb", "good"):
        (tmp_path / f"{name}.txt").write_text("a fish")
    videos = scan_folder(tmp_path, SHAPE.frames, SHAPE.fps)
    assert videos.names == ("good.mkv",)
    assert list(videos.bad) == ["bomb.webp"]
    with pytest.raises(ValueError, match=r"^bomb.webp (has pictures of|is damaged)"):
        read_node_clip(tmp_path / "bomb.webp", ClipRequest())


@pytest.mark.parametrize("aspect", [(1, 21), (21, 1), (1, 100000), (1, 2**31 - 1), (2**31 - 1, 1)])
def test_impossible_pixel_aspects_are_refused(tmp_path, aspect):
    path = video_corpus.write(tmp_path, "wide_pixels.mp4")
    content = bytearray(path.read_bytes())
    struct.pack_into(">II", content, content.index(b"pasp") + 4, *aspect)
    path.write_bytes(content)
    reason = f"its pixels have an impossible shape \\({aspect[0]}:{aspect[1]}\\)"
    with pytest.raises(ValueError, match=f"^wide_pixels.mp4 cannot be used, since {reason}; "):
        read_node_clip(path, ClipRequest())
    with pytest.raises(UnusableVideoError, match=f"^{reason}$"):
        read_clip(path, SHAPE, 0.0)


def test_frames_beyond_the_largest_side_are_refused(tmp_path):
    path = write_gif(tmp_path / "tall.gif", 1, 65535)
    for width, size in ((0, "64x65536"), (512, "512x33553920")):
        with pytest.raises(
            ValueError, match=f"tall.gif would have {size} pixels, but at most 8192"
        ):
            read_node_clip(path, ClipRequest(width=width))
    assert read_node_clip(path, ClipRequest(width=64, height=64)).images.shape == (2, 64, 64, 3)
    assert read_clip(path, SHAPE, 0.0).shape == (2, 64, 64, 3)


# ---- sound ---------------------------------------------------------------------------------------


def test_sound_that_does_not_fit_into_memory_is_refused(tmp_path):
    path = write_gif(tmp_path / "slow.gif", 16, 16, count=64, hundredths=65535)
    sentence = (
        "^the loaded part of slow.gif lasts 41942 s, and its sound of 14797 MB does not fit into "
        "memory; set a smaller max_frames, or a higher fps.$"
    )
    with pytest.raises(ValueError, match=sentence):
        read_node_clip(path, ClipRequest(), memory=8e9)
    assert len(read_node_clip(path, ClipRequest(max_frames=2), memory=8e9).images) == 2
    path = video_corpus.write(tmp_path, "h264.mov")
    frames, samples = 12 * 64 * 64 * 3 * 5, 48000 * 2 * 4
    assert len(read_node_clip(path, ClipRequest(max_frames=12), frames + samples).images) == 12
    with pytest.raises(ValueError, match=r"h264.mov lasts 1 s, and its sound of 0 MB does not"):
        read_node_clip(path, ClipRequest(max_frames=12), memory=frames)


@pytest.mark.skipif(not STATUS.exists(), reason="the memory in use is read as on Linux")
def test_silence_takes_no_memory_until_it_is_written_to(tmp_path):
    path = write_gif(tmp_path / "slow.gif", 16, 16, hundredths=65535)
    read_node_clip(write_gif(tmp_path / "quick.gif", 16, 16), ClipRequest())
    pages = int(STATUS.read_text().split()[1])
    waveform = read_node_clip(path, ClipRequest()).audio["waveform"]
    assert (int(STATUS.read_text().split()[1]) - pages) * 4096 < waveform.nbytes / 10
    assert waveform.shape == (1, 2, 57801870)
    assert waveform.is_contiguous()


# ---- time ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("written", ["9999999999999:00:0", "99:99:999999999999", "0:0:" + "9" * 14])
def test_an_impossible_duration_is_left_out(tmp_path, written):
    path = write_lossless(tmp_path / "a.mkv", numbered(8, 64))
    expected = read_clip(path, SHAPE, 0.5)
    content = path.read_bytes()
    place = content.index(b"00:00:01.000000000")
    path.write_bytes(content[:place] + written.encode() + content[place + 18 :])
    assert np.array_equal(read_clip(path, SHAPE, 0.5), expected)


def test_a_long_duration_is_read_in_a_moment():
    stream = SimpleNamespace(duration=None, metadata={"DURATION": "0:0:" + "0" * 300000 + "x"})
    assert container._read_duration(stream) == 0.0


def test_a_start_beyond_64_bits_is_past_the_end(tmp_path):
    path = video_corpus.write(tmp_path, "h264.mov")
    with pytest.raises(ValueError, match=r"^start is 1e\+30 s, but h264.mov ends at 2.00 s;"):
        read_node_clip(path, ClipRequest(start=1e30))
