"""Tells what a weights file is from its keys and shapes, and why one cannot be used."""

from collections.abc import Mapping
from typing import Literal

from torch import Tensor

from .config import MotionModuleConfig

FileKind = Literal["motion module", "motion LoRA"]

_IMAGE_LORA = ("a LoRA for the image model", "load it with Load LoRA")
_CHECKPOINT = ("a Stable Diffusion checkpoint", "use it as the base model")
_VAE = ("a VAE", "load it with Load VAE")
_CONTROLNET = ("a ControlNet", "load it with Load ControlNet Model")
_EMBEDDING = ("a textual inversion embedding", "put it into the embeddings folder")
_IMAGE_UNET = ("an image UNet without motion", "load it with Load Diffusion Model")
_USE_SUPPORTED = "use v2, v3, Lightning or AnimateLCM"
_USE_INSTEAD: dict[FileKind, str] = {
    "motion module": _USE_SUPPORTED,
    "motion LoRA": "use one for AnimateDiff v2 or v3",
}
# (fragment of a key, what such a file is, what to do with it), the more particular first
_OTHER_FILES = [
    ("controlnet_cond_embedding", *_CONTROLNET),
    ("control_model.", *_CONTROLNET),
    ("camera_encoder", "a CameraCtrl model", "load it with nodes of its own"),
    ("lora_te_", *_IMAGE_LORA),
    ("lora_unet_", *_IMAGE_LORA),
    ("lora_down", *_IMAGE_LORA),
    ("lora_A", *_IMAGE_LORA),
    ("lora.down", *_IMAGE_LORA),
    ("conditioner.embedders", "an SDXL checkpoint", "use it as the base model"),
    ("cond_stage_model.", *_CHECKPOINT),
    ("model.diffusion_model.", *_CHECKPOINT),
    ("input_blocks.", *_IMAGE_UNET),
    ("first_stage_model.", *_VAE),
    ("encoder.mid_block.resnets", *_VAE),
    ("decoder.mid.block_1", *_VAE),
    ("text_model.encoder.layers", "a CLIP model", "load it with Load CLIP"),
    ("image_proj.", "an IP-Adapter", "load it with an IP-Adapter node"),
    ("emb_params", *_EMBEDDING),
    ("string_to_param", *_EMBEDDING),
    ("transformer_blocks.0.attn1.to_q", *_IMAGE_UNET),
]
_MOTION_LORA = (
    "is a motion LoRA, not a motion module; put it into the animatediff_motion_lora folder"
)
_CROSS_FRAME_POSITIONS = 24


def refuse_other(keys: Mapping[str, object], kind: FileKind = "motion module") -> str:
    """Return what a file without a single key of its kind is, and what to do with it."""
    if kind == "motion module" and is_motion_lora(keys):
        return _MOTION_LORA
    if any(k.endswith("pos_encoder.positional_encoding") for k in keys):
        return "is a HotShot-XL motion module, which needs an SDXL base; use an SD1.5 motion module"
    for fragment, name, advice in _OTHER_FILES:
        if any(fragment in k for k in keys):
            return f"is {name}, not a {kind}; {advice}"
    return f"is not a {kind}, and its kind is unknown; {_USE_INSTEAD[kind]}"


def refuse_as_lora(keys: Mapping[str, object]) -> str | None:
    """Return why a file is refused as a motion LoRA, None if it is one."""
    if is_motion_lora(keys):
        return None
    if any("motion_modules." in k for k in keys):
        return (
            "is a motion module, not a motion LoRA; put it into the animatediff_models folder and "
            "load it with Load Motion Module"
        )
    return refuse_other(keys, "motion LoRA")


def refuse_as_motion_module(tensors: Mapping[str, Tensor]) -> str | None:
    """Return why a file with motion module keys is refused, None if it is not.

    `tensors` may be in either layout.
    """
    if is_motion_lora(tensors):
        return _MOTION_LORA
    if any(".resnets." in k for k in tensors):
        return "is a whole UNet with a motion module inside; export the motion module by itself"
    if any(k.startswith("conv_in.") for k in tensors):
        return (
            "is a PIA motion module, which replaces the base model's first convolution; "
            f"{_USE_SUPPORTED}"
        )
    if _looks_like_sdxl(tensors):
        return "is an AnimateDiff-SDXL motion module, which needs an SDXL base; use an SD1.5 one"
    has_middle = any(k.startswith("mid_block.") for k in tensors)
    positions = next((t.shape[1] for k, t in tensors.items() if _is_position_table(k, t)), None)
    if not has_middle and positions == _CROSS_FRAME_POSITIONS:
        return (
            "is an AnimateDiff v1 motion module (24 positions, no mid block), which needs a UNet "
            f"that normalises across frames; {_USE_SUPPORTED}"
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


def is_motion_lora(keys: Mapping[str, object]) -> bool:
    """Tell whether any key is a LoRA's for a motion module."""
    return any("motion_modules." in k and "lora" in k for k in keys)


def _looks_like_sdxl(tensors: Mapping[str, Tensor]) -> bool:
    widths = {}
    for key, tensor in tensors.items():
        side, _, rest = key.partition(".")
        if side == "down_blocks" and rest.endswith(".norm.weight"):
            widths[rest.partition(".")[0]] = tensor.numel()
    has_fourth = any(k.startswith(("down_blocks.3.", "up_blocks.3.")) for k in tensors)
    return [widths[i] for i in sorted(widths)] == [320, 640, 1280] and not has_fourth
