"""Videos are read the same for nodes and trainer, with their sound, and past what is broken."""

import contextlib

import av
import numpy as np
import pytest
from animatediff_lightning.video import kinds
from animatediff_lightning.video.clip import ClipRequest
from animatediff_lightning.video.clip import read_clip as read_node_clip
from animatediff_lightning.video.container import UnusableVideoError
from animatediff_lightning.video.frames import open_decoder
from animatediff_lightning.video.reader import ClipShape, Extent, probe_video, read_clip
from animatediff_lightning.video.sound import read_sound

from . import video_corpus
from .video_corpus import CORPUS, COUNT, SOUND_RATE
from .video_files import decode

ALL = [*CORPUS, "moving.webp"]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """The path of every file by name."""
    return video_corpus.write_all(tmp_path_factory.mktemp("corpus"))


# ---- the same for nodes and trainer --------------------------------------------------------------


def end_of(path):
    """Return where the last frame of a file ends, in seconds."""
    return list(open_decoder(path, "").frames())[-1][1]


@pytest.mark.parametrize("name", ALL)
def test_nodes_and_trainer_get_the_same_pixels(corpus, name):
    path, shape = corpus[name], ClipShape(5, 8, 128, 64)
    extent = probe_video(path, shape.frames, shape.fps)
    for where in (0.0, 0.37, 0.999):
        start = extent.start(where, shape.frames, shape.fps)
        node = read_node_clip(path, ClipRequest(start, 5, 8, 128, 64))
        if len(node.images) < 5:  # the file is a little shorter than it says
            start = Extent(end_of(path), extent.rate).start(where, shape.frames, shape.fps)
            node = read_node_clip(path, ClipRequest(start, 5, 8, 128, 64))
        expected = (node.images * 255).round().byte().numpy()
        told: list[str] = []
        trainer = read_clip(path, shape, where, told.append, name)
        assert np.array_equal(trainer, expected)
        assert set(told) == {w for w in node.warnings if "audio" not in w and "sound" not in w}
        assert np.array_equal(read_clip(path.read_bytes(), shape, where), trainer)


@pytest.mark.parametrize("name", ALL)
def test_frames_after_a_seek_are_those_of_reading_through(corpus, name):
    decoder = open_decoder(corpus[name], name)
    whole = list(decoder.frames())
    assert decoder.is_complete
    size = tuple(round(side) for side in whole[0][2].shape)
    for start in (0.3, 0.71, 1.2, 1.9):
        part = list(decoder.frames(start))
        rest = whole[len(whole) - len(part) :]
        assert [p[0] for p in part] == pytest.approx([w[0] for w in rest], abs=1e-6)
        assert part[0][0] <= max(start, whole[0][0])
        for ours, expected in zip(part, rest, strict=True):
            assert np.array_equal(ours[2].render(size), expected[2].render(size))


def test_an_odd_angle_is_told(tmp_path):
    path = video_corpus.write(tmp_path, "h264.mp4")
    path.write_bytes(video_corpus.turned(0.6, 0.8, -0.8, 0.6)(path.read_bytes()))
    clip = read_node_clip(path, ClipRequest())
    assert clip.images.shape[1:3] == (64, 64)
    assert "h264.mp4 is turned by an odd angle; the nearest right angle is used." in clip.warnings


