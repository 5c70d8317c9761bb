"""Where each motion module sits in an SD1.5-shaped UNet, read from its structure alone.

A motion module follows the spatial transformer of its block, or the ResBlock where there is none,
before any up- or downsampler (AnimateDiff v2 release). Two layouts are read: the LDM UNet of the
original checkpoints and of ComfyUI (input_blocks, middle_block, output_blocks) and diffusers'
UNet2DConditionModel (down_blocks, mid_block, up_blocks).
"""

from dataclasses import dataclass
from typing import Any

from torch import nn

from .config import MotionModuleConfig


@dataclass(frozen=True)
class Site:
    """A UNet submodule that a motion module follows: itself, its path in the UNet, its channels."""

    module: nn.Module
    path: str
    channels: int


def sites(unet: nn.Module) -> dict[str, Site]:
    """Return the sites of a UNet by motion module address.

    Raises ValueError for a model that is neither an LDM nor a diffusers image UNet.
    """
    if all(hasattr(unet, name) for name in ("input_blocks", "middle_block", "output_blocks")):
        return _ldm_sites(unet)
    if all(hasattr(unet, name) for name in ("down_blocks", "mid_block", "up_blocks")):
        return _diffusers_sites(unet)
    raise ValueError(
        f"{type(unet).__name__} is not an SD1.5-shaped UNet; "
        "AnimateDiff motion modules fit Stable Diffusion 1.5 base models only."
    )


def config_for(unet: nn.Module, **options: Any) -> MotionModuleConfig:
    """Return the config of a motion module with a transformer at every site of a UNet.

    `options` are further fields of the config. Raises ValueError as `sites` does.
    """
    blocks: dict[str, list[int]] = {}
    for address, site in sites(unet).items():
        blocks.setdefault(address.partition(".motion_modules")[0], []).append(site.channels)
    down_blocks, up_blocks = (
        tuple(tuple(channels) for name, channels in blocks.items() if name.startswith(side))
        for side in ("down_blocks", "up_blocks")
    )
    mid_block = tuple(blocks.get("mid_block", ()))
    return MotionModuleConfig(down_blocks, mid_block, up_blocks, **options)


def check_fit(config: MotionModuleConfig, unet_sites: dict[str, Site]) -> None:
    """Raise ValueError unless every address of the module is a site of equal channels."""
    addresses = config.addresses()
    missing = [a for a in addresses if a not in unet_sites]
    # a site without a motion module is fine only in the middle: v3 has none there
    unfilled = [a for a in unet_sites if a not in addresses and not a.startswith("mid_block")]
    wrong = [
        f"{a} has {c} channels, the UNet {unet_sites[a].channels}"
        for a, c in addresses.items()
        if a in unet_sites and unet_sites[a].channels != c
    ]
    for problem, places in (
        ("the UNet has no layer for", missing),
        ("the motion module has no part for", unfilled),
        ("channels differ:", wrong),
    ):
        if places:
            raise ValueError(
                f"this motion module does not fit this base model: {problem} {places[0]}"
                f"{f' and {len(places) - 1} more' if len(places) > 1 else ''}; "
                "load a base model of the family that the module was trained for (SD1.5)."
            )


# below, Any stands for submodules of foreign UNets: their attributes are known by name, not by type


def _ldm_sites(unet: Any) -> dict[str, Site]:
    unet_sites: dict[str, Site] = {}
    for side, blocks in (("down_blocks", unet.input_blocks), ("up_blocks", unet.output_blocks)):
        level, j = 0, 0
        for index, sequential in enumerate(blocks):
            prefix = f"{'input' if side == 'down_blocks' else 'output'}_blocks.{index}"
            site = _ldm_site(sequential, prefix)
            if site is not None:
                unet_sites[f"{side}.{level}.motion_modules.{j}"] = site
                j += 1
            # the convolution in front has neither a site nor a sampler behind one
            if any(_is_ldm_sampler(layer) for layer in sequential):
                level, j = level + 1, 0
    middle = _ldm_site(unet.middle_block, "middle_block")
    if middle is not None:
        unet_sites["mid_block.motion_modules.0"] = middle
    return unet_sites


def _ldm_site(sequential: Any, prefix: str) -> Site | None:
    site, channels = None, 0
    for index, layer in enumerate(sequential):
        if hasattr(layer, "out_layers"):  # ResBlock
            if site is not None:  # the second ResBlock of the middle
                break
            channels = layer.out_layers[0].num_channels
            site = Site(layer, f"{prefix}.{index}", channels)
        elif hasattr(layer, "transformer_blocks"):  # SpatialTransformer
            site = Site(layer, f"{prefix}.{index}", channels)
    return site


def _is_ldm_sampler(layer: nn.Module) -> bool:
    is_up_or_down = hasattr(layer, "op") or hasattr(layer, "conv")
    return is_up_or_down and not hasattr(layer, "out_layers")


def _diffusers_sites(unet: Any) -> dict[str, Site]:
    unet_sites: dict[str, Site] = {}
    sides = [
        (f"{s}.{i}", b)
        for s in ("down_blocks", "up_blocks")
        for i, b in enumerate(getattr(unet, s))
    ]
    if unet.mid_block is not None:
        sides.append(("mid_block", unet.mid_block))
    for prefix, block in sides:
        attentions = getattr(block, "attentions", None)
        kind = "resnets" if attentions is None else "attentions"
        for j, module in enumerate(getattr(block, kind)):
            if prefix == "mid_block" and kind == "resnets" and j > 0:
                break
            channels = block.resnets[j].out_channels
            unet_sites[f"{prefix}.motion_modules.{j}"] = Site(
                module, f"{prefix}.{kind}.{j}", channels
            )
    return unet_sites
