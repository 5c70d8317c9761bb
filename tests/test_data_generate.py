"""`data generate`: every pair once, the same on any number of processes and after any kill."""

import copy
import json
import os
import shutil
import signal
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from animatediff_lightning.distill.cli import program
from animatediff_lightning.distill.cli.options import parse_size
from animatediff_lightning.distill.data import generate, latent_shards, verify
from animatediff_lightning.distill.data.generate_request import DataRequest, plan_clip, plan_shards
from animatediff_lightning.distill.data.latent_pool import ClipPool, ClipRef
from animatediff_lightning.distill.files import claim
from animatediff_lightning.distill.miniature import shipped, split
from animatediff_lightning.distill.models.base_model import BaseModel, load_base
from animatediff_lightning.distill.models.latents import decode_images
from animatediff_lightning.distill.sampling.sample import generate_latents
from animatediff_lightning.motion_module import checkpoint
from diffusers import AutoencoderKL

from .processes import FORK

pytestmark = pytest.mark.slow

PROMPTS = ("a red fish swimming left", "a big blue bird flying up", "a teal mouse running right")


@pytest.fixture(scope="module", autouse=True)
def alone(miniature_cache):
    miniature_cache.delenv("RANK", raising=False)
    miniature_cache.delenv("WORLD_SIZE", raising=False)


def request_for(out, **options):
    return DataRequest(
        **{
            "bases": ("miniature:plain", "miniature:ink"),
            "motion_module": "miniature",
            "prompts": PROMPTS,
            "out": out,
            "steps": 2,
            "cfg": 2.5,
            "shard_size": 4,
            "device": "cpu",
        }
        | options
    )


def tars(folder):
    return {f.name: f.read_bytes() for f in folder.glob("*.tar")}


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """A folder that one process filled: two shards, of four clips and of two."""
    request = request_for(tmp_path_factory.mktemp("data") / "alone")
    generate.generate_clips(request)
    return request


def test_every_pair_is_made_once(undisturbed):
    found = []
    for source in latent_shards.find_shards(str(undisturbed.out)):
        for key, part, entry, tar in latent_shards.video_shards.members(Path(source)):
            if part == "json":
                told = json.loads(tar.extractfile(entry).read())
                assert (told["frames"], told["width"], told["steps"]) == (16, 16, 2)
                found.append((key, told["base"], told["prompt"], told["seed"]))
    pairs = [(b, p) for b in undisturbed.bases for p in PROMPTS]
    assert [f[1:3] for f in found] == pairs
    assert [f[0] for f in found] == [f"{n:08d}" for n in range(6)]
    assert len({f[3] for f in found}) == 6
    assert sorted(f.name for f in undisturbed.out.iterdir()) == [
        "clips-000000.tar",
        "clips-000001.tar",
        "generate.json",
        "index.json",
    ]


def test_a_clip_is_what_the_generate_command_makes_of_its_seed(undisturbed):
    clip = plan_clip(undisturbed, 4, (16, 16))
    module = checkpoint.load(shipped.motion_module()).build(dtype=torch.float32)
    base = load_base(shipped.base("ink"))
    (wanted,) = generate_latents(base, module, [clip.prompt], [clip.seed], clip.settings)
    pool = ClipPool(str(undisturbed.out))
    x0, caption = pool.read(ClipRef(1, 0)).oriented(False)
    assert caption == clip.prompt == PROMPTS[1]
    assert torch.allclose(x0, wanted, atol=5e-3)


def test_flipped_latents_are_those_of_the_flipped_frames(undisturbed):
    pool, base = ClipPool(str(undisturbed.out)), load_base(shipped.base())
    assert pool.can_flip
    plain, mirrored = (pool.read(ClipRef(0, 2)).oriented(flip) for flip in (False, True))
    assert mirrored[1] == "a teal mouse running left"
    images, wanted = decode_images(base, mirrored[0]), decode_images(base, plain[0]).flip(-1)
    torch.testing.assert_close(images, wanted, rtol=0, atol=2e-3)  # latents are kept in float16
    assert not torch.equal(mirrored[0], plain[0].flip(-1))


