"""The commands `miniature build`, `miniature pack` and `evaluate miniature`."""

import os
import subprocess
import sys
from enum import Enum
from pathlib import Path
from typing import Annotated

import typer

miniature = typer.Typer(help="The bundled toy world: train it anew from seeds.")
evaluate = typer.Typer(help="Measure generated clips.")


class RecipeName(str, Enum):
    quick = "quick"
    full = "full"


@miniature.command()
def build(
    recipe: Annotated[
        RecipeName, typer.Option(help="quick: minutes, for tests; full: what ships, hours.")
    ] = RecipeName.quick,
    out: Annotated[
        Path, typer.Option(help="Folder of the weights; the same one goes on where it was.")
    ] = Path("runs/miniature"),
    gates: Annotated[
        bool, typer.Option(help="Stop at a gate that fails, or only write down its figures.")
    ] = True,
    processes: Annotated[
        int, typer.Option(help="Processes of one thread each; 0: this one with all threads.")
    ] = 0,
) -> None:
    """Train base models and motion module from seeds, stage by stage, each behind its gate."""
    if processes and "WORLD_SIZE" not in os.environ:
        raise typer.Exit(_again_under_torchrun(processes))
    from . import distributed
    from .miniature.build import build as build_miniature

    try:
        build_miniature(out, recipe.value, gates)
    finally:
        distributed.stop()


@miniature.command()
def pack(
    build: Annotated[Path, typer.Argument(help="Folder of a finished build.")],
    out: Annotated[
        Path | None, typer.Option(help="Folder to write; default: the package's own.")
    ] = None,
) -> None:
    """Write a finished build's weights as they ship: float16, shared parts once."""
    from .miniature import shipped

    print(f"wrote {shipped.pack(build, out or shipped.WEIGHTS)}")


@miniature.command()
def picture(
    prompt: Annotated[str, typer.Argument(help="What every style is to show.")],
    out: Annotated[Path, typer.Option(help=".png file to write.")] = Path("miniature.png"),
    seed: Annotated[int, typer.Option(help="The same for every style.")] = 0,
) -> None:
    """Draw one prompt in every style, a row of frames each."""
    from .miniature import picture

    print(f"wrote {picture.draw(prompt, out, seed)}")


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
    from .miniature import report

    request = report.Request(
        bases=tuple(base or ("plain",)), motion_module=motion_module,
        steps=report.numbers(steps, int, "--steps"), cfgs=report.numbers(cfg, float, "--cfg"),
        sampler=sampler, clips=clips, out=out,
    )  # fmt: skip
    print(report.evaluate(request))


def _again_under_torchrun(processes: int) -> int:
    """Run this very command under torchrun; two one-thread processes beat two threads."""
    command = [
        sys.executable, "-m", "torch.distributed.run", "--standalone",
        f"--nproc-per-node={processes}", "-m", "animatediff_lightning.distill", *sys.argv[1:],
    ]  # fmt: skip
    return subprocess.call(command, env=os.environ | {"OMP_NUM_THREADS": "1"})
