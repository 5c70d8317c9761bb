"""Training a motion module or a motion LoRA: it learns, goes on after a kill, and shares a batch.

The base model is the miniature's untrained one; clips are its true ones, in lossless files.
"""

import json
import re
import subprocess
import sys
import time
from dataclasses import replace

import pytest
import torch
from animatediff_lightning.distill.cli.program import main
from animatediff_lightning.distill.engine import distributed
from animatediff_lightning.distill.engine.loop import CHECKPOINT
from animatediff_lightning.distill.miniature import models, render, split, styles
from animatediff_lightning.distill.models.base_model import load_base
from animatediff_lightning.distill.train_motion import clips as clip_source
from animatediff_lightning.distill.train_motion import lora as motion_lora_training
from animatediff_lightning.distill.train_motion import results
from animatediff_lightning.distill.train_motion import run as train_motion
from animatediff_lightning.distill.train_motion.clips import Clip
from animatediff_lightning.distill.train_motion.loss import encode_clip, motion_loss
from animatediff_lightning.distill.train_motion.request import MotionRequest
from animatediff_lightning.motion_module import checkpoint, lora
from animatediff_lightning.motion_module.inject import inject
from safetensors import safe_open
from safetensors.torch import load_file

from . import random_models
from .processes import together
from .video_files import numbered, real_video, write_lossless

pytestmark = pytest.mark.slow

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A folder with base models that predict v and eps, a motion module, and videos."""
    folder = tmp_path_factory.mktemp("train")
    torch.manual_seed(0)
    unet, text_encoder = models.build_unet(), models.build_text_encoder()
    for kind in ("v_prediction", "epsilon"):
        models.write_base(folder / kind, unet, text_encoder, models.build_vae())
        config = folder / kind / "scheduler" / "scheduler_config.json"
        config.write_text(config.read_text().replace("v_prediction", kind))
    module = models.build_motion_module(unet).initialise()
    for part in module.temporal_transformers().values():
        torch.nn.init.normal_(part.proj_out.weight, std=0.1)
    checkpoint.save(module, folder / "module.safetensors", metadata={"steps": 0})
    scenes = split.draw_scenes(2, torch.Generator().manual_seed(0))
    clips = render.render(scenes, styles.STYLES["plain"], torch.Generator())
    pixels = ((clips + 1) * 127.5).round().byte().permute(0, 1, 3, 4, 2).numpy()
    for i, caption in enumerate(scenes.captions()):
        write_lossless(folder / "videos" / f"{i}.mkv", pixels[i])
        (folder / "videos" / f"{i}.txt").write_text(caption)
    return folder


@pytest.fixture
def request_for(files, tmp_path):
    """Factory of requests on small clips."""

    def make(**options) -> MotionRequest:
        small = {"frames": 4, "iterations": 4, "batch": 2, "warmup": 1, "ema": 0.0}
        places = {
            "data": str(files / "videos"),
            "base": files / "v_prediction",
            "out": tmp_path / "out.safetensors",
        }
        return MotionRequest(**{**places, **small, **options})

    return make


def mean_loss(training, steps=range(1000, 1008)):
    """Return the loss on the same noise, timesteps and clips every time."""
    injection = inject(training.base.unet, training.module, num_frames=training.shape.frames)
    loss = motion_loss(training, drawing(training))
    with torch.no_grad():
        found = [sum(part.item() for part in loss(step)) for step in steps]
    injection.eject()
    return sum(found) / len(found)


def drawing(training):
    """Return a step's clips without reading ahead."""
    request = training.request
    share = request.share(distributed.rank(), distributed.world_size())
    return lambda step: [
        clip_source.draw_clip(
            training.videos, training.shape, request.no_caption, request.seed, step, i
        )
        for i in share
    ]


def gradients(training):
    """Return the gradient of a step, averaged over processes, in one tensor."""
    injection = inject(training.base.unet, training.module, num_frames=training.shape.frames)
    for part in motion_loss(training, drawing(training))(7):
        part.backward()
    distributed.average_gradients(training.weights.values())
    injection.eject()
    return torch.cat([w.grad.flatten() for w in training.weights.values()])


# ---- learning


# an untrained base that predicts eps leaves less to win
@pytest.mark.parametrize(("kind", "share"), [("v_prediction", 0.8), ("epsilon", 0.9)])
def test_the_loss_falls_on_one_clip_and_the_base_stays_bit_equal(files, request_for, kind, share):
    request = request_for(
        base=files / kind, iterations=30, learning_rate=5e-3, no_caption=0.0, warmup=5
    )
    training = train_motion.prepare(request, CPU)
    training.videos = type(training.videos)(files / "videos", ("0.mkv",), ("a fish",))
    before = mean_loss(training)
    fresh = load_base(files / kind).unet.state_dict()
    train_motion.train_weights(training)
    after = mean_loss(training)
    assert after < share * before
    base = training.base.unet.state_dict()
    assert base.keys() == fresh.keys()
    assert all(torch.equal(base[k], fresh[k]) for k in fresh)


