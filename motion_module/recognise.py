"""Tells what a weights file is from its keys and shapes, and why it cannot be used where it cannot."""

from collections.abc import Mapping

from torch import Tensor

from .config import MotionModuleConfig

# (part of a key, what such a file is), the more particular first
_OTHER_FILES = [
    ("pos_encoder.positional_encoding", "a HotShot-XL motion module, which needs an SDXL base"),
    ("processor.to_q_lora", "a motion LoRA; put it into animatediff_motion_lora"),
    ("controlnet_cond_embedding", "a SparseCtrl or diffusers ControlNet model"),
    ("control_model.", "a ControlNet"),
    ("camera_encoder", "a CameraCtrl model"),
    ("lora_te_", "a LoRA for the image model; load it with Load LoRA"),
    ("lora_unet_", "a LoRA for the image model; load it with Load LoRA"),
    ("lora_down", "a LoRA for the image model; load it with Load LoRA"),
    ("lora_A", "a LoRA for the image model; load it with Load LoRA"),
    ("lora.down", "a LoRA for the image model; load it with Load LoRA"),
    ("conditioner.embedders", "an SDXL checkpoint; load it with Load Checkpoint"),
    ("cond_stage_model.", "a Stable Diffusion checkpoint; load it with Load Checkpoint"),
    ("model.diffusion_model.", "a Stable Diffusion checkpoint; load it with Load Checkpoint"),
    ("input_blocks.", "an image UNet without its motion"),
    ("first_stage_model.", "a VAE; load it with Load VAE"),
    ("encoder.mid_block.resnets", "a VAE; load it with Load VAE"),
    ("decoder.mid.block_1", "a VAE; load it with Load VAE"),
    ("text_model.encoder.layers", "a CLIP model"),
    ("image_proj.", "an IP-Adapter"),
    ("emb_params", "a textual inversion embedding; put it into embeddings"),
    ("string_to_param", "a textual inversion embedding; put it into embeddings"),
    ("transformer_blocks.0.attn1.to_q", "an image UNet in diffusers layout"),
]
_CROSS_FRAME_POSITIONS = 24


def name_other(keys: Mapping[str, object]) -> str | None:
    """Name a file that is no motion module; None where the keys are not known."""
    return next((name for part, name in _OTHER_FILES if any(part in k for k in keys)), None)


def refuse_known(tensors: Mapping[str, Tensor]) -> str | None:
    """Return why a motion module of a known but unsupported family is refused, None if it is not.

    `tensors` may be in either layout.
    """
    if any(k.endswith("pos_encoder.positional_encoding") for k in tensors):
        return f"is {_OTHER_FILES[0][1]}; use an SD1.5 motion module"
    if any(k.startswith("conv_in.") for k in tensors):
        return "is a PIA motion module, which replaces the base model's first convolution"
    if _looks_like_sdxl(tensors):
        return "is an AnimateDiff-SDXL motion module, which needs an SDXL base; use an SD1.5 one"
    has_middle = any(k.startswith("mid_block.") for k in tensors)
    positions = next((t.shape[1] for k, t in tensors.items() if _is_position_table(k, t)), None)
    if not has_middle and positions == _CROSS_FRAME_POSITIONS:
        return (
            "is an AnimateDiff v1 motion module (24 positions, no mid block), which needs a UNet "
            "that normalises across frames; use v2, v3, Lightning or AnimateLCM"
        )
    return None


def family(config: MotionModuleConfig, has_positions: bool, steps: int) -> str:
    """Return the family name of a supported motion module."""
    if steps:
        return "AnimateDiff-Lightning"
    if not has_positions:
        return "AnimateLCM"
    return "AnimateDiff v2" if config.mid_block else "AnimateDiff v3"


def _is_position_table(key: str, tensor: Tensor) -> bool:
    return key.endswith((".pos_encoder.pe", ".pos_embed.pe")) and tensor.ndim == 3


def _looks_like_sdxl(tensors: Mapping[str, Tensor]) -> bool:
    widths = {}
    for key, tensor in tensors.items():
        side, _, rest = key.partition(".")
        if side == "down_blocks" and rest.endswith(("temporal_transformer.norm.weight", ".norm.weight")):
            widths[int(rest.split(".")[0])] = tensor.shape[0]
    return [widths[i] for i in sorted(widths)] == [320, 640, 1280]
