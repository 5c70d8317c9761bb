"""Videos for training: a real file, even resampling, captions, shards, and every unusable file."""

import io
import os
import re
import shutil
import tarfile

import av
import numpy as np
import pytest
from animatediff_lightning.distill.data import latent_shards, video_folder, video_shards, walk
from animatediff_lightning.distill.engine import read_ahead
from animatediff_lightning.distill.train_motion import clips
from animatediff_lightning.video.container import UnusableVideoError
from animatediff_lightning.video.reader import ClipShape, probe_video, read_clip
from animatediff_lightning.video.size import crop_and_resize
from PIL import Image

from . import video_corpus
from .video_files import numbered, real_video, write_lossless

SMALL = ClipShape(4, 8, 16, 16)


def shown(path, shape, where=0.0):
    """Return the number of each frame of a clip of numbered frames."""
    return read_clip(path, shape, where)[:, 0, 0, 0].tolist()


# ---- one file


@pytest.mark.slow
def test_a_real_video_comes_even_in_time_cropped_and_resized():
    with av.open(str(real_video())) as file:
        own = np.stack([f.to_ndarray(format="rgb24") for f in file.decode(video=0)][:60])
    clip = read_clip(real_video(), ClipShape(8, 8, 96, 64), 0.0)
    assert clip.shape == (8, 64, 96, 3)
    middle = own[:, :, 116 : 640 - 116]  # 408 x 272, as wide to high as 96 x 64
    small = np.stack(
        [crop_and_resize(np.ascontiguousarray(p), (96, 64), 96 / 64) for p in middle]
    ).astype(int)
    apart = np.abs(clip[:, None].astype(int) - small[None]).mean((2, 3, 4))
    assert apart.argmin(1).tolist() == [int(k * 25 / 8 + 0.5) for k in range(8)]
    assert apart.min(1).max() < 2  # of 255: two decoders, two conversions of colour


@pytest.mark.parametrize(
    ("fps", "where", "numbers"),
    [
        (8, 0.0, [0, 1, 2, 3]),
        (8, 1.0, [12, 13, 14, 15]),
        (4, 0.0, [0, 2, 4, 6]),
        (4, 0.5, [4, 6, 8, 10]),
        (16, 0.0, [0, 0, 1, 1]),
        (3, 0.0, [0, 3, 5, 8]),
    ],
)
def test_frames_are_left_out_or_repeated_to_keep_the_speed(tmp_path, fps, where, numbers):
    path = write_lossless(tmp_path / "a.mkv", numbered(16))
    assert shown(path, ClipShape(4, fps, 16, 16), where) == numbers


def test_pixels_of_a_lossless_file_survive(tmp_path):
    frames = np.random.default_rng(0).integers(0, 256, (4, 16, 16, 3), np.uint8)
    path = write_lossless(tmp_path / "a.mkv", frames)
    assert np.array_equal(read_clip(path, SMALL, 0.0), frames)


def test_a_video_may_be_just_long_enough(tmp_path):
    path = write_lossless(tmp_path / "a.mkv", numbered(4))
    assert shown(path, SMALL, 0.999) == [0, 1, 2, 3]
    with pytest.raises(UnusableVideoError, match=r"too short: 0.50 s, but 0.62 s are needed"):
        probe_video(path, 5, 8)


# ---- a folder


@pytest.fixture
def folder(tmp_path):
    """A folder of two good videos, and one of every bad kind."""
    for name in ("b", "sub/a", "silent", "short"):
        write_lossless(tmp_path / f"{name}.mkv", numbered(2 if name == "short" else 8))
    shutil.copy(tmp_path / "b.mkv", tmp_path / "cut.mkv")
    for name, caption in (
        ("b", " two\n words "),
        ("sub/a", "one"),
        ("short", "x"),
        ("cut", "x"),
        ("empty", "x"),
        ("silent", " "),
        ("text", "x"),
    ):
        (tmp_path / f"{name}.txt").write_text(caption)
    (tmp_path / "cut.mkv").write_bytes((tmp_path / "b.mkv").read_bytes()[:200])
    (tmp_path / "empty.mp4").touch()
    (tmp_path / "text.mp4").write_text("no video at all")
    return tmp_path


