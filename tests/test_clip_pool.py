"""Pools of clips: groups as pure functions of a number, and shards that any reader understands."""

import http.server
import io
import json
import os
import sys
import tarfile
import threading
import time
import urllib.parse
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import fsspec
import numpy as np
import pytest
import torch
import webdataset
from animatediff_lightning.distill.data import (
    latent_pool,
    latent_shards,
    mirrored_captions,
    url_cache,
    verify,
    video_shards,
)
from animatediff_lightning.distill.data.latent_pool import ClipPool, ClipRef
from animatediff_lightning.distill.data.latent_shards import INDEX, encode_npy, write_tar
from animatediff_lightning.distill.files.cache import CACHE_VARIABLE
from animatediff_lightning.distill.miniature import metrics, split, styles, world

from .processes import FORK

SQUARE, WIDE = (2, 4, 3, 3), (2, 4, 3, 5)


def write_shard(file, count, first=0, shape=SQUARE, flip=True, **extra):
    """Write a shard whose clip n is filled with n, and its flipped one with -n."""
    members = []
    for n in range(first, first + count):
        members.append((f"{n:04d}.latents.npy", encode_npy(np.full(shape, n, np.float16))))
        if flip:
            members.append((f"{n:04d}.flipped.npy", encode_npy(np.full(shape, -n, np.float16))))
        members.append((f"{n:04d}.txt", f"clip {n} going left".encode()))
        members.append((f"{n:04d}.json", json.dumps({"n": n} | extra).encode()))
    file.parent.mkdir(parents=True, exist_ok=True)
    write_tar(file, members)
    return file


@pytest.fixture
def folder(tmp_path):
    write_shard(tmp_path / "pool" / "a-0.tar", 7)
    write_shard(tmp_path / "pool" / "a-1.tar", 5, first=100, shape=WIDE)
    write_shard(tmp_path / "pool" / "a-2.tar", 1, first=200)
    return tmp_path / "pool"


def epoch(pool, size, seed, number=0, groups=6):
    return [tuple(pool.group(number * groups + i, size, seed)) for i in range(groups)]


def test_a_clip_is_read_by_its_place_in_both_orientations(folder):
    pool = ClipPool(str(folder))
    assert len(pool) == 13
    assert pool.shapes == {SQUARE, WIDE}
    assert pool.can_flip
    x0, caption = pool.read(ClipRef(1, 3)).oriented(False)
    assert (x0.dtype, tuple(x0.shape), caption) == (torch.float32, WIDE, "clip 103 going left")
    assert (x0 == 103).all()
    x0, caption = pool.read(ClipRef(1, 3)).oriented(True)
    assert (x0 == -103).all()
    assert caption == "clip 103 going right"


def test_a_group_is_a_pure_function_of_its_arguments(folder):
    pool, again = ClipPool(str(folder)), ClipPool(str(folder))
    numbers = [7, 0, 3, 3, 12]
    groups = [pool.group(n, 2, (1, 2)) for n in numbers]
    assert groups == [again.group(n, 2, (1, 2)) for n in reversed(numbers)][::-1]


def shape_of(pool, group):
    (shape,) = {pool.read(ref).shard.shape for ref in group}
    return shape


def test_an_epoch_has_each_clip_once_and_groups_of_one_shape(folder):
    pool = ClipPool(str(folder))
    for number in range(4):
        groups = epoch(pool, 2, (0,), number)  # of 8 and of 5 clips
        shapes = [shape_of(pool, group) for group in groups]
        assert (shapes.count(SQUARE), shapes.count(WIDE)) == (4, 2)
        refs = [ref for group in groups for ref in group]
        assert len(set(refs)) == len(refs)
        assert {ref.shard for ref in refs} == {0, 1, 2}


def test_a_group_takes_clips_of_several_shards(folder):
    pool = ClipPool(str(folder))
    groups = [group for n in range(8) for group in epoch(pool, 2, (0,), n)]
    assert any({ref.shard for ref in group} == {0, 2} for group in groups)