def test_fresh_weights_begin_as_the_bare_base_and_take_more_frames(request_for):
    training = train_motion.prepare(request_for(frames=40, fps=24), CPU)
    assert training.module.config.max_frames == 40
    parts = training.module.temporal_transformers().values()
    assert all(part.proj_out.weight.abs().max() == 0 for part in parts)


def test_a_batch_in_parts_has_the_same_gradient(request_for):
    whole, parts = (
        gradients(train_motion.prepare(request_for(batch=4, accumulate=n), CPU)) for n in (1, 4)
    )
    assert (whole - parts).abs().max() < 1e-5 * max(1, whole.abs().max())


def test_frames_are_encoded_as_the_base_wants_them_and_from_the_seed(files):
    torch.manual_seed(0)
    base = replace(load_base(files / "epsilon"), vae=random_models.vae().requires_grad_(False))
    clip = Clip(numbered(10, size=64), "")
    first, second, other = (
        encode_clip(base, clip, torch.Generator().manual_seed(n)) for n in (0, 0, 1)
    )
    assert first.shape == (10, 4, 8, 8)
    assert torch.equal(first, second)
    assert not torch.equal(first, other)
    images = torch.from_numpy(clip.pixels).permute(0, 3, 1, 2) / 127.5 - 1
    mean = base.vae.encode(images).latent_dist.mean * 0.18215
    spread = base.vae.encode(images).latent_dist.std * 0.18215
    assert ((first - mean).abs() < 6 * spread).all()


# ---- a motion LoRA


@pytest.mark.parametrize("alpha", [None, 12.0])
def test_a_lora_file_merged_is_what_was_trained(files, request_for, alpha):
    request = request_for(
        motion_module=files / "module.safetensors",
        lora=3,
        lora_alpha=alpha,
        save_dtype="float32",
        learning_rate=1e-2,
        iterations=6,
    )
    training = train_motion.prepare(request, CPU)
    before = {k: t.clone() for k, t in training.module.state_dict().items()}
    plain = predicted(training.base, training.module)
    train_motion.train_weights(training)
    trained = predicted(training.base, training.module)
    assert all(torch.equal(t, before[k]) for k, t in training.module.state_dict().items())
    metadata = results.metadata_of(training)
    motion_lora_training.save_lora(training.weights, request.out, torch.float32, metadata)
    training.lora.detach()
    assert torch.equal(predicted(training.base, training.module), plain)
    read = lora.load(request.out)
    assert {pair.scale for pair in read.pairs.values()} == {1.0 if alpha is None else 4.0}
    lora.merge(training.module, [(read, 1.0)])
    merged = predicted(training.base, training.module)
    assert (trained - plain).abs().max() > 1e-3
    assert (merged - trained).abs().max() < 1e-5


def predicted(base, module):
    """Return what the base says of two clips of four frames."""
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(8, 12, 8, 8, generator=generator)
    text = torch.randn(8, models.TOKENS, models.TEXT_WIDTH, generator=generator)
    injection = inject(base.unet, module, num_frames=4)
    with torch.no_grad():
        out = base.unet(x, 500, encoder_hidden_states=text).sample
    injection.eject()
    return out


# ---- the command


@pytest.fixture
def command(files, tmp_path):
    """Return the program's arguments with small settings."""

    def make(*arguments, data=files / "videos"):
        paths = ("--data", data, "--base", files / "v_prediction", "--out")
        small = (tmp_path / "out.safetensors", "--frames", 4, "--batch", 2)
        return ["train-motion", *map(str, (*paths, *small, *arguments))]

    return make


@pytest.fixture
def run(command, capsys):
    """Call the program with small settings; returns (exit code, stdout, stderr)."""

    def call(*arguments, **options):
        return main(command(*arguments, **options)), *capsys.readouterr()

    return call


def test_the_command_trains_on_a_real_video_and_says_what_it_skipped(files, run, tmp_path):
    data = tmp_path / "data"
    data.mkdir()
    for name in ("bikes.mp4", "silent.mp4"):
        (data / name).symlink_to(real_video())
    (data / "cut.mp4").write_bytes(real_video().read_bytes()[:300_000])
    for name in ("bikes", "cut"):
        (data / f"{name}.txt").write_text("bicycles on a street")
    rank = ("--lora", 2, "--motion-module", files / "module.safetensors")
    options = (*rank, "--iterations", 2, "--sample", "a red fish")
    code, said, warned = run(*options, data=data)
    assert code == 0, warned
    assert "wrote" in said
    assert "(motion LoRA, 2 iterations)" in said
    assert re.search(r"2 files skipped: cut.mp4 \(damaged.*, silent.mp4 \(no caption\)", warned)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["data", "out.png", "out.safetensors"]
    keys = load_file(tmp_path / "out.safetensors")
    key = (
        "mid_block.motion_modules.0.temporal_transformer.transformer_blocks.0."
        "attention_blocks.1.processor.to_out_lora.up.weight"
    )
    assert keys[key].shape == (64, 2)
    assert keys[key].dtype == torch.float16
    assert len(keys) == len(lora.load(tmp_path / "out.safetensors").pairs) * 2
    with safe_open(tmp_path / "out.safetensors", framework="pt") as file:
        told = file.metadata()
    assert told["rank"] == "2"
    assert json.loads(told["lora_adapter_metadata"]) == {"unet.r": 2, "unet.lora_alpha": 2}
    assert told["videos"] == "1"
    assert told["base"] == "v_prediction"
    code, _, warned = run(*options, data=data)
    assert code == 2
    assert "out.safetensors exists; choose another --out, or delete it first." in warned


