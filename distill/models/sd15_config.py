"""The shape of Stable Diffusion 1.5 as a diffusers folder of configs without weights.

A single-file checkpoint holds weights only; with these configs it loads without asking the hub.
"""

import json
from pathlib import Path
from typing import Any

Config = dict[str, Any]  # as JSON has it, and diffusers types it

HUB_TOKENIZER = "openai/clip-vit-large-patch14"  # the text encoder that SD1.5 was trained with

MODEL_INDEX: Config = {
    "_class_name": "StableDiffusionPipeline",
    "scheduler": ["diffusers", "DDIMScheduler"],
    "text_encoder": ["transformers", "CLIPTextModel"],
    "tokenizer": ["transformers", "CLIPTokenizer"],
    "unet": ["diffusers", "UNet2DConditionModel"],
    "vae": ["diffusers", "AutoencoderKL"],
    "safety_checker": [None, None],
    "feature_extractor": [None, None],
}
# every key that the conversion from the LDM layout reads, even where diffusers has a default
UNET: Config = {
    "_class_name": "UNet2DConditionModel",
    "sample_size": 64,
    "in_channels": 4,
    "out_channels": 4,
    "down_block_types": ["CrossAttnDownBlock2D"] * 3 + ["DownBlock2D"],
    "up_block_types": ["UpBlock2D"] + ["CrossAttnUpBlock2D"] * 3,
    "layers_per_block": 2,
    "block_out_channels": [320, 640, 1280, 1280],
    "cross_attention_dim": 768,
    "attention_head_dim": 8,
}
VAE: Config = {
    "_class_name": "AutoencoderKL",
    "sample_size": 512,
    "in_channels": 3,
    "out_channels": 3,
    "latent_channels": 4,
    "block_out_channels": [128, 256, 512, 512],
    "down_block_types": ["DownEncoderBlock2D"] * 4,
    "up_block_types": ["UpDecoderBlock2D"] * 4,
    "layers_per_block": 2,
    "scaling_factor": 0.18215,
}
TEXT_ENCODER: Config = {
    "architectures": ["CLIPTextModel"],
    "model_type": "clip_text_model",
    "vocab_size": 49408,
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "max_position_embeddings": 77,
    "bos_token_id": 49406,
    "eos_token_id": 49407,
    "pad_token_id": 49407,
    "projection_dim": 768,
}
SCHEDULER: Config = {
    "_class_name": "DDIMScheduler",
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "steps_offset": 1,
    "clip_sample": False,
    "prediction_type": "epsilon",
}


def write_configs(folder: Path) -> Path:
    """Write the configs into an existing folder, a few kilobytes, and return it."""
    for name, content in (
        ("model_index.json", MODEL_INDEX),
        ("unet/config.json", UNET),
        ("vae/config.json", VAE),
        ("text_encoder/config.json", TEXT_ENCODER),
        ("scheduler/scheduler_config.json", SCHEDULER),
    ):
        file = folder / name
        file.parent.mkdir(exist_ok=True)
        file.write_text(json.dumps(content, indent=2))
    return folder