def test_every_clip_has_its_turn_in_some_epoch(folder):
    pool = ClipPool(str(folder))
    seen = {ref for n in range(20) for group in epoch(pool, 2, (0,), n) for ref in group}
    assert len(seen) == 13


def test_seeds_and_epochs_shuffle_shards_and_clips(folder):
    pool = ClipPool(str(folder))
    assert epoch(pool, 2, (0,)) != epoch(pool, 2, (1,))
    assert epoch(pool, 2, (0, 1)) != epoch(pool, 2, (0, 2))
    assert epoch(pool, 2, (0,)) != epoch(pool, 2, (0,), number=1)
    assert {shape_of(pool, epoch(pool, 2, (s,))[0]) for s in range(10)} == {SQUARE, WIDE}


@pytest.mark.parametrize(("weight", "groups"), [(0.5, 1), (1.0, 2), (3.0, 6)])
def test_a_weight_tells_how_often_a_shape_is_drawn(folder, weight, groups):
    pool = ClipPool(str(folder), {"2x4x3x5": weight})
    several = [epoch(pool, 2, (0,), n, groups=4 + groups) for n in range(6)]
    for one in several:
        assert sum(shape_of(pool, group) == WIDE for group in one) == groups
    drawn = [r for one in several for g in one for r in g if pool.read(r).shard.shape == WIDE]
    for first in range(0, len(drawn) - 3, 4):  # two groups: no clip again before the others' turn
        assert len(set(drawn[first : first + 4])) == 4


def test_a_weight_of_a_shape_that_no_clip_has_is_told(folder):
    with pytest.raises(ValueError, match=r"no clips of the shape 1x1x1x1.* are 2x4x3x3, 2x4x3x5"):
        ClipPool(str(folder), {"1x1x1x1": 2.0})


def test_shards_behind_urls_are_mixed_a_few_at_a_time(web, monkeypatch):
    """Each one must be downloaded, and the cache holds few."""
    monkeypatch.setattr(latent_pool, "_WINDOW", 1)
    pool = ClipPool(f"{web.url}/pool/a-{{0..2}}.tar")
    groups = [group for n in range(8) for group in epoch(pool, 1, (0,), n, groups=13)]
    squares = [g[0].shard for g in groups[:13] if pool.read(g[0]).shard.shape == SQUARE]
    assert squares in ([0] * 7 + [2], [2] + [0] * 7)


def test_too_few_clips_are_told_with_the_fix(folder):
    pool = ClipPool(str(folder))
    assert len(pool.group(0, 8, (0,))) == 8
    with pytest.raises(ValueError, match=r"holds 8 clips of one shape \(2x4x3x3\), but a batch"):
        pool.group(0, 9, (0,))
    weighed = ClipPool(str(folder), {"2x4x3x5": 2.0})
    assert weighed.group(0, 5, (0,))
    with pytest.raises(ValueError, match=r"holds 5 clips of one shape \(2x4x3x5\), but a batch"):
        weighed.group(0, 6, (0,))
    os.unlink(folder / "a-1.tar")
    with pytest.raises(ValueError, match="holds 8 clips, but a batch needs 9; make more clips"):
        ClipPool(str(folder)).group(0, 9, (0,))


def test_the_digest_knows_the_clips_and_not_their_folder(folder, tmp_path):
    digest = ClipPool(str(folder)).digest()
    folder.rename(tmp_path / "moved")
    assert ClipPool(str(tmp_path / "moved")).digest() == digest
    assert ClipPool(str(tmp_path / "moved" / "a-{0..1}.tar")).digest() != digest
    write_shard(tmp_path / "moved" / "a-2.tar", 2)
    assert ClipPool(str(tmp_path / "moved")).digest() != digest


def test_a_pool_with_a_clip_in_one_orientation_cannot_flip(folder):
    write_shard(folder / "a-3.tar", 1, flip=False)
    pool = ClipPool(str(folder))
    assert not pool.can_flip
    with pytest.raises(ValueError, match=r"a-3.tar has no flipped latents"):
        pool.read(ClipRef(3, 0)).oriented(True)


