"""The commands `train`, `plan` and `export`."""

import logging
from enum import Enum
from pathlib import Path
from typing import Annotated

import typer

from .options import MyDevice, SaveDtype

_CONFIG = typer.Argument(
    metavar="CONFIG",
    help="A .toml file, or a bundled one: paper, distribution, miniature, miniature_combined, "
    "miniature_mse.",
)
logger = logging.getLogger(__name__)
_OUT = typer.Option(help="Folder of the run; overrides the config.")


class Resume(str, Enum):
    auto = "auto"
    never = "never"


def train(
    config: Annotated[str, _CONFIG],
    out: Annotated[Path | None, _OUT] = None,
    resume: Annotated[
        Resume,
        typer.Option(
            help="auto: resume a run that was stopped; never: refuse a folder that holds a run."
        ),
    ] = Resume.auto,
    device: MyDevice = "auto",
) -> None:
    """Distil a motion module through several base models, stage by stage.

    It runs in one process or under torchrun. Every stage leaves students/Nstep.safetensors in the
    run's folder. You may stop it at any time; the same command resumes it.
    """
    from ..train.config import ConfigError, find_config

    file = find_config(config)
    try:
        settings = _read_settings(file, out)
        from ..models.devices import my_device
        from ..train.stages import run_stages

        run_stages(settings, my_device(device), resume is Resume.auto)
    except ConfigError as error:
        _refuse(file, error.problems)


def plan(
    config: Annotated[str, _CONFIG],
    world_size: Annotated[int, typer.Option(help="Number of processes of the run.", min=1)] = 1,
) -> None:
    """Print what a run would load and train, and how much memory it needs.

    Neither the files nor a GPU are needed.
    """
    from ..train.config import ConfigError, find_config

    file = find_config(config)
    try:
        settings = _read_settings(file, None)
        from ..train import checks  # it needs diffusers, which takes seconds

        problems = checks.problems_of_layout(settings, world_size)
        if problems:
            raise ConfigError(problems)
    except ConfigError as error:
        _refuse(file, error.problems)
    from ..train.plan import describe_plan

    print(describe_plan(settings, world_size))


def export(
    run: Annotated[Path, typer.Argument(help="Folder of a run, as `train` wrote it.")],
    out: Annotated[Path, typer.Option(help="Folder to write.")],
    name: Annotated[str, typer.Option(help="Prefix of the file names.")] = (
        "animatediff_lightning"
    ),
    dtype: Annotated[
        SaveDtype, typer.Option(help="Number format of the stored weights.")
    ] = SaveDtype.float16,
    force: Annotated[bool, typer.Option("--force", help="Overwrite existing files.")] = False,
) -> None:
    """Write the students of a run in the comfyui and the diffusers layout, with a model card."""
    import torch

    from ..train.export import export as write

    for file in write(run, out, name, getattr(torch, dtype.value), force):
        print(f"wrote {file}")


def _read_settings(file: Path, out: Path | None):
    """Read a config, and replace its folder where the command line names one."""
    from ..train.config import read_config

    config = read_config(file)
    return config if out is None else config.model_copy(update={"out": out})


def _refuse(file: Path, problems: list[str]) -> None:
    """Print every problem, and stop the command before anything was trained."""
    for problem in problems:
        logger.error("%s: %s", file.name, problem)
    count = f"{len(problems)} problem{'s' * (len(problems) > 1)}"
    raise ValueError(f"{file.name} has {count}, see above; nothing was started.")
