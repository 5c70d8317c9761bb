"""Gradient checkpointing of base models and motion modules: activations computed twice, kept never.

Diffusers' own checkpoints the ResNets alone; here the spatial transformers and the motion modules
are too. Motion hooks run outside of what is computed again, so that a student and a teacher may
take turns in one base model.
"""

import contextlib
import functools
from collections.abc import Callable, Iterator

import torch
from diffusers.models.resnet import ResnetBlock2D
from diffusers.models.transformers.transformer_2d import Transformer2DModel
from torch import nn
from torch.utils.checkpoint import checkpoint

from ...motion_module.temporal import TemporalTransformer

RECOMPUTED = (ResnetBlock2D, Transformer2DModel, TemporalTransformer)


@contextlib.contextmanager
def checkpointed(*modules: nn.Module) -> Iterator[None]:
    """Keep only the inputs of the modules' blocks for the backward pass, for a while."""
    blocks = {id(b): b for m in modules for b in m.modules() if isinstance(b, RECOMPUTED)}
    for block in blocks.values():
        vars(block)["forward"] = _recomputed(block.forward)  # hides the class's own
    try:
        yield
    finally:
        for block in blocks.values():
            del vars(block)["forward"]


def _recomputed(forward: Callable) -> Callable:
    def run(*args: object, **options: object):
        if not torch.is_grad_enabled():
            return forward(*args, **options)
        # nothing in these blocks draws random numbers
        block = functools.partial(forward, **options)
        return checkpoint(block, *args, use_reentrant=False, preserve_rng_state=False)

    return run
