"""The command `generate`: a clip for every prompt."""

from pathlib import Path
from typing import Annotated

import typer

from ..miniature.names import is_miniature
from ..sampling.model_choice import ModelChoice
from ..sampling.request import LORA_STRENGTH, ClipRequest, parse_motion_lora, read_prompts
from ..sampling.settings import SamplingSettings
from .options import (
    BASE_METAVAR,
    ComputeDtype,
    Configs,
    Device,
    Dtype,
    Frames,
    Height,
    Prediction,
    PredictionType,
    Sampler,
    Tokenizer,
    Width,
)


def generate(
    base: Annotated[
        str | None,
        typer.Option(
            metavar=BASE_METAVAR,
            help="SD1.5 checkpoint, diffusers folder, or a base model of the bundled miniature.",
        ),
    ] = ModelChoice.base,
    motion_module: Annotated[
        Path | None, typer.Option(help="Motion module file, in either released layout.")
    ] = ModelChoice.motion_module,
    motion_lora: Annotated[
        list[str] | None,
        typer.Option(
            metavar="FILE[:STRENGTH]",
            help=f"Motion LoRA and its strength (default {LORA_STRENGTH}); repeat for several.",
        ),
    ] = None,
    prompt: Annotated[
        list[str] | None,
        typer.Option(
            help="Prompt in ComfyUI's syntax, such as '(a red fish:1.4)'; repeat for several clips."
        ),
    ] = None,
    prompts: Annotated[
        Path | None, typer.Option(help="Text file with one prompt in each line.")
    ] = None,
    negative_prompt: Annotated[
        str,
        typer.Option(help="Negative prompt, in the same syntax; it has no effect at --cfg 1."),
    ] = ClipRequest.negative_prompt,
    embeddings: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER",
            help="Folder of textual inversions; embedding:NAME in a prompt reads one of them.",
        ),
    ] = ClipRequest.embeddings,
    steps: Annotated[
        int | None,
        typer.Option(
            help="Sampling steps. Default: the number that the motion module was distilled for, or "
            f"{SamplingSettings.steps} if it is unknown."
        ),
    ] = ClipRequest.steps,
    seed: Annotated[int, typer.Option(help="Seed, the same for every prompt.")] = ClipRequest.seed,
    frames: Frames = ClipRequest.frames,
    width: Width = ClipRequest.width,
    height: Height = ClipRequest.height,
    cfg: Annotated[
        float | None,
        typer.Option(
            help="Guidance scale: 1 for distilled motion modules, 7.5 for others. "
            "Default: the value in the file, or 1."
        ),
    ] = ClipRequest.cfg,
    sampler: Annotated[
        Sampler,
        typer.Option(
            help="euler is for Lightning, dpmpp for undistilled motion modules, lcm for AnimateLCM."
        ),
    ] = Sampler[ClipRequest.sampler],
    motion_scale: Annotated[
        float, typer.Option(help="Strength of the attention between frames; 1 is as trained.")
    ] = ClipRequest.motion_scale,
    fps: Annotated[float, typer.Option(help="Frames per second.")] = ClipRequest.fps,
    context_length: Annotated[
        int | None,
        typer.Option(help="Frames in each window, for clips of more than 32 frames; 16 is best."),
    ] = ClipRequest.context_length,
    context_overlap: Annotated[
        int, typer.Option(help="Frames that neighbouring windows share.")
    ] = ClipRequest.context_overlap,
    device: Device = ModelChoice.device,
    dtype: ComputeDtype = Dtype[ModelChoice.dtype],
    out: Annotated[
        Path, typer.Option(help="File to write: .mp4, .gif or .webp, or .png for a contact sheet.")
    ] = ClipRequest.out,
    tokenizer: Tokenizer = ModelChoice.tokenizer,
    config: Configs = ModelChoice.config,
    prediction_type: Prediction = PredictionType.auto,
) -> None:
    """Make a clip for every prompt, all with the same seed.

    Without --base and --motion-module, the clips come from the bundled miniature, a toy world of
    16 x 16 pixels.
    """
    if prompt and prompts:
        raise ValueError("give either --prompt or --prompts, not both.")
    request = ClipRequest(
        prompts=read_prompts(prompts) if prompts else tuple(prompt or ()),
        negative_prompt=negative_prompt,
        embeddings=embeddings,
        steps=steps,
        seed=seed,
        frames=frames,
        width=width,
        height=height,
        cfg=cfg,
        sampler=sampler.value,
        motion_scale=motion_scale,
        fps=fps,
        out=out,
        context_length=context_length,
        context_overlap=context_overlap,
    )
    miniature = is_miniature(base)
    if base is None and motion_module is not None:
        raise ValueError("--base is missing; give both, or neither to use the miniature.")
    if motion_module is None and not miniature:
        raise ValueError("--motion-module is missing; give both, or neither to use the miniature.")
    loras = tuple(parse_motion_lora(text) for text in motion_lora or ())
    for file, what in (
        (None if base is None or miniature else Path(base), "base model"),
        (motion_module, "motion module"),
        *((file, "motion LoRA") for file, _ in loras),
    ):
        if file is not None and not file.exists():
            raise ValueError(f"the {what} {file} was not found.")

    models = ModelChoice(
        base=base,
        motion_module=motion_module,
        motion_loras=loras,
        tokenizer=tokenizer,
        config=config,
        device=device,
        dtype=dtype.value,
        prediction_type=prediction_type.or_none,
    )

    from ..generate import make_clips

    make_clips(request, models)
