"""The program `animatediff-lightning`: its commands, and nothing heavier than their options.

Every mistake of a user ends in one sentence on stderr and exit code 2, Ctrl-C in exit code 130.
"""

import importlib.metadata
import os
import sys
from enum import Enum
from pathlib import Path
from typing import Annotated

import typer

from . import data, evaluate
from . import miniature as cli_miniature
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
from .train import export, plan, train
from .train_motion import train_motion

PROGRAM = "animatediff-lightning"
DISTRIBUTION = "comfyui-animatediff-lightning"
INTERRUPTED = 130  # 128 + SIGINT, as shells have it
app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)
# typer carries a click of its own, whose error class has no public name
_UsageError = next(c for c in typer.BadParameter.__mro__ if c.__name__ == "ClickException")
app.add_typer(data.data, name="data")
app.add_typer(cli_miniature.miniature, name="miniature")
app.add_typer(evaluate.evaluate, name="evaluate")


class KeyLayout(str, Enum):
    comfyui = "comfyui"
    diffusers = "diffusers"


def main(arguments: list[str] | None = None) -> int:
    """Run the program on `arguments` (default: the command line's) and return its exit code."""
    arguments = sys.argv[1:] if arguments is None else arguments
    # diffusers' and transformers' notes on optional packages would bury ours
    for library in ("DIFFUSERS", "TRANSFORMERS"):
        os.environ.setdefault(f"{library}_VERBOSITY", "error")
    try:
        code = app(arguments or ["--help"], prog_name=PROGRAM, standalone_mode=False) or 0
    except (typer.Abort, KeyboardInterrupt):  # which of these, or 130, depends on typer's age
        code = INTERRUPTED
    except _UsageError as error:
        code = _fail(error.format_message())
    except (ValueError, OSError) as error:
        code = _fail(str(error))
    if code == INTERRUPTED:
        print("stopped.", file=sys.stderr)
    return code


def _fail(message: str) -> int:
    sentence = " ".join(message.split())
    print(f"error: {sentence}{'' if sentence.endswith('.') else '.'}", file=sys.stderr)
    return 2


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"{PROGRAM} {importlib.metadata.version(DISTRIBUTION)}")
        raise typer.Exit


@app.callback()
def program(
    version: Annotated[
        bool, typer.Option("--version", is_eager=True, callback=_print_version, help="Say which.")
    ] = False,
) -> None:
    """Few-step video with AnimateDiff-Lightning, without ComfyUI."""


