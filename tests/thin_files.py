"""Writes the files that the shipped workflows ask for, small and with random weights.

Each is derived from the thin checkpoint or motion module, so that its shapes fit, and keyed like
the released file whose place it takes.
"""

from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import torch
from safetensors.torch import load_file, save_file

UNET, VAE = "model.diffusion_model.", "first_stage_model."
RANK = 4
# in, out of the convolutions that bring a ControlNet's picture to the size of latents
HINT_CHANNELS = ((3, 16), (16, 16), (16, 32), (32, 32), (32, 96), (96, 96), (96, 256), (256, 320))
FRAMES, RATE, SIZE = 20, Fraction(25, 2), (128, 64)
SOUND_RATE, ONSET = 48000, 0.8


def write(folder: Path, checkpoint: Path, motion_file: Path) -> dict[str, Path]:
    """Write a file for each model folder, and one for AnimateLCM; returns their paths."""
    torch.manual_seed(0)
    base, motion = load_file(checkpoint), load_file(motion_file)
    made = {
        "checkpoints": with_tiny_vae(base),
        "controlnet": controlnet(base),
        "loras": image_lora(base),
        "animatediff_motion_lora": motion_lora(motion),
        "AnimateLCM": {k: t for k, t in motion.items() if "pos_encoder" not in k},
    }
    for name, tensors in made.items():
        save_file({k: t.half().contiguous() for k, t in tensors.items()}, folder / name)
    return {name: folder / name for name in made} | {"animatediff_models": motion_file}


def random(*shape: int, scale: float = 1.0) -> torch.Tensor:
    """Return a weight that keeps activations in range."""
    return torch.randn(shape) * scale / np.prod(shape[1:]) ** 0.5


def with_tiny_vae(base: dict) -> dict:
    """Return a checkpoint whose VAE is the tiny one that the core knows as TAESD.

    The full one takes some twenty times as long, which was most of a test's time.
    """
    rest = {k: t for k, t in base.items() if not k.startswith(VAE)}
    return rest | {f"{VAE}taesd_decoder.{k}": t for k, t in tiny_decoder().items()}


def tiny_decoder() -> dict:
    """Return TAESD's decoder: convolutions, and blocks of three with a way around them."""
    layers = {f"{i}.weight": random(64, 64, 3, 3) for i in (7, 12, 17)}
    for i in (3, 4, 5, 8, 9, 10, 13, 14, 15, 18):
        for part, scale in ((0, 1.4), (2, 1.4), (4, 0.3)):
            layers[f"{i}.conv.{part}.weight"] = random(64, 64, 3, 3, scale=scale)
            layers[f"{i}.conv.{part}.bias"] = torch.zeros(64)
    layers |= {"1.weight": random(64, 4, 3, 3), "1.bias": torch.zeros(64)}
    return layers | {"19.weight": random(3, 64, 3, 3), "19.bias": torch.full((3,), 0.5)}


def controlnet(base: dict) -> dict:
    """Return a ControlNet: the UNet's encoder, a way in for the picture, a way out per block."""
    parts = ("time_embed.", "input_blocks.", "middle_block.")
    unet = {k.removeprefix(UNET): t for k, t in base.items() if k.startswith(UNET)}
    out = {k: t for k, t in unet.items() if k.startswith(parts)}
    blocks = 1 + max(int(k.split(".")[1]) for k in out if k.startswith("input_blocks."))
    for i, (channels_in, channels_out) in enumerate(HINT_CHANNELS):
        out[f"input_hint_block.{2 * i}.weight"] = random(channels_out, channels_in, 3, 3, scale=1.4)
        out[f"input_hint_block.{2 * i}.bias"] = torch.zeros(channels_out)
    for exit_ in (*(f"zero_convs.{i}" for i in range(blocks)), "middle_block_out"):
        out[f"{exit_}.0.weight"] = random(320, 320, 1, 1, scale=0.3)
        out[f"{exit_}.0.bias"] = torch.zeros(320)
    return {f"control_model.{k}": t for k, t in out.items()}


def image_lora(base: dict) -> dict:
    """Return a LoRA on the first spatial transformer, with the names that trainers write."""
    block = "transformer_blocks.0.attn{}.to_{}.weight"
    out = {}
    for n, name in ((1, "q"), (1, "v"), (2, "v")):
        weight = base[f"{UNET}input_blocks.1.1.{block.format(n, name)}"]
        layer = f"lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn{n}_to_{name}"
        out[f"{layer}.lora_up.weight"] = random(weight.shape[0], RANK)
        out[f"{layer}.lora_down.weight"] = random(RANK, weight.shape[1])
        out[f"{layer}.alpha"] = torch.tensor(float(RANK))
    return out


def motion_lora(motion: dict) -> dict:
    """Return a motion LoRA on all attentions of a motion module, in the original names."""
    out = {}
    for key, weight in motion.items():
        attention, found, rest = key.partition(".to_")
        if found and weight.ndim == 2:
            layer = f"{attention}.processor.to_{rest.split('.')[0]}_lora"
            out[f"{layer}.up.weight"] = random(weight.shape[0], RANK)
            out[f"{layer}.down.weight"] = random(RANK, weight.shape[1])
    return out


def write_source_video(path: Path) -> None:
    """Write a video of a square that moves to the right, with a tone in its second half."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as file:
        stream = file.add_stream("libx264", rate=RATE)
        stream.width, stream.height, stream.pix_fmt = *SIZE, "yuv420p"
        track = file.add_stream("aac", rate=SOUND_RATE, layout="stereo")
        for i in range(FRAMES):
            pixels = np.full((SIZE[1], SIZE[0], 3), 30, np.uint8)
            pixels[16:48, 4 * i : 4 * i + 32] = 220
            file.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        file.mux(stream.encode())
        file.mux(track.encode(tone()))
        file.mux(track.encode())


def tone() -> av.AudioFrame:
    """Return a stereo tone from ONSET to the video's end."""
    t = np.arange(round(FRAMES / RATE * SOUND_RATE)) / SOUND_RATE
    wave = np.where(t >= ONSET, 0.5 * np.sin(6283 * t), 0).astype(np.float32)
    frame = av.AudioFrame.from_ndarray(np.stack([wave, wave]), "fltp", "stereo")
    frame.sample_rate, frame.pts, frame.time_base = SOUND_RATE, 0, Fraction(1, SOUND_RATE)
    return frame
