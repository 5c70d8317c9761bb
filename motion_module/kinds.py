"""The kinds of weights files that people have: by which keys each is known, where it belongs.

They stand in one table, the special before the general: a SparseCtrl also has what makes a motion
module, and a whole checkpoint also has a VAE. The first kind that fits is the answer.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass

Keys = Mapping[str, object]
Sign = Callable[[Keys], bool]

_CROSS_FRAME_POSITIONS = 24
_SDXL_WIDTHS = [320, 640, 1280]
_ADE = "ComfyUI-AnimateDiff-Evolved"


@dataclass(frozen=True)
class Kind:
    """A kind of file: its name with an article, what to do with it, and the signs it goes by."""

    name: str
    advice: str
    signs: tuple[Sign, ...]

    def fits(self, keys: Keys) -> bool:
        """Tell whether a file has every sign of this kind."""
        return all(sign(keys) for sign in self.signs)


def _has(*patterns: str) -> Sign:
    """Return the sign that a key matches one of some regular expressions."""
    search = re.compile("|".join(f"(?:{p})" for p in patterns)).search
    return lambda keys: any(search(key) for key in keys)


def _lacks(*patterns: str) -> Sign:
    has = _has(*patterns)
    return lambda keys: not has(keys)


def _count_positions(keys: Keys) -> int | None:
    tables = (_shape(t) for k, t in keys.items() if k.endswith(("pos_encoder.pe", "pos_embed.pe")))
    return next((shape[1] for shape in tables if len(shape) == 3), None)


def _has_v1_positions(keys: Keys) -> bool:
    return _count_positions(keys) == _CROSS_FRAME_POSITIONS


def _has_sdxl_widths(keys: Keys) -> bool:
    widths: dict[str, int] = {}
    for key, tensor in keys.items():
        match = re.match(r"down_blocks\.(\d+)\..*\.norm\.weight$", key)
        if match and len(_shape(tensor)) == 1:
            widths[match[1]] = _shape(tensor)[0]
    return [widths[i] for i in sorted(widths)] == _SDXL_WIDTHS


def _shape(tensor: object) -> tuple[int, ...]:
    return tuple(getattr(tensor, "shape", ()))


_MOTION = _has(r"motion_modules[._]")
_LORA = _has(r"lora", r"\.hada_w", r"\.lokr_w", r"\.oft_")
_CONTROLNET_ADVICE = "put it into models/controlnet and load it with Load ControlNet Model"
_IMAGE_LORA_ADVICE = "put it into models/loras and load it with Load LoRA"
USE_SUPPORTED = "use v2, v3, Lightning or AnimateLCM"
MOTION_MODULE = Kind(
    "a motion module",
    "put it into models/animatediff_models and load it with Load Motion Module",
    (_MOTION,),
)
MOTION_LORA = Kind(
    "a motion LoRA",
    "put it into models/animatediff_motion_lora and load it with Load Motion LoRA",
    (_MOTION, _LORA),
)
CHECKPOINT = Kind(
    "a Stable Diffusion checkpoint",
    "put it into models/checkpoints and use it as the base model",
    (_has(r"^cond_stage_model\."),),
)
KINDS = (
    # with motion modules inside
    Kind(
        "a CameraCtrl model",
        f"load it with the CameraCtrl nodes of {_ADE}",
        (_has(r"qkv_merge", r"encoder_down_conv_blocks", r"camera_encoder", r"^pose_encoder"),),
    ),
    Kind(
        "a MotionCtrl model",
        f"load it with the MotionCtrl nodes of {_ADE}",
        (_has(r"cc_projection"),),
    ),
    Kind(
        "an AnimateLCM-I2V model",
        f"load it with the AnimateLCM-I2V nodes of {_ADE}, or use AnimateLCM's text-to-video file",
        (_MOTION, _has(r"^img_encoder\.")),
    ),
    Kind(
        "a FancyVideo model",
        f"load it with the FancyVideo nodes of {_ADE}",
        (_MOTION, _has(r"^fps_embedding\.", r"^motion_embedding\.", r"^FancyVideo")),
    ),
    Kind(
        "a SparseCtrl ControlNet",
        "put it into models/controlnet and load it with Load SparseCtrl Model of "
        "ComfyUI-Advanced-ControlNet",
        (_MOTION, _has(r"controlnet_cond_embedding", r"controlnet_down_blocks")),
    ),
    Kind(
        "a HotShot-XL motion module",
        "it needs an SDXL base model, so use an SD1.5 motion module",
        (_has(r"pos_encoder\.positional_encoding$", r"temporal_attentions\."),),
    ),
    MOTION_LORA,
    Kind(
        "a whole UNet with a motion module inside",
        "export the motion module by itself",
        (_MOTION, _has(r"\.resnets\.")),
    ),
    Kind(
        "a PIA motion module, which replaces the base model's first convolution",
        f"load it with the PIA nodes of {_ADE}, or {USE_SUPPORTED}",
        (_MOTION, _has(r"^conv_in\.")),
    ),
    Kind(
        "an AnimateDiff-SDXL motion module",
        "it needs an SDXL base model, so use an SD1.5 motion module",
        (_MOTION, _lacks(r"^(?:down|up)_blocks\.3\."), _has_sdxl_widths),
    ),
    Kind(
        "an AnimateDiff v1 motion module (24 positions, no mid block)",
        f"it needs a UNet that normalises across frames, so {USE_SUPPORTED}",
        (_MOTION, _lacks(r"^mid_block\."), _has_v1_positions),
    ),
    MOTION_MODULE,
    # LoRAs
    Kind(
        "a LoRA for the image model in AnimateDiff's spelling, such as v3's domain adapter",
        _IMAGE_LORA_ADVICE,
        (_has(r"^(?:down|up|mid)_block\w*\..*attentions\..*\.processor\.\w+_lora\."),),
    ),
    Kind(
        "a LoRA for another model than SD1.5",
        "load it together with that model",
        (
            _LORA,
            _has(
                r"(?:^|\.)(?:blocks|\w+_blocks)\.\d+\.",
                r"^transformer\.",
                r"^lora_transformer_",
                r"^lora_unet_(?:blocks|double_blocks|single_blocks|joint_blocks)_",
            ),
            _lacks(r"text_model", r"lora_te", r"attentions", r"input_blocks", r"output_blocks"),
        ),
    ),
    Kind(
        "a LoRA with numbers in the place of layer names (cloneofsimo's format)",
        "save it with layer names, as motion LoRAs have them",
        (_has(r"^\w+:\d+:(?:up|down)$"),),
    ),
    Kind("a LoRA for the image model", _IMAGE_LORA_ADVICE, (_LORA,)),
    # what goes beside an image model
    Kind(
        "an IP-Adapter",
        "put it into models/ipadapter and load it with an IP-Adapter node",
        (_has(r"^image_proj\b", r"^ip_adapter\b", r"^adapter_modules\b"),),
    ),
    Kind(
        "a T2I-Adapter",
        _CONTROLNET_ADVICE,
        (_has(r"^(?:adapter\.)?body\.\d+\.(?:in_conv|block1|resnets)\b"),),
    ),
    Kind(
        "a ControlNet",
        _CONTROLNET_ADVICE,
        (
            _has(
                r"controlnet_cond_embedding",
                r"controlnet_down_blocks",
                r"^control_model\.",
                r"^input_hint_block\.",
                r"^zero_convs\.",
            ),
        ),
    ),
    Kind(
        "a textual inversion embedding",
        "put it into models/embeddings",
        (_has(r"^emb_params$", r"^string_to_param\b", r"^clip_[lg]$"),),
    ),
    # whole checkpoints
    Kind(
        "a Stable Video Diffusion checkpoint",
        "it makes videos without a motion module, so use an SD1.5 motion module",
        (_has(r"\.time_stack\.", r"temporal_transformer_blocks\.", r"\.temporal_res_block\."),),
    ),
    Kind(
        "an SDXL checkpoint",
        "use an SD1.5 checkpoint as the base model",
        (_has(r"^conditioner\.embedders"),),
    ),
    Kind(
        "a Stable Diffusion 2 checkpoint",
        "use an SD1.5 checkpoint as the base model",
        (_has(r"^cond_stage_model\.model\."),),
    ),
    CHECKPOINT,
    Kind(
        "an image UNet without motion",
        "put it into models/diffusion_models and load it with Load Diffusion Model",
        (
            _has(
                r"^model\.diffusion_model\.",
                r"^diffusion_model\.",
                r"^input_blocks\.",
                r"(?<!decoder\.)transformer_blocks\.0\.attn1\.to_q",
            ),
        ),
    ),
    # parts of checkpoints
    Kind(
        "a tiny VAE for previews (TAESD)",
        "put it into models/vae_approx",
        (_has(r"^(?:taesd_|encoder\.|decoder\.)?(?:\w+\.)?\d+\.conv\.0\.weight$"),),
    ),
    Kind(
        "a VAE",
        "put it into models/vae and load it with Load VAE",
        (
            _has(
                r"^first_stage_model\.",
                r"^(?:encoder|decoder)\.mid_block\.",
                r"^(?:encoder|decoder)\.mid\.(?:block|attn)_\d",
            ),
        ),
    ),
    Kind(
        "a CLIP vision model",
        "put it into models/clip_vision and load it with Load CLIP Vision",
        (_has(r"\bvision_model\.", r"^visual\."),),
    ),
    Kind(
        "a CLIP model",
        "put it into models/text_encoders and load it with Load CLIP",
        (_has(r"\btext_model\.", r"^encoder\.layers\.\d+\.self_attn\."),),
    ),
)
