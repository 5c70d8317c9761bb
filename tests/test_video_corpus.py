"""Every kind of video has the frames and times that ffmpeg gives it; HDR follows its formula."""

import json
import shutil
import subprocess

import numpy as np
import pytest
from animatediff_lightning.video import colour
from animatediff_lightning.video.frames import open_decoder

from . import video_corpus
from .video_corpus import CORPUS, COUNT, HLG, PQ
from .video_files import decode

COMPARED = [name for name, video in CORPUS.items() if video.reference is not None]
needs_ffmpeg = pytest.mark.skipif(
    not (shutil.which("ffmpeg") and shutil.which("ffprobe")),
    reason="NOT COMPARED WITH FFMPEG: it is not installed here (apt install ffmpeg)",
)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """The path of every file by name."""
    return video_corpus.write_all(tmp_path_factory.mktemp("corpus"))


# ---- as ffmpeg shows it --------------------------------------------------------------------------


def ask_ffmpeg(path, filters, shape, dtype=np.uint8):
    """Return the frames that ffmpeg decodes, each once, (n, *shape)."""
    command = ["ffmpeg", "-v", "error", "-i", path, "-map", "0:v:0", "-vf", filters]
    command += ["-fps_mode", "passthrough", "-f", "rawvideo", "-"]
    output = subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout
    return np.frombuffer(output, dtype).reshape(-1, *shape)


def ask_ffprobe(path):
    """Return the time of each frame in seconds, None where ffmpeg does not tell it."""
    command = ["ffprobe", "-v", "error", "-select_streams", "v:0", "-of", "json"]
    command += ["-show_entries", "frame=best_effort_timestamp_time", path]
    frames = json.loads(subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout)
    times = [frame.get("best_effort_timestamp_time") for frame in frames["frames"]]
    return [time if time is None else float(time) for time in times]


@needs_ffmpeg
@pytest.mark.parametrize("name", COMPARED)
def test_frames_and_times_are_those_of_ffmpeg(corpus, name):
    video = CORPUS[name]
    times, frames = decode(corpus[name])
    scale = ":".join(filter(None, (f"scale={video.scale}", video.reference)))
    theirs = ask_ffmpeg(corpus[name], f"{scale},format=rgb24", frames.shape[1:])
    assert len(frames) == len(theirs)
    assert np.abs(frames.astype(int) - theirs).mean() <= 2
    their_times = ask_ffprobe(corpus[name])
    for ours, time in zip(times, their_times, strict=True):
        if time is not None:
            assert ours - times[0] == pytest.approx(time - their_times[0], abs=1e-3)


def expected_sdr(signal: np.ndarray, transfer: int) -> np.ndarray:
    """Return 0..255 of R'G'B' (..., 3) in 0..1: docs/design/hdr-to-sdr.md, a second time."""
    m1, m2, c1, c2, c3 = 0.1593017578125, 78.84375, 0.8359375, 18.8515625, 18.6875

    def pq(light):
        y = (light / 10000) ** m1
        return ((c1 + c2 * y) / (1 + c3 * y)) ** m2

    def unpq(value):
        root = value ** (1 / m2)
        return 10000 * (np.maximum(root - c1, 0) / (c2 - c3 * root)) ** (1 / m1)

    if transfer == PQ:
        light = unpq(signal)
    else:
        a = 0.17883277
        b, c = 1 - 4 * a, 0.5 - a * np.log(4 * a)
        scene = np.where(signal <= 0.5, signal**2 / 3, (np.exp((signal - c) / a) + b) / 12)
        y = 0.2627 * scene[..., 0] + 0.6780 * scene[..., 1] + 0.0593 * scene[..., 2]
        light = 1000 * y[..., None] ** 0.2 * scene
    largest = light.max(-1)
    e1, top = np.minimum(pq(largest) / pq(1000), 1), pq(203) / pq(1000)
    ks = 1.5 * top - 0.5
    t = (e1 - ks) / (1 - ks)
    p = (2 * t**3 - 3 * t**2 + 1) * ks + (t**3 - 2 * t**2 + t) * (1 - ks)
    e2 = np.where(e1 < ks, e1, p + (-2 * t**3 + 3 * t**2) * top)
    light = light * (unpq(e2 * pq(1000)) / np.maximum(largest, 1e-9))[..., None]
    r, g, b = np.moveaxis(light / 203, -1, 0)
    linear = (
        1.6605 * r - 0.5876 * g - 0.0728 * b,
        -0.1246 * r + 1.1329 * g - 0.0083 * b,
        -0.0182 * r - 0.1006 * g + 1.1187 * b,
    )
    return 255 * np.clip(np.stack(linear, -1), 0, 1) ** (1 / 2.4)


@needs_ffmpeg
@pytest.mark.parametrize(
    ("name", "transfer"), [("hlg.mp4", HLG), ("hlg_av1.webm", HLG), ("pq.mp4", PQ)]
)
def test_hdr_is_mapped_by_the_documented_formula(corpus, name, transfer):
    _, frames = decode(corpus[name])
    exact = "flags=bicubic+accurate_rnd+full_chroma_int"
    filters = f"scale=in_color_matrix=bt2020:{exact},format=rgb48le"
    signal = ask_ffmpeg(corpus[name], filters, frames.shape[1:], np.uint16) / 65535
    assert len(frames) == len(signal) == COUNT
    assert np.abs(frames - expected_sdr(signal, transfer)).mean() <= 2
    decoder = open_decoder(corpus[name], name)
    assert decoder.warnings == (
        f"{name} is HDR ({'PQ' if transfer == PQ else 'HLG'}); its brightness and colours were "
        "mapped to SDR.",
    )


def test_hdr_at_values_that_standards_name():
    def grey(signal, transfer):
        pixels = np.full((1, 1, 3), round(65535 * signal), np.uint16)
        r, g, b = colour.to_sdr(pixels, transfer)[0, 0].tolist()
        assert max(r, g, b) - min(r, g, b) <= 1
        return g

    # BT.2408 table 1: reference white, 203 cd/m2, is 58 % of PQ and 75 % of HLG
    assert abs(grey(0.58, PQ) - grey(0.75, HLG)) <= 1
    assert 225 <= grey(0.58, PQ) <= 235
    assert grey(0.7518, PQ) == grey(1.0, HLG) == grey(1.0, PQ) == 255  # 1000 cd/m2 and more
    assert grey(0.0, PQ) == grey(0.0, HLG) == 0
    # dark greys keep their light: 10 cd/m2 of a white of 203
    assert abs(grey(0.2997, PQ) - 255 * (10 / 203) ** (1 / 2.4)) <= 1


@pytest.mark.parametrize(
    ("told", "size", "matrix"),
    [(2, (720, 576), 5), (2, (1280, 536), 1), (2, (608, 1080), 1), (6, (1920, 1080), 5)],
)
def test_the_matrix_where_a_file_tells_none_follows_the_size(told, size, matrix):
    assert colour.choose_matrix(told, *size) == matrix
