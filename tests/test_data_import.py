"""`data import`: videos of a WebVid-like folder as shards of latents, bad ones listed."""

import contextlib
import csv
import json
import os
import shutil
import signal
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from animatediff_lightning.distill.cli.program import main
from animatediff_lightning.distill.data import import_videos, import_worker, latent_shards
from animatediff_lightning.distill.data.import_request import ImportRequest
from animatediff_lightning.distill.data.latent_pool import ClipPool, ClipRef
from animatediff_lightning.distill.miniature import shipped
from animatediff_lightning.distill.models.base_model import load_base
from animatediff_lightning.distill.models.latents import decode_frames, encode_images, to_images
from animatediff_lightning.motion_module.files import atomic_path

from .processes import FORK
from .video_files import real_video, write_lossless

pytestmark = pytest.mark.slow

COMMON = ["--base", "miniature:plain", "--frames", "4", "--shard-size", "2", "--workers", "2"]


def moving(seed):
    return np.random.default_rng(seed).integers(0, 256, (6, 16, 16, 3), np.uint8)


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    """WebVid's layout: page_dir/videoid.mp4 and a table; one more by its contentUrl, bad ones."""
    folder = tmp_path_factory.mktemp("videos")
    pages = tmp_path_factory.mktemp("another_disk")
    (folder / "000001_000050").symlink_to(pages)
    for number in (1, 2, 3):
        write_lossless(pages / f"{number}.mkv", moving(number))
    write_lossless(folder / "stock-footage-a-boat.mkv", moving(4))
    (folder / "0broken.mp4").write_bytes(b"no video")
    (folder / "0empty.mp4").touch()
    (folder / "notes.pdf").touch()
    shutil.copy(real_video(), folder / "untold.mp4")
    with (folder / "results.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(("videoid", "contentUrl", "duration", "page_dir", "name"))
        page = "000001_000050"
        writer.writerow(("1", "https://x.test/a.mp4", "PT00H00M01S", page, "A cat looks  left"))
        writer.writerow(("2", "https://x.test/b.mp4", "PT00H00M01S", page, "Clouds, time lapse"))
        writer.writerow(("3", "https://x.test/c.mp4", "PT00H00M01S", page, "Turning right"))
        writer.writerow(("9", "https://x.test/v/stock-footage-a-boat.mkv?s=1", "", page, "A boat"))
        writer.writerow(("0broken", "", "", page, "Nothing"))
        writer.writerow(("0empty", "", "", page, "Nothing"))
    return folder


@pytest.fixture(scope="module")
def command(videos):
    return ["data", "import", str(videos), "--table", str(videos / "results.csv"), *COMMON]


@pytest.fixture(scope="module")
def imported(command, tmp_path_factory):
    out = tmp_path_factory.mktemp("imported") / "out"
    assert main([*command, "--out", str(out)]) == 0
    return out


def contents(out):
    return {f.name: f.read_bytes() for f in out.glob("*.tar")}


def test_clips_are_the_videos_frames_with_their_captions_in_both_orientations(imported):
    pool = ClipPool(str(imported))
    assert len(pool) == 4
    assert pool.can_flip
    vae = load_base(shipped.base())
    found = {}
    for shard, one in enumerate(latent_shards.open_shards(str(imported))):
        for clip in range(len(one)):
            x0, caption = pool.read(ClipRef(shard, clip)).oriented(False)
            mirrored, other = pool.read(ClipRef(shard, clip)).oriented(True)
            found[caption] = decode_frames(vae, x0).numpy().astype(int)
            np.testing.assert_allclose(
                decode_frames(vae, mirrored).numpy(), found[caption][:, :, ::-1], atol=1
            )
            assert other == caption.replace("left", "Right").replace("right", "left").replace(
                "Right", "right"
            )
    assert set(found) == {"A cat looks left", "Clouds, time lapse", "Turning right", "A boat"}
    for number, caption in ((1, "A cat looks left"), (4, "A boat")):
        own = moving(number).astype(int)
        apart = [np.abs(found[caption] - own[i : i + 4]).max() for i in range(3)]
        assert min(apart) <= 2  # rounded to float16


def test_bad_videos_are_counted_and_listed(imported, command, capsys):
    assert main([*command, "--out", str(imported)]) == 0  # again: nothing is left to do
    told = capsys.readouterr().out
    assert f"{imported} now holds 4 clips from 7 videos. 4 files skipped: " in told
    assert "0empty.mp4 (an empty file)" in told
    with (imported / import_videos.BAD).open() as file:
        listed = {row["file_name"]: row["reason"] for row in csv.DictReader(file)}
    assert set(listed) == {"0broken.mp4", "0empty.mp4", "notes.pdf", "untold.mp4"}
    assert listed["notes.pdf"] == "not a kind of video that is read"
    assert listed["untold.mp4"] == "no caption"
    assert main(["data", "verify", str(imported)]) == 0


def test_mended_captions_are_taken_by_the_same_command(tmp_path, capsys):
    """Also by a shard that is made, and by one that had no caption at all."""
    videos, out = tmp_path / "videos", tmp_path / "out"
    for number in range(4):
        write_lossless(videos / f"{number}.mkv", moving(number))
    table = videos / "captions.csv"
    command = ["data", "import", str(videos), *COMMON, "--out", str(out)]

    def tell(*captions):
        lines = [f"{n}.mkv,{c}" for n, c in enumerate(captions)]
        table.write_text("\n".join(["file_name,text", *lines]))

    def made():
        return {s.caption(c) for s in latent_shards.open_shards(str(out)) for c in range(len(s))}

    tell("", "", "", "")
    assert main(command) == 2
    assert "captions.csv" in capsys.readouterr().err
    tell("a", "b", "c", "")
    assert main(command) == 0
    assert made() == {"a", "b", "c"}
    before = contents(out)
    tell("a", "b", "other", "d")
    assert main(command) == 0
    assert made() == {"a", "b", "other", "d"}
    assert not (out / import_videos.BAD).exists()
    assert contents(out)["clips-000000.tar"] == before["clips-000000.tar"]
    tell("", "", "other", "d")
    assert main(command) == 0
    assert made() == {"other", "d"}


def deadly(file, *_):
    """As read_clip, but one video kills its process, another makes an error of its own."""
    if file.name == "1.mkv":
        os.kill(os.getpid(), signal.SIGKILL)
    if file.name == "2.mkv":
        raise MemoryError
    return np.zeros((1, 2, 2, 3), np.uint8)


@pytest.mark.multiprocess
def test_a_video_that_kills_its_decoder_is_told_and_the_others_are_read(monkeypatch):
    monkeypatch.setattr(import_worker.multiprocessing, "get_context", lambda _: FORK)
    monkeypatch.setattr(import_worker, "read_clip", deadly)
    tasks = [import_worker.Task(Path(f"{n}.mkv"), "caption", None, 0.0, "") for n in range(8)]
    with contextlib.closing(import_worker.Readers(2)) as readers:
        found = [result.clip for result in readers.in_order(tasks)]
    assert [i for i, one in enumerate(found) if isinstance(one, str)] == [1, 2]
    assert found[1] == import_worker.KILLED
    assert found[2] == "MemoryError"


def test_two_processes_make_what_one_does(imported, videos, tmp_path):
    request = ImportRequest(
        videos,
        "miniature:plain",
        tmp_path / "out",
        table=videos / "results.csv",
        frames=4,
        shard_size=2,
        workers=1,
    )
    import_videos.import_videos(request, rank=1, world_size=2)
    half = set(contents(tmp_path / "out"))
    import_videos.import_videos(request, rank=0, world_size=2)
    assert 0 < len(half) < len(contents(imported))
    assert contents(tmp_path / "out") == contents(imported)


@pytest.mark.multiprocess
def test_a_killed_import_goes_on_to_the_same_shards(imported, command, tmp_path):
    out = tmp_path / "out"
    for wait in (0.5, 2.0, 3.5):
        child = FORK.Process(target=lambda: os._exit(main([*command, "--out", str(out)])))
        child.start()
        time.sleep(wait)
        os.kill(child.pid, signal.SIGKILL)
        child.join()
    # as a kill while it wrote the second shard leaves it
    (out / "done" / "000001.json").unlink(missing_ok=True)
    (out / ".clips-000001-killed.tar").write_bytes(b"half")
    assert main([*command, "--out", str(out)]) == 0
    assert contents(out) == contents(imported)
    told = [json.loads(f.read_text()) for f in sorted((out / "done").glob("*.json"))]
    assert sum(one["clips"] for one in told) == 4


def test_webdataset_reads_them(imported):
    import webdataset

    shards = sorted(map(str, imported.glob("*.tar")))
    samples = list(webdataset.WebDataset(shards, shardshuffle=False).decode())
    assert sorted(s["txt"] for s in samples)[0] == "A boat"
    assert all(s["latents.npy"].shape == (4, 12, 8, 8) for s in samples)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (["--table", "nowhere.csv"], "the table of captions nowhere.csv was not found"),
        (["--size", "15x16"], "width must be a multiple of 2"),
        (["--size", "wide"], "is no size; write it as 512x512"),
        (["--workers", "0"], "--workers must be at least 1"),
        (["--base", "miniature:none"], "none"),
    ],
)
def test_what_cannot_work_is_refused_before_anything_is_made(
    command, tmp_path, capsys, change, sentence
):
    out = tmp_path / "out"
    assert main([*command, *change, "--out", str(out)]) == 2
    assert sentence in capsys.readouterr().err
    assert not out.exists()


def test_folders_without_usable_videos_are_named(tmp_path, capsys):
    videos = tmp_path / "videos"
    videos.mkdir()
    command = ["data", "import", str(videos), *COMMON, "--out", str(tmp_path / "out")]
    assert main(command) == 2
    assert "holds no videos" in capsys.readouterr().err
    write_lossless(videos / "a.mkv", moving(0))
    assert main(command) == 2
    assert "none of the 1 videos" in capsys.readouterr().err


def test_other_commands_and_folders_are_refused(imported, command, tmp_path, capsys):
    assert main([*command, "--out", str(imported), "--frames", "5"]) == 2
    assert "holds an import with other frames" in capsys.readouterr().err
    with atomic_path(tmp_path / "out" / "clips-000000.tar") as temporary:
        latent_shards.write_tar(temporary, [])
    assert main([*command, "--out", str(tmp_path / "out")]) == 2
    assert "holds shards that another command made" in capsys.readouterr().err


def test_latents_are_scaled_as_the_base_wants_them():
    base = load_base(shipped.base())
    frames = moving(0)
    found = encode_images(base, to_images(frames))
    assert found.shape == (6, 12, 8, 8)
    torch.testing.assert_close(decode_frames(base, found).numpy(), frames, rtol=0, atol=1)
