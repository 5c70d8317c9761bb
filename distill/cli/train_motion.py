"""The options of `animatediff-lightning train-motion`."""

from enum import Enum
from pathlib import Path
from typing import Annotated

import typer

from ..train_motion.request import MotionRequest
from .options import Configs, Device, Frames, Prediction, PredictionType, SaveDtype, Tokenizer


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
        Path | None, typer.Option(help="File to start from; without it, fresh weights.")
    ] = MotionRequest.motion_module,
    lora: Annotated[
        int | None,
        typer.Option(metavar="RANK", help="Train a motion LoRA for the --motion-module instead."),
    ] = MotionRequest.lora,
    frames: Frames = MotionRequest.frames,
    fps: Annotated[
        float, typer.Option(help="Frames a second that videos are brought to.")
    ] = MotionRequest.fps,
    width: Annotated[
        int | None, typer.Option(help="Pixels; default: the base model's own, SD1.5 512.")
    ] = MotionRequest.width,
    height: Annotated[
        int | None, typer.Option(help="Pixels; default: as --width.")
    ] = MotionRequest.height,
    iterations: Annotated[int, typer.Option(help="Optimiser steps.")] = MotionRequest.iterations,
    batch: Annotated[
        int, typer.Option(help="Clips a step, on all processes together.")
    ] = MotionRequest.batch,
    accumulate: Annotated[
        int, typer.Option(help="Parts that a process takes its clips in, to save memory.")
    ] = MotionRequest.accumulate,
    learning_rate: Annotated[
        float, typer.Option(help="Highest; it rises, then falls as a cosine.")
    ] = MotionRequest.learning_rate,
    warmup: Annotated[
        int, typer.Option(help="Steps in which the learning rate rises.")
    ] = MotionRequest.warmup,
    no_caption: Annotated[
        float, typer.Option(help="Share of clips trained without caption, for cfg.")
    ] = MotionRequest.no_caption,
    high_noise: Annotated[
        float, typer.Option(help="1: all noise levels alike; above: noisy ones more often.")
    ] = MotionRequest.high_noise,
    ema: Annotated[
        float, typer.Option(help="Decay of the averaged weights; 0: none.")
    ] = MotionRequest.ema,
    clip: Annotated[float, typer.Option(help="Largest norm of the gradient.")] = MotionRequest.clip,
    seed: Annotated[int, typer.Option(help="Of everything that is drawn.")] = MotionRequest.seed,
    save_every: Annotated[
        float, typer.Option(help="Seconds between checkpoints.")
    ] = MotionRequest.save_every,
    work: Annotated[
        Path | None, typer.Option(help="Folder of the checkpoint; default: OUT's name.training")
    ] = MotionRequest.work,
    workers: Annotated[int, typer.Option(help="Threads that read videos.")] = MotionRequest.workers,
    sample: Annotated[
        str | None, typer.Option(help="Draw this in the end, as a contact sheet beside OUT.")
    ] = MotionRequest.sample,
    device: Device = MotionRequest.device,
    dtype: Annotated[
        Arithmetic, typer.Option(help="Autocast of float32 weights; auto: bfloat16 on a GPU.")
    ] = Arithmetic[MotionRequest.dtype],
    save_dtype: Annotated[SaveDtype, typer.Option(help="Of the written file.")] = SaveDtype[
        MotionRequest.save_dtype
    ],
    tokenizer: Tokenizer = MotionRequest.tokenizer,
    config: Configs = MotionRequest.config,
    prediction_type: Prediction = PredictionType.auto,
) -> None:
    """Train a motion module, or a motion LoRA of it, on videos with captions.

    The same command goes on where it was stopped. Under torchrun all processes work together.
    """
    request = MotionRequest(
        data=data,
        base=base,
        out=out,
        motion_module=motion_module,
        lora=lora,
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

    from ..train_motion.run import run

    run(request)