def test_bad_files_are_skipped_counted_and_listed(folder):
    videos = video_folder.scan_folder(folder, 4, 8)
    assert videos.names == ("b.mkv", "sub/a.mkv")
    assert videos.captions == ("two words", "one")
    assert videos.bad.keys() == {"cut.mkv", "empty.mp4", "short.mkv", "silent.mkv", "text.mp4"}
    told = video_folder.list_skipped(videos.bad)
    assert told.startswith("5 files skipped: cut.mkv (")
    assert "silent.mkv (no caption)" in told
    assert "short.mkv (too short: 0.25 s, but 0.50 s are needed)" in told
    assert video_folder.list_skipped(videos.bad, at_most=1).endswith(", and 4 more.")


@pytest.mark.parametrize(
    "table",
    [
        "file_name,text\nb.mkv,from a table\n",
        "\ufeffText,Video\nfrom a table,b\n",
        "videoid,contentUrl,name\nb,x,from a table\n",
    ],
)
def test_a_table_of_captions(folder, table):
    (folder / "b.txt").unlink()
    (folder / "captions.csv").write_text(table, encoding="utf-8")
    videos = video_folder.scan_folder(folder, 4, 8)
    assert dict(zip(videos.names, videos.captions, strict=True))["b.mkv"] == "from a table"


def test_folders_without_a_usable_video(tmp_path):
    with pytest.raises(ValueError, match=r"holds no videos; give a folder with .mp4"):
        clips.open_videos(str(tmp_path), 4, 8)
    with pytest.raises(ValueError, match=r"nowhere was not found; give a folder of videos, or"):
        clips.open_videos(str(tmp_path / "nowhere"), 4, 8)
    write_lossless(tmp_path / "a.mkv", numbered(8))
    with pytest.raises(ValueError, match=r"none of the 1 videos .*no caption.*write NAME.txt"):
        clips.open_videos(str(tmp_path), 4, 8)
    (tmp_path / "metadata.csv").write_text("file_name,words\na.mkv,x\n")
    with pytest.raises(ValueError, match=r"metadata.csv lacks a column of captions; name"):
        clips.open_videos(str(tmp_path), 4, 8)


# ---- links, and files that are no videos


def test_links_to_folders_are_followed_and_circles_noticed(tmp_path):
    elsewhere, folder = tmp_path / "elsewhere", tmp_path / "videos"
    for path in (elsewhere / "a", elsewhere / "deep" / "b", folder / "c", folder / "own" / "d"):
        write_lossless(path.with_suffix(".mkv"), numbered(8))
        path.with_suffix(".txt").write_text("words")
    (folder / "linked").symlink_to(elsewhere)
    (folder / "own" / "circle").symlink_to(folder)
    (elsewhere / "deep" / "back").symlink_to(elsewhere)
    (folder / "again").symlink_to(folder / "own")
    (folder / "e.mkv").symlink_to(elsewhere / "a.mkv")  # a file: has a caption of its own
    (folder / "e.txt").write_text("other words")
    (folder / "gone").symlink_to(tmp_path / "nowhere")
    (folder / "gone.mkv").symlink_to(tmp_path / "nowhere.mkv")
    videos = video_folder.scan_folder(folder, 4, 8)
    assert videos.names == ("c.mkv", "e.mkv", "linked/a.mkv", "linked/deep/b.mkv", "own/d.mkv")
    assert videos.bad == {
        "again": walk.READ_ALREADY,
        "gone": "a link that leads nowhere",
        "gone.mkv": "a link that leads nowhere",
        "linked/deep/back": walk.READ_ALREADY,
        "own/circle": walk.READ_ALREADY,
    }
    assert videos.read(2, SMALL, 0.0).shape == (4, 16, 16, 3)


def test_every_file_that_is_left_out_is_told(folder):
    """Not told: captions of videos, the table of captions, and what systems hide."""
    names = ("notes.pdf", "CLIP.MP4", "lonely.txt", ".DS_Store", ".git/HEAD", "captions.csv")
    for name in names:
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).touch()
    (folder / "captions.csv").write_text("file_name,text\nb.mkv,x\n")
    (folder / "CLIP.txt").write_text("the caption of another extension")
    (folder / ".hidden.mp4").write_text("no video at all")
    Image.new("RGB", (8, 8)).save(folder / "b.png")
    videos = video_folder.scan_folder(folder, 4, 8)
    assert videos.names == ("b.mkv", "sub/a.mkv")
    broken = {"cut.mkv", "empty.mp4", "short.mkv", "silent.mkv", "text.mp4"}
    assert videos.bad.keys() == {
        *broken,
        *("notes.pdf", "CLIP.MP4", "lonely.txt", ".hidden.mp4", "b.png"),
    }
    assert videos.bad["notes.pdf"] == "not a kind of video that is read"
    assert videos.bad["b.png"] == "a still picture"
    told = video_folder.list_skipped(videos.bad)
    assert told.startswith("10 files skipped: .hidden.mp4 (")
    assert "lonely.txt (a caption without a video)" in told


