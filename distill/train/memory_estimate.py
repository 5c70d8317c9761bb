"""How much memory a process needs to train, from shapes alone: networks without any weights.

Weights, gradients and Adam's moments are counted; activations are what autograd keeps in a forward
of shapes (torch's meta device). What a GPU's kernels and allocator need on top is not in it.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from diffusers.models import UNet2DConditionModel
from torch import Tensor, nn

from ...motion_module.inject import inject
from ...motion_module.module import MotionModule
from ..engine import gradient_checkpointing
from .discriminator import Discriminator

GIB = 2**30
_TRAINED = 16  # bytes a parameter: float32 weight, gradient, two moments


@dataclass(frozen=True)
class Shapes:
    """A forward of training: clips, frames, latent height and width, text tokens, its dtype."""

    clips: int
    frames: int
    height: int
    width: int
    tokens: int
    dtype: torch.dtype
    checkpointing: bool


def count(*modules: nn.Module) -> int:
    """Return the number of parameters."""
    return sum(p.numel() for module in modules for p in module.parameters())


def trained(parameters: int, averaged: bool) -> int:
    """Return the bytes of weights that are trained, with all that training keeps for each."""
    return parameters * (_TRAINED + 4 * averaged)


def frozen(parameters: int, dtype: torch.dtype) -> int:
    """Return the bytes of weights that are only used."""
    return parameters * dtype.itemsize


def of_student(unet: UNet2DConditionModel, module: MotionModule, shapes: Shapes) -> int:
    """Return the bytes of activations of a student's forward and backward; all on meta."""
    batch = shapes.clips * shapes.frames
    x, text = _inputs(unet, batch, shapes)
    injection = inject(unet, module, num_frames=shapes.frames)
    try:
        return _measure_saved(lambda: unet(x, 500, text).sample, (unet, module), shapes)
    finally:
        injection.eject()


def of_discriminator(
    unet: UNet2DConditionModel, discriminator: Discriminator, shapes: Shapes, states: int
) -> int:
    """Return the bytes of activations of a discriminator's update on so many states."""
    x, _ = _inputs(unet, shapes.clips * shapes.frames, shapes)
    width = unet.config["cross_attention_dim"]
    text = torch.empty(shapes.clips, shapes.tokens, width, device="meta")
    state = (x.unflatten(0, (shapes.clips, -1)), torch.zeros(shapes.clips, device="meta"))
    index = torch.zeros(shapes.clips, dtype=torch.long, device="meta")
    x_t = state if discriminator.conditional else None
    return _measure_saved(
        lambda: discriminator([state] * states, x_t, text, index), (discriminator,), shapes
    )


def _inputs(unet: UNet2DConditionModel, batch: int, shapes: Shapes) -> tuple[Tensor, Tensor]:
    size = (batch, unet.config["in_channels"], shapes.height, shapes.width)
    x = torch.empty(size, device="meta", dtype=unet.dtype)
    width = unet.config["cross_attention_dim"]
    return x, torch.empty(batch, shapes.tokens, width, device="meta", dtype=unet.dtype)


class _SavedTensors:
    """Counts the bytes that autograd keeps of a forward, each storage once and no weights."""

    def __init__(self, networks: tuple[nn.Module, ...]) -> None:
        self._alive = [p.untyped_storage() for n in networks for p in n.parameters()]
        self._seen = {s._cdata for s in self._alive}
        self.total = self.in_blocks = self.largest_block = self.inputs = 0
        self._entered: dict[nn.Module, int] = {}

    def __call__(self, tensor: Tensor) -> Tensor:
        self.total += self._new(tensor)
        return tensor

    def enter(self, block: nn.Module, inputs: tuple) -> None:
        self.inputs += sum(self._new(x) for x in inputs if isinstance(x, Tensor))
        self._entered[block] = self.total

    def leave(self, block: nn.Module, _inputs: tuple, _output: object) -> None:
        size = self.total - self._entered.pop(block)
        self.in_blocks += size
        self.largest_block = max(self.largest_block, size)

    def _new(self, tensor: Tensor) -> int:
        storage = tensor.untyped_storage()
        if storage._cdata in self._seen:
            return 0
        self._seen.add(storage._cdata)
        self._alive.append(storage)  # or another one might get its address
        return storage.nbytes()


def _measure_saved(forward: Callable, networks: tuple[nn.Module, ...], shapes: Shapes) -> int:
    """Return the bytes that a forward keeps: if checkpointed, inputs of blocks and one block.

    The networks are in float32 here, as they are trained; under autocast most of what is kept has
    the narrower dtype.
    """
    saved, hooks = _SavedTensors(networks), []
    for network in networks:
        for block in network.modules():
            if isinstance(block, gradient_checkpointing.RECOMPUTED):
                hooks.append(block.register_forward_pre_hook(saved.enter))
                hooks.append(block.register_forward_hook(saved.leave, prepend=True))
    with torch.autograd.graph.saved_tensors_hooks(saved, lambda tensor: tensor):
        forward()
    for hook in hooks:
        hook.remove()
    total = saved.total
    if shapes.checkpointing:
        total += saved.inputs - saved.in_blocks + saved.largest_block
    return int(total * shapes.dtype.itemsize / 4)
