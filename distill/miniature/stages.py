"""The miniature's training stages: what is drawn at each step, and the loss on it.

In the order of the real world: f_0 on single frames, the other bases fine-tuned from it, and the
motion module on clips of f_0's style with f_0 frozen (AnimateDiff, arXiv 2307.04725, section 4).
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from transformers import CLIPTokenizer

from ...motion_module.inject import Injection, inject
from ...motion_module.module import MotionModule
from ..engine import distributed
from ..engine.denoising_loss import denoising_loss, draw_timesteps
from ..engine.loop import LossOfStep
from ..models.base_model import BaseModel
from ..models.latents import encode_images
from . import render, split, styles, world
from .recipe import Stage


class Words:
    """Captions to token ids, each caption tokenized once."""

    def __init__(self, tokenizer: CLIPTokenizer, length: int) -> None:
        self._tokenizer, self._length = tokenizer, length
        self._known: dict[str, Tensor] = {}

    def __call__(self, captions: Sequence[str]) -> Tensor:
        """Return token ids, (captions, length)."""
        for caption in captions:
            if caption not in self._known:
                self._known[caption] = self._tokenizer(
                    caption,
                    padding="max_length",
                    max_length=self._length,
                    truncation=True,
                    return_tensors="pt",
                ).input_ids[0]
        return torch.stack([self._known[c] for c in captions])


def base_loss(base: BaseModel, style: str, stage: Stage, seed: int) -> LossOfStep:
    """Return the loss of training a base model on single frames of a style.

    Gradients reach the text encoder too, where its parameters ask for them.
    """
    words = Words(base.tokenizer, base.max_tokens)

    def loss(step: int) -> Tensor:
        generator = step_generator(seed, step)
        scenes = split.draw_scenes(stage.batch, generator)
        moment = torch.randint(world.FRAMES, (stage.batch,), generator=generator)
        images = render.render(scenes, styles.STYLES[style], generator, moment=moment)[:, 0]
        captions = drop_captions(scenes.captions(), stage.no_caption, generator)
        x0 = encode_images(base, images, at_once=len(images))
        eps = torch.randn(x0.shape, generator=generator)
        t = draw_timesteps(stage.batch, generator, stage.high_noise)
        mine = slice(distributed.rank(), None, distributed.world_size())
        text = base.text_encoder(words(captions[mine])).last_hidden_state
        return denoising_loss(base.unet, x0[mine], text, t[mine], eps[mine], base.prediction_type)

    return loss


def motion_stage_loss(
    base: BaseModel, module: MotionModule, style: str, stage: Stage, seed: int
) -> tuple[LossOfStep, Injection]:
    """Return the loss of training a motion module on clips of a style, in a frozen base model.

    With it comes the injection, to be ejected when the training is over.
    """
    words = Words(base.tokenizer, base.max_tokens)
    injection = inject(base.unet, module, num_frames=world.FRAMES)

    def loss(step: int) -> Tensor:
        generator = step_generator(seed, step)
        scenes = split.draw_scenes(stage.batch, generator)
        clips = render.render(scenes, styles.STYLES[style], generator)
        captions = drop_captions(scenes.captions(), stage.no_caption, generator)
        images = clips.flatten(0, 1)
        x0 = encode_images(base, images, at_once=len(images)).unflatten(0, clips.shape[:2])
        eps = torch.randn(x0.shape, generator=generator)
        t = draw_timesteps(stage.batch, generator, stage.high_noise)
        mine = slice(distributed.rank(), None, distributed.world_size())
        with torch.no_grad():
            text = base.text_encoder(words(captions[mine])).last_hidden_state
        return denoising_loss(
            base.unet,
            x0[mine].flatten(0, 1),
            text.repeat_interleave(world.FRAMES, 0),
            t[mine].repeat_interleave(world.FRAMES),
            eps[mine].flatten(0, 1),
            base.prediction_type,
        )

    return loss, injection


def drop_captions(captions: list[str], share: float, generator: torch.Generator) -> list[str]:
    """Return the captions with about `share` of them emptied."""
    kept = torch.rand(len(captions), generator=generator) >= share
    return [c if keep else "" for c, keep in zip(captions, kept.tolist(), strict=True)]


def step_generator(seed: int, step: int) -> torch.Generator:
    """Return the random numbers of a step: the same on every process and after every restart."""
    return torch.Generator().manual_seed(seed * 1_000_003 + step)


def trainable(**modules: nn.Module) -> dict[str, nn.Parameter]:
    """Make parts trainable and return their parameters by name."""
    weights: dict[str, nn.Parameter] = {}
    for name, module in modules.items():
        module.requires_grad_(True)
        weights |= {f"{name}.{k}": p for k, p in module.named_parameters()}
    return weights
