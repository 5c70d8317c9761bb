"""Options that several commands have, and the values that they take."""

import re
from enum import Enum
from pathlib import Path
from typing import Annotated

import typer

from ..sampling.settings import SAMPLERS

_SIZE = re.compile(r"(\d+)x(\d+)")


Sampler = Enum("Sampler", [(name, name) for name in SAMPLERS], type=str)


class Dtype(str, Enum):
    auto = "auto"
    float32 = "float32"
    float16 = "float16"
    bfloat16 = "bfloat16"


class SaveDtype(str, Enum):
    float16 = "float16"
    bfloat16 = "bfloat16"
    float32 = "float32"


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
Device = Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, mps.")]
MyDevice = Annotated[
    str, typer.Option(help="auto, cpu, cuda; under torchrun each process takes its own GPU.")
]
ComputeDtype = Annotated[Dtype, typer.Option(help="auto: float16 on a GPU, float32 on the CPU.")]
Tokenizer = Annotated[
    Path | None, typer.Option(help="Folder with vocab.json and merges.txt, for use offline.")
]
Configs = Annotated[
    Path | None, typer.Option(help="Diffusers folder of configs, for an unusual checkpoint.")
]
Prediction = Annotated[
    PredictionType, typer.Option(help="What the base predicts; auto: as its config says.")
]
Frames = Annotated[int, typer.Option(help="Frames of a clip.")]
FlipClips = Annotated[bool, typer.Option(help="Store the mirrored clips' latents, too.")]
AtOnce = Annotated[int, typer.Option(help="Clips that are sampled together.")]
Teacher = Annotated[str, typer.Option(metavar="FILE|miniature", help="Undistilled motion module.")]


def parse_size(text: str) -> tuple[int, int]:
    """Return width and height of WxH; ValueError for anything else."""
    match = _SIZE.fullmatch(text)
    if match is None:
        raise ValueError(f"--size {text} is no size; write it as 512x512.")
    return int(match[1]), int(match[2])
