"""The discriminator: is a state of a clip where the teacher lands, or where the student does?

AnimateDiff-Lightning section 3.3: SD1.5's UNet encoder and mid block with AnimateDiff v2, all
trained, run on each state by itself; features joined on channels; a head of 3D convolutions. The
flow's base model is told by a learnable embedding that is added to the time embedding.
"""

import itertools
import math
from collections.abc import Sequence
from dataclasses import replace

import torch
from diffusers.models import UNet2DConditionModel
from einops import rearrange, repeat
from torch import Tensor, nn

from ...motion_module.inject import MotionRun, inject
from ...motion_module.module import MotionModule

State = tuple[Tensor, Tensor]  # clips (clips, frames, c, h, w) and their timesteps (clips,)
_CHANNELS_A_GROUP = 16  # fewer, and a head's last 1 x 1 x 1 map would be normalised to nothing


class Encoder(nn.Module):
    """The encoder and mid block of an image UNet, and the motion module's layers for them.

    Both are copied in float32; what they are copied from stays untouched. The base models'
    embedding starts as torch's own, N(0, 1) [open]: at zero and the paper's learning rate it would
    never reach the size of a time embedding.
    """

    def __init__(
        self,
        unet: UNet2DConditionModel,
        motion_module: MotionModule,
        num_bases: int,
        generator: torch.Generator | None,
    ) -> None:
        super().__init__()
        with torch.device("meta"):  # built anew: a deep copy would take foreign hooks along
            image_unet = UNet2DConditionModel.from_config(unet.config)
        self.time_proj, self.time_embedding = image_unet.time_proj, image_unet.time_embedding
        self.conv_in, self.down_blocks = image_unet.conv_in, image_unet.down_blocks
        self.mid_block = image_unet.mid_block
        _copy(unet, self)
        self.base_embedding = nn.Embedding(num_bases, self.time_embedding.linear_2.out_features)
        nn.init.normal_(self.base_embedding.weight, generator=generator)
        self.up_blocks = nn.ModuleList()  # none: the sites of a motion module are told by these
        self.motion_module = MotionModule(replace(motion_module.config, up_blocks=()))
        _copy(motion_module, self.motion_module)
        self.to(unet.device)
        self._run = MotionRun()
        inject(self, self.motion_module, run=self._run)

    @property
    def channels(self) -> int:
        return self.mid_block.resnets[-1].out_channels

    def forward(self, state: State, text: Tensor, base_index: Tensor) -> Tensor:
        """Return features (clips, channels, frames, h, w) of the mid block.

        text (clips, tokens, width), base_index (clips,). A clean clip (-1) is shown at timestep 0.
        """
        x, t = state
        self._run.num_frames = frames = x.shape[1]
        time = self.time_embedding(self.time_proj(t.clamp(min=0)))
        time = repeat(time + self.base_embedding(base_index), "b c -> (b f) c", f=frames)
        text = repeat(text.float(), "b tokens c -> (b f) tokens c", f=frames)
        with _in_float32(x):  # what D must tell apart is less than bfloat16 can hold
            hidden = self.conv_in(rearrange(x, "b f c h w -> (b f) c h w").float())
        for block in self.down_blocks:
            crossed = getattr(block, "has_cross_attention", False)
            hidden, _ = block(hidden, time, **({"encoder_hidden_states": text} if crossed else {}))
        hidden = self.mid_block(hidden, time, encoder_hidden_states=text)
        return rearrange(hidden, "(b f) c h w -> b c f h w", f=frames)


class Head(nn.Module):
    """Blocks of {3D convolution, kernel 4, stride 2; GroupNorm; SiLU} and one value a clip.

    Section 3.3 goes down to one value; how the rest is reduced is open: a 1 x 1 x 1 convolution
    and the mean, so that any frame count and aspect ratio will do.
    """

    def __init__(
        self,
        in_channels: int,
        channels: int,
        num_blocks: int,
        generator: torch.Generator | None,
    ) -> None:
        super().__init__()
        widths = [in_channels] + [channels] * num_blocks
        groups = math.gcd(max(1, channels // _CHANNELS_A_GROUP), channels)
        self.blocks = nn.ModuleList(
            nn.Sequential(
                nn.Conv3d(before, after, 4, stride=2, padding=1),
                nn.GroupNorm(groups, after),
                nn.SiLU(),
            )
            for before, after in itertools.pairwise(widths)
        )
        self.out = nn.Conv3d(channels, 1, 1)
        for layer in self.modules():
            if isinstance(layer, nn.Conv3d):
                nn.init.kaiming_normal_(layer.weight, nonlinearity="relu", generator=generator)
                if layer.bias is not None:
                    nn.init.zeros_(layer.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits (clips,) of features (clips, c, frames, h, w) of any size.

        Always in float32: it costs little, and bfloat16 gradients of small 3D convolutions are NaN
        on some CPUs (torch 2.13).
        """
        with _in_float32(x):
            x = x.float()
            for block in self.blocks:
                x = block(_at_least_two(x))
            return self.out(x).mean((1, 2, 3, 4))


class Discriminator(nn.Module):
    """D(x_t, x_{t-ns}, t, t-ns, c, i), or, not conditional, D'(x_{t-ns}, t-ns, c, i).

    D' is given D's encoder [open in the paper] and a head of its own.
    """

    def __init__(
        self,
        encoder: Encoder,
        *,
        conditional: bool,
        head_channels: int,
        head_blocks: int,
        generator: torch.Generator | None,
    ) -> None:
        super().__init__()
        self.encoder, self.conditional = encoder, conditional
        joined = encoder.channels * (2 if conditional else 1)
        self.head = Head(joined, head_channels, head_blocks, generator).to(
            encoder.base_embedding.weight.device
        )

    def fresh_weights(self) -> list[nn.Parameter]:
        """Return what no trained model gave: the head and the base models' embedding."""
        return [*self.head.parameters(), *self.encoder.base_embedding.parameters()]

    def forward(
        self, states: Sequence[State], x_t: State | None, text: Tensor, base_index: Tensor
    ) -> list[Tensor]:
        """Return a logit (clips,) for each state: how surely it is the teacher's.

        x_t: where the states come from, None for D'. Its features are computed once for all.
        """
        before = [] if x_t is None else [self.encoder(x_t, text, base_index)]
        return [
            self.head(torch.cat([*before, self.encoder(state, text, base_index)], dim=1))
            for state in states
        ]


def _in_float32(x: Tensor) -> torch.autocast:
    """Leave autocast where a tensor is; plan computes shapes alone, on meta."""
    return torch.autocast("cpu" if x.is_meta else x.device.type, enabled=False)


def _at_least_two(x: Tensor) -> Tensor:
    """Repeat what is single along frames, height or width, for a kernel of 4 with stride 2."""
    return x.repeat(1, 1, *(2 if size == 1 else 1 for size in x.shape[2:]))


def _copy(source: nn.Module, target: nn.Module) -> None:
    """Give a module copies in float32 of those weights of another that have its names."""
    source_weights = source.state_dict()
    weights = {
        k: source_weights[k].detach().to(torch.float32, copy=True) for k in target.state_dict()
    }
    target.load_state_dict(weights, assign=True)
    target.requires_grad_(True)
