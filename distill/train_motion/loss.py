"""The loss of training a motion module or a motion LoRA: what each step sees, and how well.

AnimateDiff (arXiv 2307.04725) equation 3; the base model is frozen and encodes clips and captions
by itself, on the fly.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ...motion_module.module import MotionModule
from ...video.reader import ClipShape
from ..engine import distributed
from ..engine.denoising_loss import denoising_loss, draw_timesteps
from ..engine.loop import LossOfStep
from ..engine.read_ahead import ReadAhead
from ..models.base_model import BaseModel, encode_prompts
from . import clips as clip_source
from .clips import Clip, Videos
from .lora import AttachedLora
from .request import MotionRequest

_ENCODED_AT_ONCE = 8  # frames: bounds the VAE's memory


@dataclass
class Training:
    """Everything that is ready before the first step."""

    request: MotionRequest
    base: BaseModel
    module: MotionModule
    videos: Videos
    shape: ClipShape
    lora: AttachedLora | None
    weights: dict[str, nn.Parameter]


def motion_loss(training: Training, clips_of_step: ReadAhead[Clip]) -> LossOfStep:
    """Return the loss of a step on this process's share, in parts that add up to it.

    The motion module must be injected into the base model's UNet.
    """
    request = training.request
    share = request.share(distributed.rank(), distributed.world_size())
    size = len(share) // request.accumulate
    autocast = _autocast(request.dtype, training.base.device)

    def loss(step: int) -> Iterator[Tensor]:
        clips = clips_of_step(step)
        for first in range(0, len(share), size):
            part = slice(first, first + size)
            generators = [clip_source.noise_generator(request.seed, step, i) for i in share[part]]
            with autocast:
                found = _loss_of_clips(training, clips[part], generators)
            yield found / request.accumulate

    return loss


def _loss_of_clips(
    training: Training, clips: list[Clip], generators: list[torch.Generator]
) -> Tensor:
    """Return the mean loss of clips, each with its own timestep and noise."""
    base, frames = training.base, training.shape.frames
    latents, noises, times = [], [], []
    for clip, generator in zip(clips, generators, strict=True):
        x0 = encode_frames(base, clip, generator)
        latents.append(x0)
        noises.append(torch.randn(x0.shape, generator=generator).to(x0.device))
        times.append(draw_timesteps(1, generator, training.request.high_noise))
    t = torch.cat(times).to(base.device).repeat_interleave(frames)
    text = encode_prompts(base, [clip.caption for clip in clips]).repeat_interleave(frames, 0)
    return denoising_loss(
        base.unet, torch.cat(latents), text, t, torch.cat(noises), base.prediction_type
    )


@torch.no_grad()
def encode_frames(base: BaseModel, clip: Clip, generator: torch.Generator) -> Tensor:
    """Return a clip's latents (frames, channels, h, w), float32, scaled as the base wants them."""
    images = torch.from_numpy(clip.pixels).permute(0, 3, 1, 2).float() / 127.5 - 1
    latents = []
    with torch.autocast(base.device.type, enabled=False):  # VAEs lose detail in half precision
        for part in images.split(_ENCODED_AT_ONCE):
            found = base.vae.encode(part.to(base.device)).latent_dist
            z = found.mode()
            if hasattr(found, "std"):  # the miniature's is exact
                z = z + found.std * torch.randn(z.shape, generator=generator).to(z)
            latents.append(z)
    return base.scaled(torch.cat(latents))


def _autocast(dtype: str, device: torch.device) -> torch.autocast:
    """Return the arithmetic: float32 weights always, bfloat16 where asked for or a GPU likes it."""
    suits = device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
    wanted = dtype == "bfloat16" or (dtype == "auto" and suits)
    return torch.autocast(device.type, torch.bfloat16, enabled=wanted)