def test_threads_read_the_right_clips(folder):
    pool = ClipPool(str(folder))
    with ThreadPoolExecutor(8) as threads:
        found = threads.map(lambda n: pool.read(ClipRef(0, n % 7)).oriented(False)[0], range(200))
    assert [x.mean().item() for x in found] == [n % 7 for n in range(200)]


# ---- shards ------------------------------------------------------------------------------------


def test_webdataset_reads_the_shards(folder):
    files = str(folder / "a-{0..2}.tar")
    samples = list(webdataset.WebDataset(files, shardshuffle=False).decode())
    assert [s["__key__"] for s in samples[:2]] == ["0000", "0001"]
    assert len(samples) == 13
    assert samples[8]["latents.npy"].shape == WIDE
    assert (samples[8]["flipped.npy"] == -101).all()
    assert samples[8]["txt"] == "clip 101 going left"
    assert samples[8]["json"] == {"n": 101}


def test_a_tar_file_by_webdataset_is_a_shard(tmp_path):
    with webdataset.TarWriter(str(tmp_path / "w.tar")) as writer:
        writer.write({"__key__": "x", "latents.npy": np.ones(SQUARE, np.float16), "txt": "a fish"})
    x0, caption = ClipPool(str(tmp_path / "w.tar")).read(ClipRef(0, 0)).oriented(False)
    assert (x0.sum().item(), caption) == (72, "a fish")


def test_the_index_is_used_and_made_anew_where_it_is_missing_or_old(folder, monkeypatch):
    digest = ClipPool(str(folder)).digest()
    looked = []
    look = latent_shards.index_shard
    monkeypatch.setattr(latent_shards, "index_shard", lambda s: looked.append(s) or look(s))
    assert ClipPool(str(folder)).digest() == digest
    assert not looked
    (folder / INDEX).unlink()
    assert ClipPool(str(folder)).digest() == digest
    assert len(looked) == 3
    write_shard(folder / "a-1.tar", 5, first=100, shape=WIDE, more="words")
    os.utime(folder / "a-1.tar", (1, 1))  # the same size at another time
    ClipPool(str(folder))
    assert len(looked) == 4
    (folder / INDEX).write_text("{")
    assert ClipPool(str(folder)).digest() == digest


@pytest.mark.parametrize("length", [100, 5000, -20000, "before a clip"])
def test_a_shard_that_was_cut_is_damaged(folder, length):
    file = folder / "a-0.tar"
    if length == "before a clip":  # as many headers as bytes: only the end is missing
        length = int(latent_shards.index_shard(str(file)).places[3, 0]) - 512
    file.write_bytes(file.read_bytes()[:length])
    with pytest.raises(ValueError, match=r"a-0.tar is damaged, or is not a tar file; copy or make"):
        ClipPool(str(folder))


def test_what_is_no_latents_is_refused(folder, tmp_path):
    with pytest.raises(ValueError, match="holds no shards of clips; give a folder"):
        ClipPool(str(tmp_path / "nowhere"))
    with pytest.raises(ValueError, match="1 of 4 shards were not found"):
        ClipPool(str(folder / "a-{0..3}.tar"))
    write_shard(tmp_path / "flat.tar", 1, shape=(4, 4))
    with pytest.raises(ValueError, match=r"flat.tar holds no latents"):
        ClipPool(str(tmp_path / "flat.tar"))
    with tarfile.open(tmp_path / "video.tar", "w") as tar:
        tar.add(folder / "a-0.tar", "x.mp4")
    with pytest.raises(ValueError, match=r"video.tar holds no latents"):
        ClipPool(str(tmp_path / "video.tar"))
    both = [
        (f"{k}.latents.npy", encode_npy(np.zeros(s, np.float16)))
        for k, s in (("a", SQUARE), ("b", WIDE))
    ]
    write_tar(tmp_path / "both.tar", both)
    with pytest.raises(ValueError, match=r"both.tar holds clips of several shapes"):
        ClipPool(str(tmp_path / "both.tar"))
    write_tar(tmp_path / "mute.tar", both[:1])
    with pytest.raises(ValueError, match=r"mute.tar lacks a.txt"):
        ClipPool(str(tmp_path / "mute.tar"))


