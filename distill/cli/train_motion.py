"""The options of `animatediff-lightning train-motion`."""

from enum import Enum
from pathlib import Path
from typing import Annotated

import typer

from ..train_motion.request import MotionRequest
from .options import (
    Configs,
    Device,
    Frames,
    Height,
    Prediction,
    PredictionType,
    SaveDtype,
    Tokenizer,
    Width,
)


class Arithmetic(str, Enum):
    auto = "auto"
    float32 = "float32"
    bfloat16 = "bfloat16"


def train_motion(
    data: Annotated[
        str,
        typer.Option(
            metavar="DIR|SHARDS",
            help="Folder of videos, each with a .txt of the same name or all in a captions.csv; "
            "or webdataset shards, such as 'clips-{0000..0003}.tar'.",
        ),
    ],
    base: Annotated[Path, typer.Option(help="SD1.5 checkpoint file, or a diffusers folder.")],
    out: Annotated[Path, typer.Option(help="The .safetensors file to write.")],
    motion_module: Annotated[
        Path | None, typer.Option(help="Motion module to start from. Default: fresh weights.")
    ] = MotionRequest.motion_module,
    lora: Annotated[
        int | None,
        typer.Option(
            metavar="RANK",
            help="Train a motion LoRA of this rank for --motion-module, in place of the "
            "whole module.",
        ),
    ] = MotionRequest.lora,
    lora_alpha: Annotated[
        float | None,
        typer.Option(
            metavar="ALPHA",
            help="Scale of the motion LoRA, which is multiplied by alpha / rank and written with "
            "it. Default: the rank, so that nothing is scaled.",
        ),
    ] = MotionRequest.lora_alpha,
    frames: Frames = MotionRequest.frames,
    fps: Annotated[
        float, typer.Option(help="Frames per second that videos are resampled to.")
    ] = MotionRequest.fps,
    width: Width = MotionRequest.width,
    height: Height = MotionRequest.height,
    iterations: Annotated[int, typer.Option(help="Optimiser steps.")] = MotionRequest.iterations,
    batch: Annotated[
        int, typer.Option(help="Clips in each step, on all processes together.")
    ] = MotionRequest.batch,
    accumulate: Annotated[
        int,
        typer.Option(
            help="Number of parts into which a process splits its clips; more parts need "
            "less memory."
        ),
    ] = MotionRequest.accumulate,
    learning_rate: Annotated[
        float, typer.Option(help="Peak learning rate, after the warm-up; a cosine decay follows.")
    ] = MotionRequest.learning_rate,
    warmup: Annotated[int, typer.Option(help="Steps of the warm-up.")] = MotionRequest.warmup,
    no_caption: Annotated[
        float,
        typer.Option(
            help="Share of clips that are trained without their caption, so that cfg works."
        ),
    ] = MotionRequest.no_caption,
    high_noise: Annotated[
        float,
        typer.Option(
            help="1 draws all timesteps equally often; higher values draw noisy ones more often."
        ),
    ] = MotionRequest.high_noise,
    ema: Annotated[
        float, typer.Option(help="Decay of the averaged weights; 0 switches averaging off.")
    ] = MotionRequest.ema,
    clip: Annotated[
        float, typer.Option(help="Gradients are clipped to this norm.")
    ] = MotionRequest.clip,
    seed: Annotated[int, typer.Option(help="Seed of all random numbers.")] = MotionRequest.seed,
    save_every: Annotated[
        float, typer.Option(help="Seconds between checkpoints.")
    ] = MotionRequest.save_every,
    work: Annotated[
        Path | None, typer.Option(help="Folder of the checkpoint; default: OUT's name.training")
    ] = MotionRequest.work,
    workers: Annotated[
        int, typer.Option(help="Number of threads that read videos.")
    ] = MotionRequest.workers,
    sample: Annotated[
        str | None,
        typer.Option(
            help="Prompt of a contact sheet that is written beside OUT when the training is done."
        ),
    ] = MotionRequest.sample,
    device: Device = MotionRequest.device,
    dtype: Annotated[
        Arithmetic,
        typer.Option(
            help="Number format of autocast; the weights stay float32. auto: bfloat16 on "
            "a GPU, float32 on the CPU."
        ),
    ] = Arithmetic[MotionRequest.dtype],
    save_dtype: Annotated[
        SaveDtype, typer.Option(help="Number format of the written file.")
    ] = SaveDtype[MotionRequest.save_dtype],
    tokenizer: Tokenizer = MotionRequest.tokenizer,
    config: Configs = MotionRequest.config,
    prediction_type: Prediction = PredictionType.auto,
) -> None:
    """Train a motion module, or a motion LoRA of it, on videos with captions.

    You may stop it at any time; the same command resumes it. Under torchrun, all processes train
    together.
    """
    request = MotionRequest(
        data=data,
        base=base,
        out=out,
        motion_module=motion_module,
        lora=lora,
        lora_alpha=lora_alpha,
        frames=frames,
        fps=fps,
        width=width,
        height=width if height is None else height,
        iterations=iterations,
        batch=batch,
        accumulate=accumulate,
        learning_rate=learning_rate,
        warmup=warmup,
        no_caption=no_caption,
        high_noise=high_noise,
        ema=ema,
        clip=clip,
        seed=seed,
        save_every=save_every,
        work=work,
        workers=workers,
        sample=sample,
        device=device,
        dtype=dtype.value,
        save_dtype=save_dtype.value,
        tokenizer=tokenizer,
        config=config,
        prediction_type=prediction_type.or_none,
    )

    from ..train_motion.run import train_motion

    train_motion(request)