@app.command()
def generate(
    base: Annotated[
        str | None,
        typer.Option(
            metavar=BASE_METAVAR,
            help="SD1.5 checkpoint, diffusers folder, or a base model of the bundled miniature.",
        ),
    ] = None,
    motion_module: Annotated[
        Path | None, typer.Option(help="Motion module file, in either released layout.")
    ] = None,
    motion_lora: Annotated[
        list[str] | None,
        typer.Option(
            metavar="FILE[:STRENGTH]", help="Motion LoRA, strength 0.8 if not given; repeat."
        ),
    ] = None,
    prompt: Annotated[
        list[str] | None, typer.Option(help="What to draw; repeat for several clips.")
    ] = None,
    prompts: Annotated[Path | None, typer.Option(help="Text file, one prompt a line.")] = None,
    negative_prompt: Annotated[str, typer.Option(help="Needs a --cfg other than 1.")] = "",
    steps: Annotated[
        int | None,
        typer.Option(help="Default: as many as the module was distilled for, or 4 if unknown."),
    ] = None,
    seed: Annotated[int, typer.Option(help="The same for every prompt.")] = 0,
    frames: Frames = 16,
    width: Annotated[
        int | None, typer.Option(help="Pixels; default: the base model's own, SD1.5 512.")
    ] = None,
    height: Annotated[int | None, typer.Option(help="Pixels; default: as --width.")] = None,
    cfg: Annotated[
        float | None,
        typer.Option(help="1 for distilled modules, 7.5 for others; default: the file's, or 1."),
    ] = None,
    sampler: Annotated[
        Sampler, typer.Option(help="euler: Lightning; dpmpp: undistilled; lcm: AnimateLCM.")
    ] = Sampler.euler,
    motion_scale: Annotated[float, typer.Option(help="More or less motion; 1 as trained.")] = 1.0,
    fps: Annotated[float, typer.Option(help="Frames a second.")] = 8.0,
    context_length: Annotated[
        int | None, typer.Option(help="Frames a window, for clips of more than 32: 16 is best.")
    ] = None,
    context_overlap: Annotated[int, typer.Option(help="Frames that windows share.")] = 4,
    device: Device = "auto",
    dtype: ComputeDtype = Dtype.auto,
    out: Annotated[
        Path, typer.Option(help=".mp4, .gif, .webp, or .png for a contact sheet.")
    ] = Path("clip.mp4"),
    tokenizer: Tokenizer = None,
    config: Configs = None,
    prediction_type: Prediction = PredictionType.auto,
) -> None:
    """Make a clip for every prompt, all from the same seed.

    Without --base and --motion-module the bundled miniature draws, a toy world of 16 x 16 pixels.
    """
    from ..sampling.request import ClipRequest, parse_motion_lora, read_prompts

    if prompt and prompts:
        raise ValueError("give either --prompt or --prompts, not both.")
    request = ClipRequest(
        prompts=read_prompts(prompts) if prompts else tuple(prompt or ()),
        negative_prompt=negative_prompt, steps=steps, seed=seed, frames=frames, width=width,
        height=height, cfg=cfg, sampler=sampler.value, motion_scale=motion_scale, fps=fps, out=out,
        context_length=context_length, context_overlap=context_overlap,
    )  # fmt: skip
    miniature = base is None or base.startswith("miniature:")
    if base is None and motion_module is not None:
        raise ValueError("--base is missing; give both, or neither to use the miniature.")
    if motion_module is None and not miniature:
        raise ValueError("--motion-module is missing; give both, or neither to use the miniature.")
    loras = tuple(parse_motion_lora(text) for text in motion_lora or ())
    for file, what in (
        (None if miniature else Path(base), "base model"), (motion_module, "motion module"),
        *((file, "motion LoRA") for file, _ in loras),
    ):  # fmt: skip
        if file is not None and not file.exists():
            raise ValueError(f"the {what} {file} was not found.")

    from ..generate import ModelChoice, make_clips

    models = ModelChoice(
        base, motion_module, motion_loras=loras, tokenizer=tokenizer, config=config,
        device=device, dtype=dtype.value,
        prediction_type=prediction_type.known,
    )  # fmt: skip
    make_clips(request, models)


@app.command()
def inspect(
    file: Annotated[Path, typer.Argument(help="Motion module file.")],
    as_json: Annotated[bool, typer.Option("--json", help="JSON instead of a table.")] = False,
) -> None:
    """Say what a motion module file is: family, steps, layout, shape."""
    import json

    from ...motion_module import checkpoint

    found = checkpoint.load(file).describe()
    if as_json:
        print(json.dumps(found, indent=2))
        return
    column = max(map(len, found))
    for label, text in found.items():
        print(f"{label:<{column}}  {text}")


@app.command()
def convert(
    file: Annotated[Path, typer.Argument(help="Motion module file.")],
    to: Annotated[KeyLayout, typer.Option(help="Key layout to write.")],
    out: Annotated[
        Path | None, typer.Option(help="File to write; default: FILE's name with the layout's.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Overwrite an existing file.")] = False,
) -> None:
    """Rewrite a motion module file in the other key layout; no weight changes."""
    from .convert import convert_file

    print(convert_file(file, to.value, out, overwrite=force))


app.command()(train_motion)
app.command()(train)
app.command()(plan)
app.command()(export)
