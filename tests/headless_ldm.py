"""Writes a diffusers folder of SD1.5's structure as one checkpoint in the original LDM layout.

The inverse of what diffusers' from_single_file does; for any widths, four levels, two layers.
"""

import re
from pathlib import Path

from safetensors.torch import load_file, save_file

_RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "time_emb_proj": "emb_layers.1",
    "conv_shortcut": "skip_connection",
}
_UNET_ENDS = {
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "conv_in": "input_blocks.0.0",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
}
_VAE_ATTENTION = {
    "group_norm": "norm",
    "to_q": "q",
    "to_k": "k",
    "to_v": "v",
    "to_out.0": "proj_out",
}


def write(base: Path, target: Path) -> Path:
    """Write the weights of the diffusers folder `base` to the single file `target`."""
    out = {}
    for key, tensor in load_file(base / "unet/diffusion_pytorch_model.safetensors").items():
        out["model.diffusion_model." + unet_key(key)] = tensor
    for key, tensor in load_file(base / "vae/diffusion_pytorch_model.safetensors").items():
        is_convolution = "attentions" in key and "group_norm" not in key and tensor.ndim == 2
        tensor = tensor[..., None, None].contiguous() if is_convolution else tensor
        out["first_stage_model." + vae_key(key)] = tensor
    for key, tensor in load_file(base / "text_encoder/model.safetensors").items():
        out["cond_stage_model.transformer.text_model." + key.removeprefix("text_model.")] = tensor
    save_file(out, target)
    return target


def unet_key(key: str) -> str:
    """Return the LDM key of a diffusers UNet key."""
    for ours, theirs in _UNET_ENDS.items():
        if key.startswith(ours + "."):
            return theirs + key.removeprefix(ours)
    kind, tail = re.search(r"(resnets|attentions|downsamplers|upsamplers)\.(.*)", key).groups()
    j, tail = tail.split(".", 1)
    j = int(j)
    if kind == "resnets":
        name, rest = tail.split(".", 1)
        tail = f"{_RESNET[name]}.{rest}"
    part = 0 if kind == "resnets" else 1
    if key.startswith("mid_block"):
        return f"middle_block.{2 * j if kind == 'resnets' else 1}.{tail}"
    i = int(key.split(".")[1])
    if kind == "downsamplers":
        return f"input_blocks.{3 * (i + 1)}.0.{tail.replace('conv.', 'op.')}"
    if kind == "upsamplers":
        return f"output_blocks.{3 * i + 2}.{1 if i == 0 else 2}.{tail}"
    if key.startswith("down"):
        return f"input_blocks.{3 * i + j + 1}.{part}.{tail}"
    return f"output_blocks.{3 * i + j}.{part}.{tail}"


def vae_key(key: str) -> str:
    """Return the LDM key of a diffusers VAE key."""
    key = key.replace("conv_norm_out", "norm_out").replace("conv_shortcut", "nin_shortcut")
    key = re.sub(r"down_blocks\.(\d)\.resnets", r"down.\1.block", key)
    key = re.sub(r"down_blocks\.(\d)\.downsamplers\.0", r"down.\1.downsample", key)
    key = re.sub(r"up_blocks\.(\d)\.resnets", lambda m: f"up.{3 - int(m[1])}.block", key)
    key = re.sub(r"up_blocks\.(\d)\.upsamplers\.0", lambda m: f"up.{3 - int(m[1])}.upsample", key)
    key = re.sub(r"mid_block\.resnets\.(\d)", lambda m: f"mid.block_{int(m[1]) + 1}", key)
    if "mid_block.attentions.0." in key:
        for ours, theirs in _VAE_ATTENTION.items():
            key = key.replace(f"attentions.0.{ours}.", f"attn_1.{theirs}.")
    return key.replace("mid_block.", "mid.")
