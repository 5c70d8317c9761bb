"""Writes an SD1.5 checkpoint with random weights in the original layout (UNet, CLIP-L, VAE).

Run in a ComfyUI interpreter: python tests/host/random_checkpoint.py COMFYUI_FOLDER OUT thin|full
The thin UNet has one ResBlock a level and 320 channels everywhere (74 M parameters).
"""

import math
import os
import sys
from pathlib import Path

SD15 = {  # what UNet and ControlNet of SD1.5 have in common
    "image_size": 32,
    "in_channels": 4,
    "model_channels": 320,
    "num_heads": 8,
    "use_spatial_transformer": True,
    "context_dim": 768,
    "transformer_depth_middle": 1,
    "legacy": False,
}
WIDTHS = {
    "thin": {
        "channel_mult": [1, 1, 1, 1],
        "num_res_blocks": [1, 1, 1, 1],
        "transformer_depth": [1, 1, 1, 0],
        "transformer_depth_output": [1, 1, 1, 1, 1, 1, 0, 0],
    },
    "full": {
        "channel_mult": [1, 2, 4, 4],
        "num_res_blocks": [2, 2, 2, 2],
        "transformer_depth": [1, 1, 1, 1, 1, 1, 0, 0],
        "transformer_depth_output": [1, 1, 1, 1, 1, 1, 1, 1, 1, 0, 0, 0],
    },
}


def random_like(shapes, seed):
    """Return random F16 weights that keep activations in range: unit norms, fan-in scaling."""
    import torch

    generator = torch.Generator().manual_seed(seed)
    out = {}
    for key, shape in shapes.items():
        if len(shape) >= 2:
            std = 1 / math.sqrt(math.prod(shape[1:]))
            out[key] = (torch.randn(shape, generator=generator) * std).half()
        else:
            out[key] = torch.full(shape, float(key.endswith("weight"))).half()
    return out


def checkpoint_shapes(width):
    """Return the shape of every tensor of the checkpoint, from the host's own classes."""
    import comfy.ops
    import torch
    from comfy.ldm.models.autoencoder import AutoencoderKL
    from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel
    from transformers import CLIPTextConfig, CLIPTextModel

    operations = comfy.ops.disable_weight_init
    with torch.device("meta"):
        unet = UNetModel(
            out_channels=4,
            dtype=torch.float16,
            device="meta",
            operations=operations,
            **SD15,
            **WIDTHS[width],
        )
        vae = AutoencoderKL(
            embed_dim=4,
            ddconfig={
                "double_z": True,
                "z_channels": 4,
                "resolution": 256,
                "in_channels": 3,
                "out_ch": 3,
                "ch": 128,
                "ch_mult": [1, 2, 4, 4],
                "num_res_blocks": 2,
                "attn_resolutions": [],
                "dropout": 0.0,
            },
        )
        clip = CLIPTextModel(
            CLIPTextConfig(
                vocab_size=49408,
                hidden_size=768,
                intermediate_size=3072,
                num_hidden_layers=12,
                num_attention_heads=12,
                max_position_embeddings=77,
            )
        )
    # newer transformers drop the prefix that the released files have
    text_prefix = "" if hasattr(clip, "text_model") else "text_model."
    parts = {
        "model.diffusion_model.": unet,
        "first_stage_model.": vae,
        f"cond_stage_model.transformer.{text_prefix}": clip,
    }
    shapes = {p + k: tuple(t.shape) for p, m in parts.items() for k, t in m.state_dict().items()}
    return {k: s for k, s in shapes.items() if not k.endswith("position_ids")}


def write(path, width, seed=0):
    """Write the checkpoint atomically."""
    import safetensors.torch

    temporary = f"{path}.part"
    safetensors.torch.save_file(random_like(checkpoint_shapes(width), seed), temporary)
    os.replace(temporary, path)


if __name__ == "__main__":
    sys.path.insert(0, str(Path(sys.argv[1]).resolve()))
    sys.argv, (path, width) = [sys.argv[0]], sys.argv[2:4]
    import comfy.options

    comfy.options.enable_args_parsing()
    sys.argv += ["--cpu"]
    write(path, width)
