"""A small base model and motion module with RANDOM weights, for tests of the pipeline.

They are shaped like SD1.5 and AnimateDiff v2 but know nothing: their clips are coloured noise.
"""

import json
from dataclasses import dataclass
from pathlib import Path

import torch
from animatediff_lightning.distill.files.cache import cache_folder, made_once
from animatediff_lightning.distill.models.sd15_config import MODEL_INDEX, SCHEDULER
from animatediff_lightning.motion_module import checkpoint, layout
from animatediff_lightning.motion_module.module import MotionModule
from diffusers import AutoencoderKL, UNet2DConditionModel
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModel

SEED = 0
_VERSION = 1  # of the folder: raise it when the models change
_CHANNELS = (32, 64, 128, 128)
_TEXT_WIDTH = 64
_TOKENS = 77


@dataclass(frozen=True)
class RandomModels:
    """Paths of the base model (a diffusers folder) and of the motion module file."""

    base: Path
    motion_module: Path


def ensure(cache: Path | None = None) -> RandomModels:
    """Return the random models in the cache folder, and make them there first where missing.

    Always the same weights.
    """
    folder = made_once((cache or cache_folder()) / f"random-models-{_VERSION}", write)
    return RandomModels(folder / "base", folder / "random_motion_module.safetensors")


def write(folder: Path, prediction_type: str = "epsilon") -> RandomModels:
    """Write both models into a folder, a few megabytes; the caller's random state is untouched."""
    models = RandomModels(folder / "base", folder / "random_motion_module.safetensors")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(SEED)
        write_tokenizer(models.base / "tokenizer")
        text_encoder(models.base / "tokenizer").save_pretrained(models.base / "text_encoder")
        image_unet = unet()
        image_unet.save_pretrained(models.base / "unet")
        vae().save_pretrained(models.base / "vae")
        metadata = {"family": "random weights, for trying the pipeline"}
        checkpoint.save(motion_module(image_unet), models.motion_module, metadata=metadata)
    scheduler = models.base / "scheduler" / "scheduler_config.json"
    scheduler.parent.mkdir()
    scheduler.write_text(json.dumps(SCHEDULER | {"prediction_type": prediction_type}, indent=2))
    (models.base / "model_index.json").write_text(json.dumps(MODEL_INDEX, indent=2))
    return models


def write_tokenizer(folder: Path) -> None:
    """Write a CLIP tokenizer that reads text byte by byte: 256 bytes, alone or at a word's end."""
    folder.mkdir(parents=True)
    letters = _byte_letters()
    words = [*letters, *(c + "</w>" for c in letters), "<|startoftext|>", "<|endoftext|>"]
    (folder / "vocab.json").write_text(json.dumps({w: i for i, w in enumerate(words)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    start, end = words[-2:]
    config = {
        "tokenizer_class": "CLIPTokenizer",
        "model_max_length": _TOKENS,
        "bos_token": start,
        "eos_token": end,
        "unk_token": end,
        "pad_token": end,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config))


def text_encoder(tokenizer: Path) -> CLIPTextModel:
    """Return a thin CLIP text encoder for the tokenizer in a folder."""
    size = len(json.loads((tokenizer / "vocab.json").read_text()))
    config = CLIPTextConfig(
        vocab_size=size,
        hidden_size=_TEXT_WIDTH,
        intermediate_size=2 * _TEXT_WIDTH,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=_TOKENS,
        bos_token_id=size - 2,
        eos_token_id=size - 1,
        pad_token_id=size - 1,
    )
    return CLIPTextModel(config)


def unet(channels: tuple[int, ...] = _CHANNELS) -> UNet2DConditionModel:
    """Return a thin SD1.5 UNet for 8 x 8 latents; `channels` of its four levels."""
    return UNet2DConditionModel(
        sample_size=8,
        block_out_channels=channels,
        cross_attention_dim=_TEXT_WIDTH,
        attention_head_dim=8,
    )


def vae() -> AutoencoderKL:
    """Return a thin SD1.5 VAE, 8 pixels a latent, with contrast enough to see."""
    model = AutoencoderKL(
        sample_size=64,
        block_out_channels=(32, 32, 64, 64),
        layers_per_block=2,
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        scaling_factor=0.18215,
    )
    with torch.no_grad():
        model.decoder.conv_out.weight.mul_(3)
    return model


def motion_module(image_unet: nn.Module) -> MotionModule:
    """Return a motion module for a UNet, with proj_out random too, so that it changes the clip."""
    module = MotionModule(layout.config_for(image_unet)).initialise()
    for part in module.temporal_transformers().values():
        nn.init.normal_(part.proj_out.weight, std=part.proj_out.in_features**-0.5)
    return module.half()  # as the released files


def _byte_letters() -> list[str]:
    """Return the 256 printable stand-ins for bytes of GPT-2's byte-level vocabulary."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = range(256, 256 + 256 - len(plain))
    return [chr(n) for n in (*plain, *others)]