def npy(header):
    """Return a .npy file's beginning with any header."""
    header = header + b" " * (-(len(header) + 11) % 64) + b"\n"
    return b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header


def told(shape):
    return npy(b"{'descr': '<f2', 'fortran_order': False, 'shape': %s, }" % shape) + bytes(512)


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        *((encode_npy(np.zeros(SQUARE, t)), "no latents") for t in ("<U1", "c8", ">f2", "M8[s]")),
        *((encode_npy(np.zeros(SQUARE, t)), "no latents") for t in ("u2", "f8", "<f2,<f2")),
        (encode_npy(np.zeros((0, 4, 3, 3), np.float16)), "no latents"),
        (told(b"(2, 4, 1000000000, 1000000000)"), "arrays that are damaged"),
        (told(b"(-1, 4, 8, 8)"), "arrays that are damaged"),
        (told(b"(1, 4, 'a', 8)"), "arrays that are damaged"),
        (npy(b"(" * 9000), "arrays that are damaged"),
        (npy(b"-" * 9000 + b"1"), "arrays that are damaged"),
        (npy(b"{'descr': " + b"[" * 9000), "arrays that are damaged"),
        (encode_npy(np.zeros(SQUARE, np.float16))[:-1], "arrays that are damaged"),
        (b"PK\x03\x04", "arrays that are damaged"),
    ],
)
def test_arrays_that_are_no_latents_are_told_at_once(tmp_path, content, sentence):
    write_tar(tmp_path / "a.tar", [("k.latents.npy", content), ("k.txt", b"x")])
    for read in (ClipPool, verify.verify_shards):
        with pytest.raises(ValueError, match=rf"a\.tar holds {sentence}"):
            read(str(tmp_path))


@pytest.fixture
def index(folder):
    """Write an index whose first shard tells something else; gives what it told rightly."""
    ClipPool(str(folder))
    content = json.loads((folder / INDEX).read_text())

    def write(change):
        content["shards"]["a-0.tar"].update(change)
        (folder / INDEX).write_text(json.dumps(content))

    return write


@pytest.mark.parametrize(
    "change",
    [
        {"places": []},
        {"places": [1]},
        {"places": "abc"},
        {"places": [[10**30] * 6]},
        {"places": [[10**9, 10, -1, 0, 10**9, 5]]},
        {"places": [[-5, 10, -1, 0, -5, 3]]},
        {"places": [[0, 2**62, -1, 0, 2**62, 2**62]]},
        {"places": [[-1, 0, -1, 0, 0, 1]]},
        {"size": "x"},
        {"size": 10**30, "places": [[0, 10**13, -1, 0, 0, 10**13]]},
        {"changed": None},
        {"shape": [2]},
        {"shape": "abcd"},
        {"shape": [0, 4, 3, 3]},
    ],
)
def test_an_index_that_cannot_be_true_is_made_anew(folder, index, change):
    index(change)
    assert latent_shards.read_index(folder).get("a-0.tar") is None or "size" in change
    assert len(ClipPool(str(folder))) == 13
    assert ClipPool(str(folder)).read(ClipRef(0, 3)).oriented(False)[0].mean() == 3


def test_an_index_nested_too_deeply_or_a_pipe_is_none(folder):
    (folder / INDEX).write_text("[" * 100_000)
    assert len(ClipPool(str(folder))) == 13
    (folder / INDEX).unlink()
    os.mkfifo(folder / INDEX)
    assert latent_shards.read_index(folder) == {}


@pytest.mark.parametrize("wrong", ["latents", "caption"])
def test_an_index_that_leads_to_other_bytes_is_told(folder, index, wrong):
    shard = latent_shards.index_shard(str(folder / "a-0.tar"))
    latents, caption = shard.places[0, :2].tolist(), shard.places[0, 4:].tolist()
    row = [*caption, -1, 0, *caption] if wrong == "latents" else [*latents, -1, 0, *latents]
    index({"places": [row]})
    with pytest.raises(ValueError, match=r"clip 0 of a-0\.tar is damaged; copy the shard again"):
        ClipPool(str(folder)).read(ClipRef(0, 0)).oriented(False)
    if wrong == "caption":
        with pytest.raises(ValueError, match=r"clip 0 of a-0\.tar is damaged"):
            verify.describe_shards(folder)


