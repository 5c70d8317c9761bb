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
    Prediction,
    PredictionType,
    Sampler,
    Tokenizer,
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
            help=f"Motion LoRA, strength {LORA_STRENGTH} if not given; repeat.",
        ),
    ] = None,
    prompt: Annotated[
        list[str] | None, typer.Option(help="What to draw; repeat for several clips.")
    ] = None,
    prompts: Annotated[Path | None, typer.Option(help="Text file, one prompt a line.")] = None,
    negative_prompt: Annotated[str, typer.Option(help="Needs a --cfg other than 1.")] = (
        ClipRequest.negative_prompt
    ),
    steps: Annotated[
        int | None,
        typer.Option(
            help="Default: as many as the module was distilled for, or "
            f"{SamplingSettings.steps} if unknown."
        ),
    ] = ClipRequest.steps,
    seed: Annotated[int, typer.Option(help="The same for every prompt.")] = ClipRequest.seed,
    frames: Frames = ClipRequest.frames,
    width: Annotated[
        int | None, typer.Option(help="Pixels; default: the base model's own, SD1.5 512.")
    ] = ClipRequest.width,
    height: Annotated[
        int | None, typer.Option(help="Pixels; default: as --width.")
    ] = ClipRequest.height,
    cfg: Annotated[
        float | None,
        typer.Option(help="1 for distilled modules, 7.5 for others; default: the file's, or 1."),
    ] = ClipRequest.cfg,
    sampler: Annotated[
        Sampler, typer.Option(help="euler: Lightning; dpmpp: undistilled; lcm: AnimateLCM.")
    ] = Sampler[ClipRequest.sampler],
    motion_scale: Annotated[float, typer.Option(help="More or less motion; 1 as trained.")] = (
        ClipRequest.motion_scale
    ),
    fps: Annotated[float, typer.Option(help="Frames a second.")] = ClipRequest.fps,
    context_length: Annotated[
        int | None, typer.Option(help="Frames a window, for clips of more than 32: 16 is best.")
    ] = ClipRequest.context_length,
    context_overlap: Annotated[int, typer.Option(help="Frames that windows share.")] = (
        ClipRequest.context_overlap
    ),
    device: Device = ModelChoice.device,
    dtype: ComputeDtype = Dtype[ModelChoice.dtype],
    out: Annotated[
        Path, typer.Option(help=".mp4, .gif, .webp, or .png for a contact sheet.")
    ] = ClipRequest.out,
    tokenizer: Tokenizer = ModelChoice.tokenizer,
    config: Configs = ModelChoice.config,
    prediction_type: Prediction = PredictionType.auto,
) -> None:
    """Make a clip for every prompt, all from the same seed.

    Without --base and --motion-module the bundled miniature draws, a toy world of 16 x 16 pixels.
    """
    if prompt and prompts:
        raise ValueError("give either --prompt or --prompts, not both.")
    request = ClipRequest(
        prompts=read_prompts(prompts) if prompts else tuple(prompt or ()),
        negative_prompt=negative_prompt,
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
        (None if miniature else Path(base), "base model"),
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
