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
from ..models.latents import encode_images, to_images
from .clips import Clip, Videos, noise_generator
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
            chunk = slice(first, first + size)
            generators = [noise_generator(request.seed, step, i) for i in share[chunk]]
            with autocast:
                loss_of_chunk = _loss_of_clips(training, clips[chunk], generators)
            yield loss_of_chunk / request.accumulate

    return loss


def _loss_of_clips(
    training: Training, clips: list[Clip], generators: list[torch.Generator]
) -> Tensor:
    """Return the mean loss of clips, each with its own timestep and noise."""
    base, frames = training.base, training.shape.frames
    latents, noises, times = [], [], []
    for clip, generator in zip(clips, generators, strict=True):
        x0 = encode_clip(base, clip, generator)
        latents.append(x0)
        noises.append(torch.randn(x0.shape, generator=generator).to(x0.device))
        times.append(draw_timesteps(1, generator, training.request.high_noise))
    t = torch.cat(times).to(base.device).repeat_interleave(frames)
    text = encode_prompts(base, [clip.caption for clip in clips]).repeat_interleave(frames, 0)
    return denoising_loss(
        base.unet, torch.cat(latents), text, t, torch.cat(noises), base.prediction_type
    )


def encode_clip(base: BaseModel, clip: Clip, generator: torch.Generator) -> Tensor:
    """Return a clip's latents (frames, channels, h, w), float32, drawn by the generator."""
    images = to_images(clip.pixels)
    with torch.autocast(base.device.type, enabled=False):  # VAEs lose detail in half precision
        return encode_images(base, images, generator, at_once=_ENCODED_AT_ONCE)


def _autocast(dtype: str, device: torch.device) -> torch.autocast:
    """Return the arithmetic: float32 weights always, bfloat16 where asked for or a GPU likes it."""
    suits = device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
    enabled = dtype == "bfloat16" or (dtype == "auto" and suits)
    return torch.autocast(device.type, torch.bfloat16, enabled=enabled)