@pytest.mark.parametrize(
    ("pattern", "count"),
    [
        ("a-{000..123}.tar", 124),
        ("{a,b{1..3},c}.tar", 5),
        ("{a..c}{4..1}{0..10..5}", 36),
        ("{{0..2},{7..9}}{x}", 6),
        ("a<5>\\{b,c\\}{,d}", 2),
    ],
)
def test_a_patterns_names_are_counted_before_they_are_made(pattern, count):
    assert video_shards._count_names(pattern) == count
    assert len(video_shards.expand_braces(pattern)) == count


@pytest.mark.parametrize(
    ("pattern", "sentence"),
    [
        ("{a,b}" * 40, "stands for more than 100000 shards"),
        ("{{a,b}" + "{a,b}" * 40 + ",c}", "stands for more than 100000 shards"),
        ("{0..300000}", "stands for more than 100000 shards"),
        ("{0.." + "9" * 40 + "}", "stands for more than 100000 shards"),
        ("{0.." + "9" * 5000 + "}", "check its braces"),
        ("{" * 5000 + "a,b" + "}" * 5000, "check its braces"),
        ("{{a", "check its braces"),
    ],
)
def test_a_pattern_of_too_many_shards_is_told_at_once(pattern, sentence):
    for address in (f"https://x.test/{pattern}.tar", f"{pattern}.tar"):
        with pytest.raises(ValueError, match=sentence):
            video_shards.expand_braces(address)


@pytest.fixture
def web(folder, tmp_path, monkeypatch):
    """Serve tmp_path, where the shards lie in `pool`, over HTTP; gives the address and requests."""
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "cache"))
    asked, delay = [], [0.0]

    class Handler(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *args):
            super().__init__(*args, directory=tmp_path)

        def do_GET(self):
            asked.append(self.path)
            time.sleep(delay[0])
            if self.path.startswith("/to/"):
                self.send_response(302)
                self.send_header("Location", urllib.parse.unquote(self.path.removeprefix("/to/")))
                self.end_headers()
            elif self.path.startswith("/cut/"):
                content = (folder / self.path.removeprefix("/cut/")).read_bytes()
                self.send_response(200)
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content[:1000])
            else:
                super().do_GET()

        def log_message(self, *args):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield SimpleNamespace(
            url=f"http://127.0.0.1:{server.server_port}", asked=asked, delay=delay
        )
        server.shutdown()


def test_urls_are_fetched_into_a_cache_that_stays_small(folder, web, tmp_path, monkeypatch):
    size = (folder / "a-0.tar").stat().st_size + (folder / "a-1.tar").stat().st_size
    monkeypatch.setattr(url_cache, "MAX_BYTES", size)
    url = f"{web.url}/pool/a-{{0..2}}.tar"
    pool = ClipPool(url)
    assert len(pool) == 13
    assert len(list((tmp_path / "cache" / "shards").glob("*.tar"))) == 2
    assert pool.read(ClipRef(0, 3)).oriented(True)[0].mean() == -3  # had left the cache
    assert ClipPool(url).digest() == pool.digest()
    with pytest.raises(ValueError, match="cannot be fetched; check the address"):
        ClipPool(f"{web.url}/pool/none.tar")


def test_an_index_beside_urls_tells_the_shards_without_a_fetch(folder, web, tmp_path):
    wanted = ClipPool(str(folder))  # writes the index
    pool = ClipPool(f"{web.url}/pool/a-{{0..2}}.tar")
    assert len(pool) == len(wanted)
    assert not list((tmp_path / "cache" / "shards").glob("*.tar"))
    x0, caption = pool.read(ClipRef(1, 3)).oriented(True)
    assert (x0 == -103).all()
    assert caption == "clip 103 going right"
    assert len(list((tmp_path / "cache" / "shards").glob("*.tar"))) == 1


