"""The commands of `miniature`: `build`, `pack`, `pack-students`, `picture` and `probe`."""

import os
import subprocess
import sys
from enum import Enum
from pathlib import Path
from typing import Annotated

import typer

miniature = typer.Typer(help="Build, pack and draw the bundled toy world.")


class RecipeName(str, Enum):
    quick = "quick"
    full = "full"


@miniature.command("build")
def build_miniature(
    recipe: Annotated[
        RecipeName,
        typer.Option(
            help="quick takes minutes and is for tests; full takes hours and makes the "
            "bundled weights."
        ),
    ] = RecipeName.quick,
    out: Annotated[
        Path, typer.Option(help="Folder of the weights; run again with the same folder to resume.")
    ] = Path("runs/miniature"),
    gates: Annotated[
        bool, typer.Option(help="Stop at a gate that fails, or only record its figures.")
    ] = True,
    processes: Annotated[
        int,
        typer.Option(
            help="Number of processes with one thread each; 0 uses this process with all threads."
        ),
    ] = 0,
) -> None:
    """Train the base models and the motion module from seeds. Each stage must pass its gate."""
    if processes and "WORLD_SIZE" not in os.environ:
        raise typer.Exit(_again_under_torchrun(processes))
    from ..engine import distributed
    from ..miniature import build

    try:
        build.build_miniature(out, recipe.value, gates)
    finally:
        distributed.stop()


@miniature.command("pack")
def pack_build(
    build: Annotated[Path, typer.Argument(help="Folder of a finished build.")],
    out: Annotated[
        Path | None, typer.Option(help="Folder to write; default: the package's own.")
    ] = None,
) -> None:
    """Write the weights of a finished build as they are bundled.

    They are stored in float16, and shared parts only once.
    """
    from ..miniature import pack, shipped

    print(f"wrote {pack.pack_build(build, out or shipped.WEIGHTS)}")


@miniature.command("pack-students")
def pack_students(
    run: Annotated[Path, typer.Argument(help="Folder of a finished `train miniature...`.")],
    steps: Annotated[
        list[int] | None, typer.Option(help="Steps of a student to pack; repeat for several.")
    ] = None,
) -> None:
    """Write the motion modules of a distillation as they are bundled, and update the model card."""
    from ..miniature import pack

    for file in pack.pack_students(run, steps=steps or ()):
        print(f"wrote {file}")


@miniature.command("picture")
def draw_picture(
    prompt: Annotated[str, typer.Argument(help="Prompt to draw in every style.")],
    out: Annotated[Path, typer.Option(help=".png file to write.")] = Path("miniature.png"),
    seed: Annotated[int, typer.Option(help="Seed, the same for every style.")] = 0,
) -> None:
    """Draw one prompt in every style, a row of frames each."""
    from ..miniature import picture

    print(f"wrote {picture.draw_picture(prompt, out, seed)}")


@miniature.command("probe")
def train_probe(
    work: Annotated[
        Path, typer.Option(help="Folder of the training; the same one goes on where it was.")
    ] = Path("runs/probe"),
    out: Annotated[
        Path | None, typer.Option(help="File to write; default: the package's own.")
    ] = None,
) -> None:
    """Train the network whose features `evaluate fvd` compares on the miniature, in minutes."""
    from ..miniature import probe

    print(f"wrote {probe.save_probe(probe.train_probe(work), out or probe.FILE)}")


def _again_under_torchrun(processes: int) -> int:
    """Run this very command under torchrun; two one-thread processes beat two threads."""
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        f"--nproc-per-node={processes}",
        "-m",
        "animatediff_lightning.distill",
        *sys.argv[1:],
    ]
    return subprocess.call(command, env=os.environ | {"OMP_NUM_THREADS": "1"})