@pytest.mark.parametrize("name", ["a.gif", "a.png", "a.webp"])
def test_moving_pictures_whose_frames_last_unlike_times(tmp_path, name):
    levels, lasts = (0, 80, 160, 240), [80, 500, 80, 100]
    images = [video_corpus.Image.new("RGB", (64, 64), (level,) * 3) for level in levels]
    options = {"save_all": True, "append_images": images[1:], "duration": lasts, "lossless": True}
    images[0].save(tmp_path / name, **options)
    clip = read_node_clip(tmp_path / name, ClipRequest(fps=50))
    shown = (clip.images[:, 0, 0, 0] * 255).round().int().tolist()
    assert shown == [
        level for level, ms in zip(levels, lasts, strict=True) for _ in range(ms // 20)
    ]
    assert read_node_clip(tmp_path / name, ClipRequest()).fps == pytest.approx(4 / 0.76)


# ---- sound ---------------------------------------------------------------------------------------


def clip_with_sound(path, **request):
    clip = read_node_clip(path, ClipRequest(**request))
    return clip, clip.audio["waveform"], [w for w in clip.warnings if path.name in w]


@pytest.mark.parametrize("name", [n for n, v in CORPUS.items() if v.sound])
def test_sound_never_costs_the_picture(corpus, name):
    for start in (0.0, 0.4):
        clip, waveform, _ = clip_with_sound(corpus[name], start=start, max_frames=6)
        assert len(clip.images) == 6
        rate = clip.audio["sample_rate"]
        assert waveform.shape == (1, 2, round(6 / clip.fps * rate))
        if name != "odd_sound.mov":
            assert waveform.square().mean().sqrt() == pytest.approx(0.3 / 2**0.5, rel=0.2)


def heard_time(waveform, rate) -> float:
    """Return the time on the corpus' clock at which a part of its sound begins, by its pitch."""
    part = waveform[0, 0, round(0.05 * rate) : round(0.25 * rate)]
    crossings = (part[:-1] < 0) & (part[1:] >= 0)
    first, *_, last = crossings.nonzero().flatten().tolist()
    pitch = (crossings.sum().item() - 1) * rate / (last - first)
    return (pitch - 400) / 400 - (0.05 + (first + last) / 2 / rate)


@pytest.mark.parametrize("name", [n for n, v in CORPUS.items() if v.sound and "odd" not in n])
def test_sound_and_picture_keep_together(corpus, name):
    video = CORPUS[name]
    # what an MP4 has before 0 s is not shown
    begin = max(0.0, video.times[0] / video.rate)
    for start in (0.0, 0.3, 0.5):
        _, waveform, _ = clip_with_sound(corpus[name], start=start, fps=12, max_frames=4)
        heard = heard_time(waveform, SOUND_RATE)
        assert heard == pytest.approx(begin + start, abs=0.03), start


def test_a_track_that_nobody_can_decode_is_silence(corpus):
    clip, waveform, warnings = clip_with_sound(corpus["odd_sound.mov"])
    assert len(clip.images) == COUNT
    assert not waveform.any()
    assert warnings == ["the audio of odd_sound.mov is silence, since its sound cannot be decoded."]


def test_the_first_track_that_can_be_decoded_is_taken(corpus):
    _, waveform, warnings = clip_with_sound(corpus["odd_sound_first.mov"])
    assert waveform.abs().max() > 0.2
    assert warnings == []


def test_a_video_without_sound_gives_silence(corpus):
    for name in ("h264.mp4", "moving.webp", "moving.gif"):
        clip, waveform, warnings = clip_with_sound(corpus[name])
        assert waveform.shape[-1] == round(len(clip.images) / clip.fps * 44100)
        assert not waveform.any()
        assert warnings == [f"the audio of {name} is silence, since it has no sound."]


def test_sound_that_ends_before_the_picture_is_silent_from_there(corpus):
    sound = read_sound(corpus["h264.mkv"], 10.0, 0.5)
    assert sound.audio["waveform"].shape == (1, 2, SOUND_RATE // 2)
    assert not sound.audio["waveform"].any()
    assert sound.warnings == ()


def test_broken_packets_of_sound_are_silence_and_counted(corpus):
    _, waveform, warnings = clip_with_sound(corpus["broken_sound.mp4"])
    assert warnings == ["the sound of broken_sound.mp4 has 3 broken packets; it is silent there."]
    loud = waveform[0, 0].abs() > 1e-4
    seconds = (~loud[4800:-9600]).sum() / 48000
    assert 0.02 < seconds < 0.12  # three packets of 1024 samples


# ---- damage --------------------------------------------------------------------------------------


def skip_broken(path):
    """Return the frames of a file without those of broken packets, as the host's own reader."""
    frames = []
    with av.open(str(path)) as file:
        for packet in file.demux(file.streams.video[0]):
            try:
                frames += packet.decode()
            except av.error.InvalidDataError:
                continue
    return frames


@pytest.mark.parametrize(
    ("name", "count", "decoded", "packets"),
    [
        ("broken.mp4", 30, 29, 1),
        ("broken_first.mp4", 24, 16, 1),  # the others build on it
        ("broken_last.mp4", 24, 23, 1),
        ("broken_many.avi", 24, 21, 3),
        ("broken_av1.mp4", 24, 23, 1),
    ],
)
def test_broken_packets_cost_their_frames_alone(corpus, name, count, decoded, packets):
    path = corpus[name]
    frames = skip_broken(path)
    assert len(frames) == decoded
    times, shown = decode(path)
    assert times[:decoded] == pytest.approx([f.time - frames[0].time + times[0] for f in frames])
    clip = read_node_clip(path, ClipRequest())
    assert len(clip.images) == count  # the frame before is held
    several = "s" * (packets > 1)
    assert clip.warnings[0] == (
        f"{name} has {packets} broken packet{several}; the frame before is shown for longer."
    )
    size = shown.shape[2], shown.shape[1]
    for frame, ours in zip(frames, shown, strict=False):
        theirs = frame.to_ndarray(format="rgb24")
        assert theirs.shape[:2] == size[::-1]
        assert np.abs(theirs.astype(int) - ours).mean() <= 2


@pytest.mark.slow
@pytest.mark.parametrize("name", ["h264.mp4", "h264.mkv", "h264.ts", "mpeg2.mpg", "moving.webp"])
def test_damage_anywhere_is_survived_or_told_in_a_sentence(corpus, tmp_path, name):
    path = tmp_path / name
    told = []
    for seed in range(12):
        generator = np.random.default_rng(seed)
        content = bytearray(corpus[name].read_bytes())
        place, size = generator.integers(len(content)), generator.integers(1, 2000)
        content[place : place + size] = generator.bytes(size) if seed % 2 else b""
        path.write_bytes(content)
        try:
            clip = read_node_clip(path, ClipRequest(0.4, 5, 8, 64, 64))
            assert clip.images.shape[1:] == (64, 64, 3)
        except ValueError as error:
            told.append(str(error))
        with contextlib.suppress(UnusableVideoError):
            assert read_clip(path, ClipShape(4, 8, 64, 64), 0.5).shape == (4, 64, 64, 3)
    assert all(name in sentence for sentence in told)


def test_what_is_no_video_is_refused(corpus, tmp_path):
    contents = {
        "text.mp4": (b"no video at all" * 100, "damaged, or not a video that PyAV can read"),
        "empty.mov": (b"", "an empty file"),
        "cut.webp": (corpus["moving.webp"].read_bytes()[:60], "damaged, or not a video"),
        "list.mp4": (b"ffconcat version 1.0\nfile h264.mp4\n", "damaged, or not a video"),
    }
    for name, (content, reason) in contents.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(UnusableVideoError, match=reason):
            probe_video(tmp_path / name, 4, 8)
        with pytest.raises(ValueError, match=f"^{name} "):
            read_node_clip(tmp_path / name, ClipRequest())
    for name in ("still.webp", "still.png"):
        video_corpus.write_webp(tmp_path / "a.webp", 1).rename(tmp_path / "still.webp")
        video_corpus.Image.new("RGB", (8, 8)).save(tmp_path / "still.png")
        with pytest.raises(ValueError, match=f"{name} is a still picture; load it with Load Image"):
            read_node_clip(tmp_path / name, ClipRequest())


# ---- which files are videos ----------------------------------------------------------------------


def test_every_file_of_the_corpus_is_taken_for_a_video(corpus):
    assert {name: kinds.find_fault(path) for name, path in corpus.items()} == dict.fromkeys(ALL)
    extensions = {path.suffix for path in corpus.values()}
    assert {".gif", ".ts", ".m2ts", ".mxf", ".3gp", ".wmv", ".flv", ".ogv"} <= extensions


def test_pictures_that_do_not_move_and_other_files_are_not(tmp_path):
    video_corpus.write_webp(tmp_path / "still.webp", 1)
    image = video_corpus.Image.new("P", (8, 8))
    image.save(tmp_path / "still.png", pnginfo=long_text())
    (tmp_path / "notes.pdf").touch()
    (tmp_path / "gone.mp4").symlink_to(tmp_path / "nowhere.mp4")
    (tmp_path / "folder.mp4").mkdir()
    assert {f.name: kinds.find_fault(f) for f in tmp_path.iterdir()} == {
        "still.webp": kinds.STILL,
        "still.png": kinds.STILL,
        "notes.pdf": kinds.NO_VIDEO,
        "gone.mp4": "a link that leads nowhere",
        "folder.mp4": "not a file",
    }


def long_text():
    """Return metadata as ComfyUI writes it into its pictures."""
    from PIL.PngImagePlugin import PngInfo

    info = PngInfo()
    info.add_text("workflow", "acTL " * 10000)
    return info