def test_the_folder_that_is_written_is_not_read(tmp_path):
    write_lossless(tmp_path / "a.mkv", numbered(8))
    write_lossless(tmp_path / "out" / "b.mkv", numbered(8))
    (tmp_path / "out" / "clips-000000.tar").touch()
    (tmp_path / "other.csv").touch()
    found = walk.find_videos(tmp_path, (tmp_path / "other.csv").resolve(), tmp_path / "out")
    assert found == (["a.mkv"], {})


def test_a_folder_of_other_files_names_one(tmp_path):
    (tmp_path / "notes.pdf").touch()
    with pytest.raises(ValueError, match=r"holds no videos \(notes.pdf: not a kind of video"):
        video_folder.scan_folder(tmp_path, 4, 8)


def test_what_was_changed_in_a_video_is_told_once(tmp_path, caplog):
    for name in ("a", "b"):
        video_corpus.write(tmp_path, "hlg.mp4").rename(tmp_path / f"{name}.mp4")
        (tmp_path / f"{name}.txt").write_text("words")
    videos = video_folder.scan_folder(tmp_path, 4, 8)
    video_folder.warn_once.cache_clear()
    for index in (0, 1, 0):
        videos.read(index, SMALL, 0.5)
    assert [record.message for record in caplog.records] == [
        f"{name}.mp4 is HDR (HLG); its brightness and colours were mapped to SDR."
        for name in ("a", "b")
    ]


# ---- shards


@pytest.fixture
def shards(folder, tmp_path_factory):
    """Two shards by webdataset's own writer: a sample with text, one with JSON, and bad ones."""
    webdataset = pytest.importorskip("webdataset")
    place = tmp_path_factory.mktemp("shards")
    good = (folder / "b.mkv").read_bytes()
    cut = good[:200]
    Image.new("RGB", (8, 8)).save(place / "thumbnail.png")
    thumbnail = (place / "thumbnail.png").read_bytes()
    (place / "thumbnail.png").unlink()
    contents = (
        ({"txt": "words", "json": {"text": "not these"}, "mkv": good}, {"txt": "x", "mkv": cut}),
        (
            {"json": {"caption": "in json"}, "mkv": good, "png": thumbnail},
            {"mkv": good},
            {"txt": "x", "png": thumbnail},
        ),
    )
    for n, samples in enumerate(contents):
        with webdataset.TarWriter(str(place / f"clips-{n:04d}.tar")) as writer:
            for i, sample in enumerate(samples):
                writer.write({"__key__": f"{n}.{i}".replace(".", "-"), **sample})
    return place


def test_shards_of_webdataset_give_the_same_clips_as_files(shards, folder):
    videos = clips.open_videos(str(shards / "clips-{0000..0001}.tar"), 4, 8)
    assert videos.captions == ("words", "x", "in json")
    assert sorted(videos.bad.values()) == ["no caption", "no video"]
    expected = read_clip(folder / "b.mkv", SMALL, 0.7)
    assert np.array_equal(videos.read(2, SMALL, 0.7), expected)
    (shards / "b.mkv").touch()
    whole = clips.open_videos(str(shards), 4, 8)
    assert whole.names == videos.names
    assert whole.bad == {**videos.bad, "b.mkv": "beside shards, which are read instead"}
    with pytest.raises(UnusableVideoError):
        videos.read(1, SMALL, 0.0)


def test_missing_and_damaged_shards(shards):
    with pytest.raises(ValueError, match=r"1 of 3 shards were not found, first .*clips-0002.tar"):
        video_shards.find_tars(str(shards / "clips-{0000..0002}.tar"))
    (shards / "clips-0001.tar").write_bytes(b"no tar file at all")
    with pytest.raises(
        ValueError, match=r"clips-0001.tar is damaged, or is not a tar file; copy it"
    ):
        clips.open_videos(str(shards), 4, 8)


def tar_header(name, size, kind=b"0", content=b""):
    """Return a tar entry whose header tells any size; from -2**62 on, in base 256."""
    header = bytearray(tarfile.TarInfo(name).tobuf(tarfile.GNU_FORMAT)[:512])
    header[124:136] = (b"\xff" if size < 0 else b"\x80") + size.to_bytes(11, "big", signed=True)
    header[156:157] = kind
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    return bytes(header) + content + bytes(-len(content) % 512)


