"""Thin ControlNet and T2I-Adapter files with random weights, through the core's own loader."""

import tempfile
from functools import cache
from pathlib import Path

from random_checkpoint import SD15, WIDTHS, random_like


def controlnet_shapes():
    """Return the shape of every tensor of a ControlNet for the thin UNet."""
    import comfy.cldm.cldm
    import comfy.ops
    import torch

    width = {k: v for k, v in WIDTHS["thin"].items() if k != "transformer_depth_output"}
    net = comfy.cldm.cldm.ControlNet(
        hint_channels=3,
        dtype=torch.float16,
        device="meta",
        operations=comfy.ops.disable_weight_init,
        **SD15,
        **width,
    )
    return {k: tuple(t.shape) for k, t in net.state_dict().items()}


def t2i_adapter_shapes():
    """Return the shapes of an adapter of the large kind, whose first output fits the thin UNet."""
    import torch
    from comfy.t2i_adapter.adapter import Adapter

    with torch.device("meta"):
        net = Adapter(cin=768, nums_rb=2, ksize=1, sk=True, use_conv=False, xl=True)
    return {k: tuple(t.shape) for k, t in net.state_dict().items()}


@cache
def loaded(kind):
    """Return the core's control object of a thin random file.

    `kind` is "controlnet", "other_controlnet" or "t2i_adapter"; the latter has wider channels than
    the others, so that it does not chain with them.
    """
    import comfy.controlnet
    import safetensors.torch

    shapes = t2i_adapter_shapes() if kind == "t2i_adapter" else controlnet_shapes()
    tensors = random_like(shapes, seed=len(kind))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"{kind}.safetensors"
        safetensors.torch.save_file(tensors, path)
        return comfy.controlnet.load_controlnet(str(path))


def hints(count, seed=0, size=64):
    """Return as many random hint images, (count, 3, size, size) in 0 to 1."""
    import torch

    return torch.rand(count, 3, size, size, generator=torch.Generator().manual_seed(seed))


def control(kind, images, previous=None):
    """Return a control with hint images, as the core's Apply ControlNet makes it."""
    return loaded(kind).copy().set_cond_hint(images, 1.0).set_previous_controlnet(previous)
