"""The names that trainers give to the parts of a LoRA, and the weights of a motion module.

Read: the original files (`processor.to_q_lora.down`), AnimateDiff-MotionDirector's
(`to_out.processor.0_lora.up`), diffusers' old and new ones (`lora.down`, `lora_linear_layer.down`,
`lora_A`), PEFT's (`lora_A.default`) and kohya's (`lora_unet_down_blocks_0_...lora_down`).
"""

import re
from dataclasses import dataclass
from typing import Literal

from . import keys

Role = Literal["up", "down", "alpha"]

_WORD = r"(?:_lora|\.lora(?:_linear_layer|_layer)?)"
_HALF = re.compile(rf"^(?P<layer>.+?){_WORD}[._](?P<role>down|up|A|B)(?:\.[\w-]+)?\.weight$")
_ALPHA = re.compile(rf"^(?P<layer>.+?){_WORD}?\.(?:network_)?alpha$")
_ROLES: dict[str, Role] = {"up": "up", "down": "down", "A": "down", "B": "up"}
_OTHER_METHODS = (
    (re.compile(r"lora_magnitude_vector|dora_scale"), "DoRA"),
    (re.compile(r"\.hada_"), "LoHa"),
    (re.compile(r"\.lokr_"), "LoKr"),
    (re.compile(r"\.oft_"), "OFT"),
    (re.compile(r"\.lora_mid\."), "a Tucker decomposition"),
    (re.compile(r"\.lora_embedding_"), "embeddings"),
    (re.compile(r"lora.*\.bias$|\.diff_b$"), "biases"),
    (re.compile(r"\.diff$"), "whole differences of weights"),
)
_KOHYA = re.compile(
    r"(?:(?P<side>down|up)_blocks_(?P<block>\d+)|mid_block)_motion_modules_(?P<module>\d+)_"
    r"(?P<rest>.+)$"
)
_KOHYA_DOTS = (
    (re.compile(r"(?<![a-z])temporal_transformer_"), "temporal_transformer."),
    (re.compile(r"(transformer_blocks|attention_blocks)_(\d+)_"), r"\1.\2."),
    (re.compile(r"(attn\d)_"), r"\1."),
    (re.compile(r"processor_"), "processor."),
    (re.compile(r"to_out_0$"), "to_out.0"),
    (re.compile(r"ff_net_(\d)(?:_(proj))?$"), r"ff.net.\1.\2"),
)


@dataclass(frozen=True)
class Part:
    """A tensor of a LoRA: which half or alpha it is, of which layer as the trainer calls it."""

    layer: str
    role: Role

    @property
    def weight(self) -> str | None:
        """The motion module's key of the weight that it changes, None for an image model's."""
        return _weight_key(self.layer)


def parse(key: str) -> Part | None:
    """Return what a tensor of a LoRA is by its key, None for a name that no trainer gives."""
    for pattern in (_HALF, _ALPHA):
        match = pattern.match(key)
        if match:
            role = _ROLES[match["role"]] if pattern is _HALF else "alpha"
            return Part(match["layer"], role)
    return None


def other_method(key: str) -> str | None:
    """Return the way in which a tensor changes weights other than as a plain LoRA, None if none."""
    return next((name for pattern, name in _OTHER_METHODS if pattern.search(key)), None)


def _weight_key(layer: str) -> str | None:
    kohya = _KOHYA.search(layer)
    if kohya:
        layer = _with_dots(kohya)
    prefixes = keys.prefixes([layer + "."])
    if not prefixes:
        return None
    layer = layer.removeprefix(prefixes.pop()).replace(".processor.", ".")
    key = layer + (".0" if layer.endswith(".to_out") else "") + ".weight"
    return key if ".temporal_transformer." in key else keys.from_diffusers_key(key)


def _with_dots(name: re.Match[str]) -> str:
    rest = name["rest"]
    for pattern, dotted in _KOHYA_DOTS:
        rest = pattern.sub(dotted, rest).rstrip(".")
    block = f"{name['side']}_blocks.{name['block']}" if name["side"] else "mid_block"
    return f"{block}.motion_modules.{name['module']}.{rest}"