HOSTILE_TARS = {
    "negative size": tar_header("b.txt", 0) + tar_header("a.txt", -512),
    "negative size of a folder": tar_header("b.txt", 0) + tar_header("a", -1024, b"5"),
    "negative size by pax": tar_header("b.txt", 0)
    + tar_header("x", 13, b"x", b"13 size=-1024")
    + tar_header("a.txt", 0),
    "beyond the end": tar_header("a.txt", 2**40, content=b"hello"),
    "far beyond the end": tar_header("a.txt", 2**62, content=b"hello"),
    "long name without end": tar_header("@LongLink", 2**62, b"L", b"hello"),
    "chain of long names": tar_header("@LongLink", 5, b"L", b"a.txt") * 500 + tar_header("a", 0),
    "chain of pax": tar_header("x", 12, b"x", b"12 path=abc\n") * 500 + tar_header("a", 0),
    "map that is no number": tar_header("x", 26, b"x", b"26 GNU.sparse.map=x,y,z,z\n")
    + tar_header("a.txt", 0),
    "sparse": tar_header("x", 22, b"x", b"22 GNU.sparse.map=0,1\n") + tar_header("a.txt", 1),
}


@pytest.mark.parametrize("content", HOSTILE_TARS.values(), ids=HOSTILE_TARS)
@pytest.mark.parametrize("read", [latent_shards.index_shard, lambda f: clips.open_videos(f, 4, 8)])
def test_a_tar_file_that_lies_about_sizes_is_damaged(tmp_path, content, read):
    (tmp_path / "a.tar").write_bytes(content + bytes(1024))
    with pytest.raises(ValueError, match=r"a\.tar is damaged, or is not a tar file; copy"):
        read(str(tmp_path / "a.tar"))


def test_a_caption_nested_too_deeply_is_none(tmp_path):
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        for name, content in (("a.json", b"[" * 100_000), ("a.mp4", b"no picture")):
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            tar.addfile(entry, io.BytesIO(content))
    with pytest.raises(ValueError, match=r"can be used .*no caption"):
        clips.open_videos(str(tmp_path / "a.tar"), 4, 8)


def test_only_regular_files_are_shards(shards):
    os.mkfifo(shards / "pipe.tar")
    (shards / "folder.tar").mkdir()
    assert [f.name for f in video_shards.find_tars(str(shards))] == [
        "clips-0000.tar",
        "clips-0001.tar",
    ]
    with pytest.raises(ValueError, match="1 of 1 shards were not found"):
        video_shards.find_tars(str(shards / "pipe.tar"))


# ---- what a step sees


@pytest.mark.slow
def test_a_draw_is_a_function_of_seed_step_and_sample(folder):
    videos = video_folder.scan_folder(folder, 4, 8)

    def drawn(*place):
        clip = clips.draw_clip(videos, SMALL, 0.5, *place)
        return clip.pixels.tobytes(), clip.caption

    places = [(seed, step, i) for seed in (0, 1) for step in range(4) for i in range(3)]
    first, second = ([drawn(*p) for p in places] for _ in range(2))
    assert first == second
    assert len(set(first)) > 8  # 2 videos x 5 starts x with and without a caption
    assert {caption for _, caption in first} == {"", "one", "two words"}
    ahead = read_ahead.ReadAhead(
        lambda step, i: clips.draw_clip(videos, SMALL, 0.5, 1, step, i), range(3), 4, threads=3
    )
    read = [(c.pixels.tobytes(), c.caption) for step in range(4) for c in ahead(step)]
    ahead.close()
    assert read == first[12:]


def test_a_video_that_turns_out_bad_is_replaced_and_noted(shards):
    videos = clips.open_videos(str(shards), 4, 8)
    captions = {clips.draw_clip(videos, SMALL, 0.0, 0, 0, i).caption for i in range(12)}
    assert captions == {"words", "in json"}
    assert [re.sub(".*/", "", n) for n in videos.bad] == ["1-1", "1-2", "0-1"]
    nothing = video_shards.VideoShards(videos.videos[1:2], ("cut",), ("x",))
    with pytest.raises(ValueError, match=r"videos in a row are unusable; 1 file skipped: cut \("):
        clips.draw_clip(nothing, SMALL, 0.0, 0, 0, 0)


def test_a_fingerprint_tells_other_captions():
    assert video_folder.digest_videos(["a"], ["b"]) != video_folder.digest_videos(["a"], ["c"])
