"""The commands `inspect` and `convert`, for motion module files."""

import json
from enum import Enum
from pathlib import Path
from typing import Annotated

import typer


class KeyLayout(str, Enum):
    comfyui = "comfyui"
    diffusers = "diffusers"


def inspect(
    file: Annotated[Path, typer.Argument(help="Motion module file.")],
    as_json: Annotated[bool, typer.Option("--json", help="JSON instead of a table.")] = False,
    check: Annotated[
        bool, typer.Option("--check", help="Also read every weight, and refuse a damaged file.")
    ] = False,
) -> None:
    """Say what a motion module file is: family, steps, layout, shape.

    Of a safetensors file only the header is read, unless --check asks for more.
    """
    description = _describe(file, check)
    if as_json:
        print(json.dumps(description, indent=2))
        return
    column = max(map(len, description))
    for label, text in description.items():
        print(f"{label:<{column}}  {text}")


def _describe(file: Path, check: bool) -> dict[str, str]:
    from ...motion_module import content, facts

    _check_file(file)
    if content.is_safetensors(file) and not check:
        return facts.describe_header(file)
    from ...motion_module import checkpoint

    return checkpoint.load(file).describe()


def _check_file(file: Path) -> None:
    """Raise ValueError where no weights file can be at a path, before torch is imported."""
    from ...motion_module import content, refusals

    with refusals.naming(file):
        content.check_file(file)


def convert(
    file: Annotated[Path, typer.Argument(help="Motion module file.")],
    to: Annotated[KeyLayout, typer.Option(help="Key layout to write.")],
    out: Annotated[
        Path | None, typer.Option(help="File to write; default: FILE's name with the layout's.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Overwrite an existing file.")] = False,
) -> None:
    """Rewrite a motion module file in the other key layout; no weight changes."""
    _check_file(file)
    from ..files.convert import convert_file

    print(convert_file(file, to.value, out, overwrite=force))
