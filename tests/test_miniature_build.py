"""Building the miniature from seeds: killed anywhere and started again it ends the same."""

import os
import random
import signal
import subprocess
import sys
import time

import pytest
import torch
from animatediff_lightning.distill.miniature import build, models, world
from animatediff_lightning.distill.miniature.pack import pack_build
from animatediff_lightning.distill.models.base_model import load_base
from animatediff_lightning.motion_module import checkpoint
from safetensors.torch import load_file

pytestmark = pytest.mark.slow

COMMAND = [
    sys.executable,
    "-m",
    "animatediff_lightning.distill",
    "miniature",
    "build",
    "--recipe",
    "quick",
    "--out",
]


def environment(folder):
    return os.environ | {"OMP_NUM_THREADS": "1", "ANIMATEDIFF_LIGHTNING_CACHE": str(folder)}


def build_in(folder):
    return subprocess.Popen(
        [*COMMAND, folder],
        env=environment(folder),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )


def weights(folder):
    files = [*sorted(folder.glob("bases/*/unet/*.safetensors")), folder / build.MOTION_FILE]
    return {str(f.relative_to(folder)): load_file(f) for f in files}


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("build")
    subprocess.run([*COMMAND, folder], check=True, env=environment(folder), capture_output=True)
    return folder


@pytest.mark.multiprocess
def test_every_stage_leaves_its_files(undisturbed):
    assert {f.name for f in (undisturbed / "bases").iterdir()} == {"plain", "toon"}
    assert {f.stem for f in (undisturbed / "sheets").iterdir()} == {"plain", "toon", "motion"}
    gates = {f.stem for f in (undisturbed / "gates").iterdir()}
    assert gates == {"a-plain", "a-toon", "b-cfg", "b-plain", "b-toon"}


@pytest.mark.multiprocess
def test_fine_tunes_share_the_text_encoder_and_the_module_moves(undisturbed):
    plain, toon = (load_base(undisturbed / "bases" / name) for name in ("plain", "toon"))
    for a, b in zip(
        plain.text_encoder.state_dict().values(),
        toon.text_encoder.state_dict().values(),
        strict=True,
    ):
        assert torch.equal(a, b)
    assert not torch.equal(plain.unet.conv_in.weight, toon.unet.conv_in.weight)
    assert plain.prediction_type == "v_prediction"
    module = checkpoint.load(undisturbed / build.MOTION_FILE).build()
    assert any(p.proj_out.weight.abs().max() > 0 for p in module.temporal_transformers().values())


@pytest.mark.multiprocess
def test_packed_it_is_half_as_precise_and_carries_its_card(undisturbed, tmp_path):
    pack_build(undisturbed, tmp_path, names=("plain", "toon"))
    made, packed = (checkpoint.load(f / build.MOTION_FILE) for f in (undisturbed, tmp_path))
    assert packed.dtype == torch.float16
    for key, tensor in made.state_dict.items():
        assert torch.equal(packed.state_dict[key], tensor.half()), key
    unet = load_file(tmp_path / "toon.safetensors")
    original = load_base(undisturbed / "bases" / "toon").unet.state_dict()
    assert unet.keys() == original.keys()
    assert all(torch.equal(t, original[k].half()) for k, t in unet.items())
    card = (tmp_path / "README.md").read_text()
    assert "| b-plain | plain: motion |" in card
    assert "not reached" in card  # so few steps teach nothing


def test_every_address_of_the_unet_has_a_motion_module():
    unet = models.build_unet()
    addresses = set(models.build_motion_module(unet).config.addresses())
    attention = {a for a in addresses if a.startswith(("down_blocks.0", "up_blocks.1"))}
    plain = {a for a in addresses if a.startswith(("down_blocks.1", "up_blocks.0"))}
    assert attention
    assert plain
    assert "mid_block.motion_modules.0" in addresses


def checkpoints(folder):
    return {f: f.stat().st_mtime_ns for f in folder.glob("work/*/checkpoint.pt")}


@pytest.mark.multiprocess
def test_killed_at_random_moments_it_ends_with_the_same_weights(undisturbed, tmp_path):
    chance = random.Random(os.getpid())
    for _ in range(2):
        process, before = build_in(tmp_path), checkpoints(tmp_path)
        while process.poll() is None and checkpoints(tmp_path) == before:
            time.sleep(0.02)
        time.sleep(chance.uniform(0, 2))  # of 8 seconds or more in which a build writes
        assert process.poll() is None
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert build_in(tmp_path).wait(500) == 0
    expected, found = weights(undisturbed), weights(tmp_path)
    assert expected.keys() == found.keys()
    for name, tensors in expected.items():
        assert all(torch.equal(t, found[name][k]) for k, t in tensors.items()), name


def test_every_word_is_one_token(tmp_path):
    models.write_tokenizer(tmp_path)
    from transformers import CLIPTokenizer

    tokenizer = CLIPTokenizer.from_pretrained(tmp_path)
    for word in world.vocabulary():
        assert len(tokenizer(word).input_ids) == 3, word
    longest = world.caption(0, 0, 0, size=0)
    assert len(tokenizer(longest).input_ids) <= models.TOKENS