@pytest.mark.parametrize(
    ("url", "name", "index"),
    [
        ("https://x.test/a/b-0.tar", "b-0.tar", "https://x.test/a/index.json"),
        ("https://x.test/a/b-0.tar?key=1", "b-0.tar", "https://x.test/a/index.json?key=1"),
        ("s3://bucket/a/b 0.tar", "b 0.tar", "s3://bucket/a/index.json"),
        ("https://x.test/shard/7", "https://x.test/shard/7", None),
    ],
)
def test_a_file_beside_a_url(url, name, index):
    assert url_cache.file_name(url) == name
    assert url_cache.neighbour(url, INDEX) == index


def test_a_long_url_is_split_at_once():
    url = "http://" + ".tar" * 100_000 + "/x"
    assert url_cache.file_name(url) == url


@pytest.mark.parametrize("name", ["_MAX_TEXT_BYTES", "MAX_BYTES"])
def test_a_file_behind_a_url_is_fetched_up_to_a_limit(web, tmp_path, monkeypatch, name):
    monkeypatch.setattr(url_cache, name, 1000)
    url = f"{web.url}/pool/a-0.tar"
    fetch = url_cache.fetch_text if name == "_MAX_TEXT_BYTES" else url_cache.local_file
    with pytest.raises(ValueError, match=r"a-0\.tar is larger than .* the most that is fetched"):
        fetch(url)
    assert not list((tmp_path / "cache").rglob("*.tar"))


@pytest.mark.multiprocess
@pytest.mark.slow
def test_threads_and_processes_fetch_a_shard_once(web):
    web.delay[0] = 0.5
    url = f"{web.url}/pool/a-0.tar"
    with ThreadPoolExecutor(4) as threads:
        files = set(threads.map(url_cache.local_file, [url] * 4))
    assert len(files) == 1
    children = [FORK.Process(target=url_cache.local_file, args=(f"{url}?again",)) for _ in range(2)]
    for child in children:
        child.start()
    for child in children:
        child.join(60)
        assert child.exitcode == 0
    assert web.asked == ["/pool/a-0.tar", "/pool/a-0.tar?again"]


def test_a_lost_connection_leaves_no_half_shard(web, tmp_path):
    with pytest.raises(ValueError, match=r"a-0\.tar cannot be fetched"):
        ClipPool(f"{web.url}/cut/a-0.tar")
    assert not list((tmp_path / "cache" / "shards").glob("*.tar"))


COMMAND = "touch {mark}; true"
REFUSED = "is not an address that shards can be read from"


@pytest.mark.parametrize(
    ("address", "sentence"),
    [
        ("pipe:" + COMMAND, REFUSED),
        ("PIPE:" + COMMAND, REFUSED),
        ("file:{folder}/a-0.tar", REFUSED),
        ("file://{folder}/a-0.tar", REFUSED),
        ("ftp://127.0.0.1/a-0.tar", REFUSED),
        ("data:text/plain,a.tar", REFUSED),
        ("http:a-0.tar", REFUSED),
        ("http://127.0.0.1:1/'; touch {mark}; '.tar", "cannot be fetched"),
        ('http://127.0.0.1:1/"$(touch${{IFS}}{mark})".tar', "cannot be fetched"),
        ("http://127.0.0.1:1/a\r\nX: y.tar", "cannot be fetched"),
        ("http://[/a.tar", "cannot be fetched"),
    ],
)
def test_no_address_runs_a_command_or_reads_another_file(
    address, sentence, folder, tmp_path, monkeypatch
):
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "cache"))
    mark = tmp_path / "mark"
    address = address.format(mark=mark, folder=folder)
    with pytest.raises(ValueError, match=sentence):
        ClipPool(address)
    assert not mark.exists()
    assert not list((tmp_path / "cache" / "shards").glob("*.tar"))


def test_a_path_with_a_colon_is_a_path(folder, tmp_path, monkeypatch):
    folder.rename(tmp_path / "run:1")
    monkeypatch.chdir(tmp_path)
    pool = ClipPool("./run:1")
    assert len(pool) == 13
    assert pool.read(ClipRef(0, 3)).oriented(False)[0].mean() == 3