@pytest.mark.multiprocess
def test_two_processes_make_what_one_does(undisturbed, tmp_path, monkeypatch):
    request = replace(undisturbed, out=tmp_path / "two")
    monkeypatch.setenv("WORLD_SIZE", "2")
    processes = []
    for rank in ("0", "1"):
        monkeypatch.setenv("RANK", rank)
        processes.append(FORK.Process(target=generate.generate_clips, args=(request,)))
        processes[-1].start()
    for process in processes:
        process.join(120)
        assert process.exitcode == 0
    assert tars(request.out) == tars(undisturbed.out)
    assert ClipPool(str(request.out)).digest() == ClipPool(str(undisturbed.out)).digest()


def test_a_process_makes_only_its_own_shards(undisturbed, tmp_path):
    request = replace(undisturbed, out=tmp_path / "half")
    (files,) = generate.generate_clips(request, rank=1, world_size=2)
    assert list(tars(request.out)) == [files.name] == ["clips-000001.tar"]
    assert not (request.out / "index.json").exists()  # the last process writes it, once


@pytest.mark.multiprocess
@pytest.mark.parametrize("at_once", [1, 2])
def test_a_killed_run_goes_on_to_the_same_clips(undisturbed, tmp_path, at_once):
    # three a shard: the second batch of two has one clip of it
    request = replace(undisturbed, out=tmp_path / "killed", at_once=at_once, shard_size=3)
    for clips in (1, 2, 3):
        process = FORK.Process(target=generate.generate_clips, args=(request,))
        process.start()
        while made(request.out) < clips and process.is_alive():
            time.sleep(0.002)
        os.kill(process.pid, signal.SIGKILL)
        process.join()
        assert process.exitcode == -signal.SIGKILL
        assert made(request.out) >= clips
    generate.generate_clips(request)
    whole = replace(request, out=tmp_path / "whole")
    generate.generate_clips(whole)
    assert tars(request.out) == tars(whole.out)
    assert not list(request.out.glob(".*"))


def made(folder):
    return 3 * len(list(folder.glob("clips-*.tar"))) + len(list(folder.glob(".clips-*/0*.npz")))


def test_finished_clips_are_kept_and_another_process_is_left_alone(
    undisturbed, tmp_path, monkeypatch
):
    request = replace(undisturbed, out=tmp_path / "kept")
    original, calls = generate.Studio.make, []

    def interrupted(studio, clips):
        if len(calls) == 3:
            raise KeyboardInterrupt
        calls.append(clips[0].number)
        return original(studio, clips)

    monkeypatch.setattr(generate.Studio, "make", interrupted)
    with pytest.raises(KeyboardInterrupt):
        generate.generate_clips(request)
    others = request.out / ".clips-000001"
    others.mkdir()
    (others / "00000004.npz").write_bytes(b"in progress")
    calls.clear()
    generate.generate_clips(request, rank=0, world_size=2)
    assert calls == [3]
    assert (others / "00000004.npz").read_bytes() == b"in progress"
    assert tars(request.out)["clips-000000.tar"] == tars(undisturbed.out)["clips-000000.tar"]


def test_base_models_of_other_latents_are_told_once(undisturbed, tmp_path, monkeypatch, caplog):
    bases = ("miniature:plain", "miniature:toon", "miniature:wood")
    request = replace(undisturbed, bases=bases, out=tmp_path)
    monkeypatch.setattr(BaseModel, "latent_space", lambda base: str(base.name == "wood"))
    studio = generate.Studio(request)
    for base in bases * 2:
        studio.base(base)
    (told,) = [r.getMessage() for r in caplog.records if r.name == generate.__name__]
    assert "the VAE of miniature:wood encodes differently from that of miniature:plain" in told


def test_a_latent_space_is_told_by_the_encoder_alone():
    vae = AutoencoderKL(block_out_channels=(8,), norm_num_groups=4)
    base = replace(load_base(shipped.base()), vae=vae)
    told = base.latent_space()
    with torch.no_grad():
        vae.decoder.conv_in.weight.add_(1)
    assert base.latent_space() == told
    assert replace(base, vae=copy.deepcopy(vae).half()).latent_space() == told
    with torch.no_grad():
        vae.encoder.conv_in.weight.add_(1)
    assert base.latent_space() != told