@pytest.mark.multiprocess
def test_killed_and_started_again_ends_with_the_same_weights(command, run, tmp_path):
    options = ("--iterations", 10, "--save-dtype", "float32", "--save-every", 0)
    assert run(*options)[0] == 0
    (tmp_path / "out.safetensors").rename(tmp_path / "undisturbed.safetensors")
    # a program of its own: a fork has no decoder threads, for which a decoder of before may wait
    child = subprocess.Popen(
        [sys.executable, "-m", "animatediff_lightning.distill", *command(*options)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    file = tmp_path / "out.training" / CHECKPOINT
    seen = set()
    wait_until(lambda: file.exists() and (seen.add(file.stat().st_mtime_ns) or len(seen) >= 3))
    child.kill()
    child.wait()
    assert file.exists()
    assert not (tmp_path / "out.safetensors").exists()
    code, _, warned = run(*options, "--seed", 1)
    assert code == 2
    assert "holds a training with other seed (0, now 1); go on with the same command, or" in warned
    assert run(*options)[0] == 0
    found, expected = (
        load_file(tmp_path / f"{name}.safetensors") for name in ("out", "undisturbed")
    )
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[k], expected[k]) for k in expected)
    assert not file.parent.exists()


def wait_until(happened, seconds=120):
    end = time.monotonic() + seconds
    while not happened():
        assert time.monotonic() < end
        time.sleep(0.01)


@pytest.mark.multiprocess
def test_two_processes_have_the_gradient_of_one(request_for, tmp_path):
    request = request_for(batch=4)
    alone = gradients(train_motion.prepare(request, CPU))

    def work(rank):
        distributed.start(CPU)
        found = gradients(train_motion.prepare(request, CPU))
        torch.save(found, tmp_path / f"{rank}.pt")
        distributed.stop()

    together(2, work)
    for rank in (0, 1):
        shared = torch.load(tmp_path / f"{rank}.pt")
        assert (shared - alone).abs().max() < 1e-5 * max(1, alone.abs().max())


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--data", "{tmp}/none"], "none was not found; give a folder of videos, or shards"),
        (["--data", "{tmp}"], "holds no videos; give a folder with"),
        (["--base", "nowhere"], "the base model nowhere was not found."),
        (["--motion-module", "no.safetensors"], "the motion module no.safetensors was not found."),
        (["--lora", "4"], "--lora needs --motion-module; give the motion module"),
        (
            ["--lora", "99", "--motion-module", "{module}"],
            "--lora 99 is not a possible rank for this motion",
        ),
        (
            ["--frames", "33", "--fps", "40", "--motion-module", "{module}"],
            "has positions for 32 frames; lower --frames from 33.",
        ),
        (["--frames", "1"], "--frames must be between 2 and 1024, not 1."),
        (["--frames", "17"], "too short: 2.00 s, but 2.12 s are needed); use longer"),
        (["--width", "15"], "width must be a multiple of 2, not 15; try 16."),
        (["--accumulate", "3"], "--batch 2 cannot be trained in 3 equal parts"),
        (["--no-caption", "nan"], "--no-caption must be between 0 and 1, not nan."),
        (["--out", "a.ckpt"], "a.ckpt must end in .safetensors."),
        (["--motion-module", "{text}"], "0.txt does not have the extension of a weights file"),
        (
            ["--lora", "4", "--base", "{random}", "--motion-module", "{module}"],
            "this motion module does not fit this base model",
        ),
        (["--device", "cuda:99"], "device 'cuda:99' is not available here"),
    ],
)
def test_errors_come_at_once_in_one_sentence(run, files, tmp_path, random, arguments, sentence):
    places = {
        "tmp": tmp_path,
        "module": files / "module.safetensors",
        "random": random,
        "text": files / "videos" / "0.txt",
    }
    code, said, warned = run(*(a.format(**places) for a in arguments))
    assert (code, said) == (2, "")
    assert sentence in warned
    assert len(warned.splitlines()) == 1
    assert not (tmp_path / "out.training").exists()


@pytest.fixture(scope="module")
def random(tmp_path_factory):
    """The random base model, of another shape than the miniature's."""
    return random_models.write(tmp_path_factory.mktemp("random")).base
