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


LONG = "a castle on a hill, " * 20
PROMPTS = {
    "literal": "a red fish, swimming left BREAK [over] a reef",
    "weighted": "a (red fish:1.4), (swimming) ((left)) (slowly:0.5) (reef:-0.3)",
    "escaped": r"a \(red\) (fish \(koi\):1.3), (at 10:30",
    "unbalanced": "a) (red:2) ((fish) )((left:1.2)",
    "two chunks": f"{LONG}(a (red:1.5) fish:0.8)",
    "short phrases move on": "x " * 70 + "(a red fish swimming slowly left:1.2) (x:1.1)",
    "embeddings": "embedding:glow, (embedding:old.pt:1.3) b\n(embedding:token embedding:xl:0.7)",
    "everything": LONG + r"((red:1.4) \(koi\) embedding:glow, fish), (embedding:old:1.2) reef",
    "empty": "",
}


@pytest.fixture(scope="module")
def embeddings(tmp_path_factory):
    """A folder of textual inversions, one in each layout."""
    folder = tmp_path_factory.mktemp("embeddings")
    (folder / "sub").mkdir()
    a, b, c, d = torch.randn(4, 9, 768, generator=torch.Generator().manual_seed(2))
    safetensors.torch.save_file({"emb_params": a[:3].clone()}, folder / "glow.safetensors")
    torch.save({"string_to_param": {"*": b}, "name": "old"}, folder / "old.pt")
    torch.save({"<token>": c[0]}, folder / "sub" / "token.bin")
    both = {"clip_g": torch.zeros(2, 1280), "clip_l": d[:2].clone()}
    safetensors.torch.save_file(both, folder / "xl.safetensors")
    return folder


def test_prompts_in_comfyuis_syntax_are_the_same(
    comfyui, thin_checkpoint, headless, embeddings, tmp_path
):
    """Weights, nesting, escapes, chunks and textual inversions, against CLIPTextEncode."""
    from animatediff_lightning.distill.models.embeddings import load_embeddings
    from animatediff_lightning.distill.models.prompt import encode_weighted
    from animatediff_lightning.distill.models.prompt_weights import embedding_names

    file, out = tmp_path / "prompts.json", tmp_path / "text.safetensors"
    file.write_text(json.dumps(PROMPTS))
    there = run_script(comfyui, "prompt_text.py", thin_checkpoint, embeddings, file, out)
    for name, prompt in PROMPTS.items():
        vectors = load_embeddings(embeddings, embedding_names(prompt), 768)
        here = encode_weighted(headless, [prompt], vectors)
        assert here.shape == there[name].shape, name
        assert relative(here, there[name]) < 1e-4, name
    assert there["everything"].shape[1] >= 2 * 77
    assert relative(there["weighted"], there["empty"]) > 0.1


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


def test_guided_clip_of_prompts_of_unequal_length_is_the_same(
    in_comfyui, headless, thin_motion_file
):
    from animatediff_lightning.distill.models.prompt import encode_weighted
    from animatediff_lightning.distill.sampling.sample import generate_latents
    from animatediff_lightning.distill.sampling.settings import SamplingSettings

    prompt, negative = "a (red:1.4) fish, swimming (left), " * 12, "a (blurred:1.2) bird"
    assert encode_weighted(headless, [prompt]).shape[1] == 154
    module = checkpoint.load(thin_motion_file).build(dtype=torch.float32)
    settings = SamplingSettings(
        frames=FRAMES, width=SIZE, height=SIZE, steps=4, cfg=2.0, negative_prompt=negative
    )
    (latents,) = generate_latents(headless, module, [prompt], [0], settings, encode=encode_weighted)
    assert relative(latents, in_comfyui["guided"] * LATENT_SCALE) < 1e-4


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