def test_another_command_in_the_folder_is_refused(undisturbed, tmp_path):
    for change in ({"steps": 3}, {"prompts": PROMPTS[:2]}, {"bases": ("miniature:wood",)}):
        with pytest.raises(ValueError, match=r"holds clips with other .*; go on with the same"):
            generate.generate_clips(replace(undisturbed, **change))
    generate.generate_clips(replace(undisturbed, device="auto"))
    (tmp_path / "clips-000000.tar").touch()
    with pytest.raises(ValueError, match="shards that another command made"):
        generate.generate_clips(replace(undisturbed, out=tmp_path))


def test_sizes_are_dealt_out_and_a_shard_has_one(tmp_path):
    sizes = ((16, 16), (24, 16))
    request = request_for(tmp_path, prompts=PROMPTS[:2], sizes=sizes, frames=4, flip=False)
    shards = plan_shards(request, sizes)
    assert [s.clips for s in shards] == [(0, 3), (1, 2)]
    generate.generate_clips(request)
    pool = ClipPool(str(tmp_path))
    assert pool.shapes == {(4, 12, 8, 8), (4, 12, 8, 12)}
    assert not pool.can_flip


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"bases": ()}, "--base is missing"),
        ({"bases": ("miniature:oil",)}, "no style 'oil'"),
        ({"bases": ("nowhere",)}, "base model nowhere was not found"),
        ({"motion_module": "nowhere.safetensors"}, "was not found"),
        ({"prompts": ("a red dog",)}, "does not know the word 'dog'"),
        ({"sizes": ((15, 16),)}, "must be a multiple of 2"),
        ({"frames": 99}, "positions for"),
        ({"shard_size": 0}, "--shard-size must be at least 1"),
        ({"steps": 0}, "steps must be between"),
    ],
)
def test_what_cannot_work_is_refused_before_anything_is_written(tmp_path, change, sentence):
    with pytest.raises(ValueError, match=sentence):
        generate.generate_clips(request_for(tmp_path / "out", **change))
    assert not (tmp_path / "out").exists()


def test_captions_of_the_miniature_are_never_held_out():
    captions = generate.draw_captions(500, seed=3)
    assert len(captions) == 500
    assert set(captions) <= split.captions("train")
    assert captions == generate.draw_captions(500, seed=3)
    assert captions != generate.draw_captions(500, seed=4)


# ---- verify and stats --------------------------------------------------------------------------


def test_sound_folders_are_verified_and_counted(undisturbed):
    assert verify.verify_shards(undisturbed.out) == "all 6 clips can be used (shards: 2)."
    lines = verify.describe_shards(undisturbed.out).splitlines()
    assert [line.split()[1] for line in lines[:2]] == ["6", "2"]
    assert "16x12x8x8: 6" in lines[2]
    assert lines[4].endswith("3 different")


def test_all_faults_are_listed(undisturbed, tmp_path):
    broken = tmp_path / "broken"
    broken.mkdir()
    for name, content in tars(undisturbed.out).items():
        (broken / name).write_bytes(content)
    ClipPool(str(broken))
    bad = np.full((16, 12, 8, 8), np.nan, np.float16)
    latent_shards.write_tar(
        broken / "clips-000001.tar",
        [("k.latents.npy", latent_shards.encode_npy(bad)), ("k.txt", b" "), ("k.json", b"{}")],
    )
    (broken / "clips-000002.tar").write_bytes(b"no tar file")
    with pytest.raises(ValueError, match="has 4 problems") as error:
        verify.verify_shards(broken)
    for sentence in (
        "clips-000001.tar/k has values that are not finite",
        "clips-000001.tar/k has no caption",
        "clips-000002.tar is damaged",
        "index.json lists 2 clips for clips-000001.tar, but it has 1",
    ):
        assert sentence in str(error.value)
    with pytest.raises(ValueError, match="holds no shards of clips"):
        verify.verify_shards(tmp_path)


