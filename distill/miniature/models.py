"""The miniature's untrained parts: standard classes of diffusers and transformers, made small.

Text first: every word of the world is one token. A base model is an ordinary diffusers folder.
"""

import json
from pathlib import Path

import torch
from diffusers.models import UNet2DConditionModel
from safetensors.torch import save_file
from transformers import CLIPTextConfig, CLIPTextModel

from ...motion_module import layout
from ...motion_module.module import MotionModule
from ..models import sd15_config
from ..models.base_model import Vae
from ..models.haar_vae import HaarVAE
from ..models.text_keys import as_released
from . import render, split, styles, world

CHANNELS = (32, 64)  # of the UNet's two levels, 8 x 8 and 4 x 4 latents
TEXT_WIDTH = 64
TOKENS = 12  # start, up to six words and end, with room for a few more
HEADS = 4
_FRAMES_A_STYLE = 256
_START, _END = "<|startoftext|>", "<|endoftext|>"
_LETTERS = "abcdefghijklmnopqrstuvwxyz"


def build_unet() -> UNet2DConditionModel:
    """Return a new UNet: attention on the first level and in the middle, plain on the second."""
    return UNet2DConditionModel(
        sample_size=world.SIZE // 2,
        in_channels=12,
        out_channels=12,
        block_out_channels=CHANNELS,
        layers_per_block=2,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        cross_attention_dim=TEXT_WIDTH,
        attention_head_dim=HEADS,
    )


def build_vae() -> HaarVAE:
    """Return the VAE of all base models: whitened latents, so that each channel counts as much.

    The mean of a channel is that over every style, its deviation that within a style.
    """
    generator = torch.Generator().manual_seed(0)
    plain, latents = HaarVAE(), []
    for style in styles.STYLES.values():
        scenes = split.draw_scenes(_FRAMES_A_STYLE, generator)
        moment = torch.randint(world.FRAMES, (len(scenes),), generator=generator)
        frames = render.render(scenes, style, generator, moment)[:, 0]
        latents.append(plain.encode(frames).latent_dist.mode())
    z = torch.stack(latents)  # styles n c h w
    mean, variance = z.mean((0, 1, 3, 4)), z.var((1, 3, 4)).mean(0)
    return HaarVAE(
        latents_mean=[round(x, 5) for x in mean.tolist()],
        latents_std=[round(x, 5) for x in variance.sqrt().tolist()],
    )


def build_motion_module(image_unet: UNet2DConditionModel) -> MotionModule:
    """Return a new motion module for a UNet, with a part at every address that takes one."""
    return MotionModule(layout.config_for(image_unet, num_heads=HEADS))


def build_text_encoder() -> CLIPTextModel:
    """Return a new two-layer CLIP text encoder for the world's words."""
    size = len(_tokens())
    config = CLIPTextConfig(
        vocab_size=size,
        hidden_size=TEXT_WIDTH,
        intermediate_size=2 * TEXT_WIDTH,
        num_hidden_layers=2,
        num_attention_heads=HEADS,
        max_position_embeddings=TOKENS,
        bos_token_id=size - 2,
        eos_token_id=size - 1,
        pad_token_id=size - 1,
    )
    return CLIPTextModel(config)


def write_tokenizer(folder: Path) -> None:
    """Write a CLIP tokenizer: letters, merged into the world's words from left to right."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.json").write_text(json.dumps({t: i for i, t in enumerate(_tokens())}))
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *_merges(), ""]))
    config = {
        "tokenizer_class": "CLIPTokenizer",
        "model_max_length": TOKENS,
        "bos_token": _START,
        "eos_token": _END,
        "unk_token": _END,
        "pad_token": _END,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config))


def write_base(
    folder: Path, image_unet: UNet2DConditionModel, encoder: CLIPTextModel, vae: Vae
) -> Path:
    """Write a base model as a diffusers folder that predicts v on AnimateDiff's betas."""
    image_unet.save_pretrained(folder / "unet")
    _write_text_encoder(folder / "text_encoder", encoder)
    write_tokenizer(folder / "tokenizer")
    vae.save_config(folder / "vae")
    (folder / "scheduler").mkdir(exist_ok=True)
    scheduler = sd15_config.SCHEDULER | {
        "beta_schedule": "linear",
        "prediction_type": "v_prediction",
    }
    (folder / "scheduler" / "scheduler_config.json").write_text(json.dumps(scheduler, indent=2))
    index = sd15_config.MODEL_INDEX | {"vae": [HaarVAE.__module__.rpartition(".")[0], "HaarVAE"]}
    (folder / "model_index.json").write_text(json.dumps(index, indent=2))
    return folder


def _write_text_encoder(folder: Path, encoder: CLIPTextModel) -> None:
    # its own save_pretrained writes nothing on any but the first process of a group
    encoder.config.save_pretrained(folder)
    tensors = as_released(encoder.state_dict())
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def _merges() -> list[str]:
    """Return pairs to merge, long words first, so that none is broken up by a shorter one's."""
    merges: dict[str, None] = {}
    for word in sorted(world.vocabulary(), key=len, reverse=True):
        parts = [*word[:-1], word[-1] + "</w>"]
        for i in range(1, len(parts)):
            merges["".join(parts[:i]) + " " + parts[i]] = None
    return list(merges)


def _tokens() -> list[str]:
    letters = [*_LETTERS, *(c + "</w>" for c in _LETTERS)]
    return [*letters, *(m.replace(" ", "") for m in _merges()), _START, _END]
