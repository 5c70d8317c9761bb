"""The full set of motion modules of one UNet, keyed word for word like the released files."""

from types import ModuleType
from typing import cast

import torch
from torch import nn

from .config import MotionModuleConfig
from .temporal import TemporalTransformer


class MotionModule(nn.Module):
    """All temporal transformers of a motion module (AnimateDiff v2: 21, 453,209,280 parameters).

    `layers` provides Linear, LayerNorm and GroupNorm: torch.nn, or a host's own set that knows how
    to place its weights. The class has no forward of its own: `inject` hooks each temporal
    transformer behind its UNet block, and `temporal_transformers()` gives them by address.
    """

    def __init__(self, config: MotionModuleConfig, layers: ModuleType = nn) -> None:
        super().__init__()
        self.config = config

        def block(channels: tuple[int, ...]) -> nn.Module:
            transformers = nn.ModuleList(
                _with_released_name(TemporalTransformer(c, config, layers)) for c in channels
            )
            return nn.ModuleDict({"motion_modules": transformers})

        self.down_blocks = nn.ModuleList(block(channels) for channels in config.down_blocks)
        if config.mid_block:
            self.mid_block = block(config.mid_block)
        self.up_blocks = nn.ModuleList(block(channels) for channels in config.up_blocks)

    def temporal_transformers(self) -> dict[str, TemporalTransformer]:
        """Return every temporal transformer by address, such as up_blocks.3.motion_modules.2."""
        return {
            address: cast(
                TemporalTransformer, self.get_submodule(f"{address}.temporal_transformer")
            )
            for address in self.config.addresses()
        }

    @torch.no_grad()
    def initialise(self, generator: torch.Generator | None = None) -> "MotionModule":
        """Draw fresh weights in place; proj_out is zero: training starts from the base model.

        AnimateDiff section 4.2. Returns the module itself.
        """
        for transformer in self.temporal_transformers().values():
            for name, parameter in transformer.named_parameters():
                if "norm" in name:
                    parameter.fill_(float(name.endswith("weight")))
                elif parameter.ndim == 2:
                    bound = parameter.shape[1] ** -0.5
                    parameter.uniform_(-bound, bound, generator=generator)
                else:
                    parameter.zero_()
            transformer.proj_out.weight.zero_()
        return self


def _with_released_name(transformer: TemporalTransformer) -> nn.Module:
    return nn.ModuleDict({"temporal_transformer": transformer})