def test_an_index_that_does_not_know_a_shard_yet_is_no_fault(undisturbed, tmp_path):
    folder = shutil.copytree(undisturbed.out, tmp_path / "clips")
    told = json.loads((folder / "index.json").read_text())
    del told["shards"]["clips-000001.tar"]
    (folder / "index.json").write_text(json.dumps(told))
    assert verify.verify_shards(folder).startswith("all 6 clips can be used")


@pytest.mark.parametrize("record", ["[]", "{", ""])
def test_a_damaged_record_is_named(undisturbed, tmp_path, record):
    request = replace(undisturbed, out=shutil.copytree(undisturbed.out, tmp_path / "clips"))
    (request.out / "generate.json").write_text(record)
    for command in (generate.generate_clips, lambda r: verify.verify_shards(r.out)):
        with pytest.raises(ValueError, match=r"generate.json is damaged; restore it"):
            command(request)
    (request.out / "generate.json").write_text("{}")
    with pytest.raises(
        ValueError, match=r"generate.json does not say how many clips were requested"
    ):
        verify.verify_shards(request.out)
    with pytest.raises(ValueError, match="holds clips with other bases"):
        generate.generate_clips(request)


def test_an_unfinished_folder_is_told(undisturbed, tmp_path):
    request = replace(undisturbed, out=tmp_path)
    generate.generate_clips(request, rank=1, world_size=2)
    with pytest.raises(ValueError, match="2 of 6 clips are finished, run the same"):
        verify.verify_shards(tmp_path)


def test_the_commands_make_verify_and_show_clips(tmp_path, capsys):
    out = tmp_path / "out"
    common = ["--base", "miniature:plain", "--motion-module", "miniature", "--out", str(out)]
    made = ["--miniature-captions", "2", "--steps", "1", "--at-once", "2", "--size", "16x16"]
    assert program.main(["data", "generate", *common, *made]) == 0
    told = f"wrote 1 shard to {out}; the shards of all processes hold 2 clips."
    assert told in capsys.readouterr().out
    assert program.main(["data", "verify", str(out)]) == 0
    assert program.main(["data", "stats", str(out), "--base", "miniature:plain"]) == 0
    assert "clips     2" in capsys.readouterr().out
    assert (out / verify.SHEET).is_file()
    assert program.main(["data", "generate", *common]) == 2
    assert "give either --prompts or --miniature-captions" in capsys.readouterr().err


def test_a_size_is_width_and_height():
    assert parse_size("512x320") == (512, 320)
    with pytest.raises(ValueError, match="write it as 512x512"):
        parse_size("512")


def test_a_damaged_record_hides_no_damaged_shard(undisturbed, tmp_path):
    folder = shutil.copytree(undisturbed.out, tmp_path / "clips")
    (folder / "generate.json").write_text("[]")
    (folder / "clips-000001.tar").write_bytes(b"no tar file")
    with pytest.raises(ValueError, match="has 2 problems") as error:
        verify.verify_shards(folder)
    for sentence in ("clips-000001.tar is damaged", "generate.json is damaged"):
        assert sentence in str(error.value)


@pytest.mark.parametrize(("told", "sentence"), [(3, "lists 3 clips for"), (None, "but is missing")])
def test_what_the_index_tells_otherwise_is_a_fault(undisturbed, tmp_path, told, sentence):
    """Even where the sum is right: one shard has a clip less, and another one more."""
    folder = shutil.copytree(undisturbed.out, tmp_path / "clips")
    content = json.loads((folder / "index.json").read_text())
    first, second = content["shards"].values()
    if told is None:
        content["shards"]["clips-000002.tar"] = second
    else:
        second["places"].append(first["places"].pop())
    (folder / "index.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match=sentence):
        verify.verify_shards(folder)


@pytest.mark.parametrize("record", ["{}", '{"stages": null}', '{"stages": 3}'])
def test_a_record_without_its_list_is_that_of_another_command(tmp_path, record):
    (tmp_path / "run.json").write_text(record)
    with pytest.raises(ValueError, match="holds a run with other stages; go on with the same"):
        claim.claim(tmp_path / "run.json", {"stages": [1]}, "a run", {"stages": 1})
