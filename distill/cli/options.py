"""Options that several commands have, and the values that they take."""

import re
from enum import Enum
from pathlib import Path
from typing import Annotated

import typer

_SIZE = re.compile(r"(\d+)x(\d+)")


class Sampler(str, Enum):
    euler = "euler"
    dpmpp = "dpmpp"
    lcm = "lcm"


class Dtype(str, Enum):
    auto = "auto"
    float32 = "float32"
    float16 = "float16"
    bfloat16 = "bfloat16"


class SaveDtype(str, Enum):
    float16 = "float16"
    bfloat16 = "bfloat16"
    float32 = "float32"


class HeldOut(str, Enum):
    """A part of the miniature's captions that nothing is trained on (miniature/split.py)."""

    validation = "validation"
    test = "test"


class PredictionType(str, Enum):
    auto = "auto"
    epsilon = "epsilon"
    v_prediction = "v_prediction"

    @property
    def or_none(self) -> str | None:
        """The prediction type, None for auto."""
        return None if self is PredictionType.auto else self.value


BASE_METAVAR = "FILE|DIR|miniature:STYLE"
Bases = Annotated[
    list[str],
    typer.Option(metavar=BASE_METAVAR, help="SD1.5 base model; repeat for several."),
]
Device = Annotated[str, typer.Option(help="Device: auto, cpu, cuda, cuda:1 or mps.")]
MyDevice = Annotated[
    str,
    typer.Option(help="Device: auto, cpu or cuda. Under torchrun, each process uses its own GPU."),
]
ComputeDtype = Annotated[
    Dtype, typer.Option(help="Number format. auto: float16 on a GPU, float32 on the CPU.")
]
Tokenizer = Annotated[
    Path | None, typer.Option(help="Folder with vocab.json and merges.txt, to work offline.")
]
Configs = Annotated[
    Path | None, typer.Option(help="Diffusers folder of configs, for an unusual checkpoint.")
]
Prediction = Annotated[
    PredictionType,
    typer.Option(help="What the base model predicts. auto: read it from the base model's config."),
]
Frames = Annotated[int, typer.Option(help="Number of frames in each clip.")]
Width = Annotated[
    int | None,
    typer.Option(help="Width in pixels. Default: the base model's own size (512 for SD1.5)."),
]
Height = Annotated[int | None, typer.Option(help="Height in pixels. Default: the same as --width.")]
Size = Annotated[
    str | None,
    typer.Option(
        metavar="WxH", help="Width and height in pixels. Default: the base model's own size."
    ),
]
ShardsFolder = Annotated[
    Path, typer.Option(help="Folder of the shards; run again with the same folder to resume.")
]
FlipClips = Annotated[bool, typer.Option(help="Also store the latents of the mirrored clips.")]
AtOnce = Annotated[int, typer.Option(help="Number of clips that are sampled together.")]
Teacher = Annotated[str, typer.Option(metavar="FILE|miniature", help="Undistilled motion module.")]


def parse_size(text: str) -> tuple[int, int]:
    """Return width and height of WxH; ValueError for anything else."""
    match = _SIZE.fullmatch(text)
    if match is None:
        raise ValueError(f"--size {text} is no size; write it as 512x512.")
    return int(match[1]), int(match[2])