@pytest.mark.parametrize("target", ["file:///etc/hosts", "ftp://127.0.0.1/a", "data:,a"])
def test_a_server_cannot_lead_to_another_scheme(web, target, monkeypatch):
    monkeypatch.setenv("ftp_proxy", web.url)  # which urllib would take for ftp:
    with pytest.raises(ValueError, match="cannot be fetched"):
        ClipPool(f"{web.url}/to/{urllib.parse.quote(target, safe='')}")
    moved = urllib.parse.quote(f"{web.url}/pool/a-0.tar", safe="")
    assert len(ClipPool(f"{web.url}/to/{moved}")) == 7


def test_clouds_are_read_by_fsspec(folder, tmp_path, monkeypatch):
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "cache"))
    memory = fsspec.filesystem("memory")
    memory.pipe("/bucket/clips/a-0.tar", (folder / "a-0.tar").read_bytes())
    # fsspec has no way to take a file system out of its list again
    monkeypatch.setitem(sys.modules["fsspec.registry"]._registry, "s3", type(memory))
    assert len(ClipPool("s3://bucket/clips/a-0.tar")) == 7
    for address in ("s3://bucket/none.tar", f"s3://none.tar::file://{folder}/a-0.tar"):
        with pytest.raises(ValueError, match="cannot be fetched"):
            ClipPool(address)
    memory.rm("/bucket", recursive=True)


class LostError(Exception):
    """As those of some clouds: no OSError."""


@pytest.mark.parametrize("fault", ["raises", "ends"])
def test_a_cloud_that_breaks_off_leaves_no_half_shard(folder, tmp_path, monkeypatch, fault):
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "cache"))

    class Content(io.BytesIO):
        size = 10**6

        def read(self, count=-1):
            if fault == "raises":
                raise LostError
            return super().read(count)

    class Cloud(type(fsspec.filesystem("memory"))):
        cachable = False

        def open(self, *_args, **_kwargs):
            return Content((folder / "a-0.tar").read_bytes())

    monkeypatch.setitem(sys.modules["fsspec.registry"]._registry, "s3", Cloud)
    with pytest.raises(ValueError, match="cannot be fetched"):
        ClipPool("s3://bucket/a-0.tar")
    assert not list((tmp_path / "cache" / "shards").glob("*.tar"))


def test_a_missing_cloud_package_is_named(tmp_path, monkeypatch):
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "cache"))
    monkeypatch.setitem(sys.modules, "gcsfs", None)
    with pytest.raises(ValueError, match=r"needs the package gcsfs; .*extra `cloud`"):
        ClipPool("gs://bucket/a.tar")


# ---- flips -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("caption", "wanted"),
    [
        ("a red fish swimming left", "a red fish swimming right"),
        ("Left-hand drive, RIGHT lane", "Right-hand drive, LEFT lane"),
        ("panning rightwards from left to right", "panning leftwards from right to left"),
        ("the leftmost dancer turns clockwise", "the rightmost dancer turns counterclockwise"),
        ("bright leftovers right now, all right", None),
        ("a bird flying up", None),
    ],
)
def test_captions_change_sides(caption, wanted):
    assert mirrored_captions.flipped(caption) == (wanted or caption)
    assert mirrored_captions.flipped(mirrored_captions.flipped(caption)) == caption


@pytest.mark.slow
@pytest.mark.parametrize("style", ["plain", "ink"])
def test_mirrored_true_clips_show_their_mirrored_captions(style):
    scenes = split.draw_scenes(64, torch.Generator().manual_seed(1))
    other = torch.tensor([1, 0, 2, 3])[scenes.direction]
    told = world.Scenes(**{**vars(scenes), "direction": other})
    assert told.captions() == [mirrored_captions.flipped(c) for c in scenes.captions()]
    clips = metrics.true_clips(scenes, style)
    plain, mirrored = (
        metrics.summary(metrics.score(*pair, style))
        for pair in ((clips, scenes), (clips.flip(-1), told))
    )
    assert plain["motion"] == mirrored["motion"] == 1
    assert mirrored["heading"] == pytest.approx(plain["heading"], abs=0.02)
    assert metrics.summary(metrics.score(clips.flip(-1), scenes, style))["motion"] < 0.8
    assert style in styles.STYLES
