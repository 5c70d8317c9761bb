"""One motion module, two hosts: ComfyUI's LDM UNet and diffusers' UNet give the same clip."""

import json
import subprocess
from pathlib import Path

import pytest
import safetensors.torch
import torch
from animatediff_lightning.motion_module import checkpoint
from animatediff_lightning.motion_module.inject import inject

from . import headless_ldm

SCRIPTS = Path(__file__).parent / "host"
PROMPT, FRAMES, SIZE = "a red fish swimming left", 4, 64
LATENT_SCALE = 0.18215  # ComfyUI gives latents as the VAE does, diffusers as the UNet sees them


def run_script(comfyui, name, *arguments):
    """Run a script in the host's interpreter; returns the tensors that it wrote to its last one."""
    command = [comfyui.python, SCRIPTS / name, comfyui.folder, *arguments]
    run = subprocess.run(
        command, capture_output=True, text=True, timeout=300, check=False, env=comfyui.environment
    )
    assert run.returncode == 0, run.stderr[-3000:]
    return safetensors.torch.load_file(arguments[-1])


@pytest.fixture(scope="module")
def in_comfyui(comfyui, thin_checkpoint, thin_motion_file, tmp_path_factory):
    out = tmp_path_factory.mktemp("clip") / "clip.safetensors"
    return run_script(comfyui, "reference_clip.py", thin_checkpoint, thin_motion_file.parent, out)


@pytest.fixture(scope="module")
def headless(comfyui, thin_checkpoint, tmp_path_factory):
    from animatediff_lightning.distill.models import sd15_config
    from animatediff_lightning.distill.models.base_model import load_base

    folder = tmp_path_factory.mktemp("thin_config")
    sd15_config.write_configs(folder)
    unet = json.loads((folder / "unet" / "config.json").read_text())
    unet |= {"block_out_channels": [320] * 4, "layers_per_block": 1}
    (folder / "unet" / "config.json").write_text(json.dumps(unet))
    # a tokenizer is the one part of an SD1.5 checkpoint that the file does not hold
    tokenizer = comfyui.folder / "comfy" / "sd1_tokenizer"
    return load_base(thin_checkpoint, config=folder, tokenizer=tokenizer)


def relative(a, b):
    return float((a - b).norm() / b.norm())


def test_text_is_the_same(in_comfyui, headless):
    from animatediff_lightning.distill.models.base_model import encode_prompt

    assert relative(encode_prompt(headless, PROMPT), in_comfyui["text"]) < 1e-4


@pytest.mark.smoke
@torch.no_grad()
def test_noise_prediction_is_the_same(in_comfyui, headless, thin_motion_file):
    module = checkpoint.load(thin_motion_file).build(dtype=torch.float32)
    x, text = in_comfyui["x"], in_comfyui["text"].expand(FRAMES, -1, -1)
    plain = headless.unet(x, 999, encoder_hidden_states=text).sample
    injection = inject(headless.unet, module, num_frames=FRAMES)
    eps = headless.unet(x, 999, encoder_hidden_states=text).sample
    injection.eject()
    assert relative(eps, in_comfyui["eps"]) < 1e-4
    assert relative(plain, in_comfyui["eps"]) > 1e-2, "the motion module did nothing"


def test_clip_is_the_same(in_comfyui, headless, thin_motion_file):
    from animatediff_lightning.distill.sampling.sample import generate_latents
    from animatediff_lightning.distill.sampling.settings import SamplingSettings

    module = checkpoint.load(thin_motion_file).build(dtype=torch.float32)
    settings = SamplingSettings(frames=FRAMES, width=SIZE, height=SIZE, steps=4)
    (latents,) = generate_latents(headless, module, [PROMPT], [0], settings)
    assert relative(latents, in_comfyui["latents"] * LATENT_SCALE) < 1e-4


@pytest.mark.usefixtures("miniature_cache")
def test_a_distilled_miniature_loads_in_comfyui_and_draws_the_same_clip(comfyui, tmp_path):
    from animatediff_lightning.distill.miniature import shipped
    from animatediff_lightning.distill.models.base_model import (
        encode_prompt,
        load_base,
        quiet_libraries,
    )
    from animatediff_lightning.distill.sampling.sample import generate_latents
    from animatediff_lightning.distill.sampling.settings import SamplingSettings

    quiet_libraries()
    base = load_base(shipped.base("toon"))
    unet, text = tmp_path / "unet.safetensors", tmp_path / "text.safetensors"
    weights = {headless_ldm.unet_key(k): v for k, v in base.unet.state_dict().items()}
    safetensors.torch.save_file(weights, unet)
    safetensors.torch.save_file({"text": encode_prompt(base, PROMPT)}, text)
    out = tmp_path / "clip.safetensors"
    there = run_script(comfyui, "miniature_clip.py", unet, text, shipped.WEIGHTS, out)

    module = checkpoint.load(shipped.student(4)).build(dtype=torch.float32)
    settings = SamplingSettings(frames=16, width=16, height=16, steps=4)
    (here,) = generate_latents(base, module, [PROMPT], [0], settings)
    assert relative(there["motion"], here) < 1e-4
    assert relative(there["still"], here) > 0.1, "the student did nothing"
