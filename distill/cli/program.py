"""The program `animatediff-lightning`: its commands, and nothing heavier than their options.

Every mistake of a user ends in one sentence on stderr and exit code 2, Ctrl-C in exit code 130, and
whatever nobody foresaw in one sentence and exit code 1; its traceback is told under --verbose.
"""

import atexit
import gc
import importlib.metadata
import logging
import os
import sys
import traceback
from typing import TYPE_CHECKING, Annotated

import typer

from . import data, evaluate, miniature
from .files import convert, inspect
from .generate import generate
from .train import export, plan, train
from .train_motion import train_motion

PROGRAM = "animatediff-lightning"
DISTRIBUTION = "comfyui-animatediff-lightning"
MISTAKE = 2
UNFORESEEN = 1
INTERRUPTED = 130  # 128 + SIGINT, as shells have it
_LOGGER = logging.getLogger(__package__.rpartition(".")[0])  # of all of distill/
_PREFIXES = {
    logging.DEBUG: "debug",
    logging.INFO: "note",
    logging.WARNING: "warning",
    logging.ERROR: "error",
}
app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)
# typer carries a click of its own, whose error class has no public name
if TYPE_CHECKING:

    class _UsageError(Exception):
        def format_message(self) -> str: ...
else:
    _UsageError = next(c for c in typer.BadParameter.__mro__ if c.__name__ == "ClickException")
app.add_typer(data.data, name="data")
app.add_typer(miniature.miniature, name="miniature")
app.add_typer(evaluate.evaluate, name="evaluate")


def main(arguments: list[str] | None = None) -> int:
    """Run the program on `arguments` (default: the command line's) and return its exit code."""
    if arguments is None:
        _collect_garbage_seldom()
        arguments = sys.argv[1:]
    handler = _MessageHandler()
    _LOGGER.addHandler(handler)
    # diffusers' and transformers' notes on optional packages would bury ours
    for library in ("DIFFUSERS", "TRANSFORMERS"):
        os.environ.setdefault(f"{library}_VERBOSITY", "error")
    try:
        code = app(arguments or ["--help"], prog_name=PROGRAM, standalone_mode=False) or 0
    except (Exception, KeyboardInterrupt) as error:
        code = explain(error)
    finally:
        _LOGGER.removeHandler(handler)
    if code == INTERRUPTED:  # whether typer raises or returns it depends on its age
        print("stopped.", file=sys.stderr)
    return code


def _collect_garbage_seldom() -> None:
    """Spare a quarter of the time that a short command takes.

    The libraries make a million lasting objects when they are imported; Python would look through
    them again and again meanwhile, and once more at the exit.
    """
    gc.set_threshold(50_000, 20, 100)
    atexit.register(gc.freeze)


def explain(error: BaseException) -> int:
    """Tell in one sentence what a command raised, and return the exit code."""
    if isinstance(error, (typer.Abort, KeyboardInterrupt)):
        return INTERRUPTED
    if isinstance(error, _UsageError):
        return _fail(error.format_message())
    _LOGGER.debug("%s", "".join(traceback.format_exception(error)).rstrip())
    text = " ".join(str(error).split()).rstrip(".")
    if _is_out_of_memory(error):
        return _fail(
            f"there is not enough memory ({text.partition('. ')[0] or 'no more is given'}); lower "
            "the frames, the width and height, or the clips at once"
        )
    if isinstance(error, (ValueError, OSError)) and text:
        return _fail(text)
    return _fail(
        f"internal error: {type(error).__name__}: {text}; this is a fault of the program, please "
        "report it with the output of --verbose",
        UNFORESEEN,
    )


def _is_out_of_memory(error: BaseException) -> bool:
    torch = sys.modules.get("torch")  # which --help does not import
    kinds = (MemoryError,) if torch is None else (MemoryError, torch.OutOfMemoryError)
    # on a CPU, torch has no class of its own for it
    return isinstance(error, kinds) or "DefaultCPUAllocator" in str(error)


class _MessageHandler(logging.Handler):
    """Writes "note: ...", "warning: ..." to stderr, above progress bars where there are any."""

    def emit(self, record: logging.LogRecord) -> None:
        from tqdm import tqdm

        tqdm.write(f"{_PREFIXES[record.levelno]}: {record.getMessage()}", file=sys.stderr)


def _fail(message: str, code: int = MISTAKE) -> int:
    sentence = " ".join(message.split())
    print(f"error: {sentence}{'' if sentence.endswith('.') else '.'}", file=sys.stderr)
    return code


def _print_version(asked: bool) -> None:
    if asked:
        print(f"{PROGRAM} {importlib.metadata.version(DISTRIBUTION)}")
        raise typer.Exit


@app.callback()
def program(
    version: Annotated[  # noqa: ARG001 - its callback has acted
        bool,
        typer.Option(
            "--version", is_eager=True, callback=_print_version, help="Print the version and exit."
        ),
    ] = False,
    verbose: Annotated[
        bool, typer.Option("--verbose", help="Also tell which files are read, and the like.")
    ] = False,
    quiet: Annotated[
        bool, typer.Option("--quiet", help="Tell errors and results only: no notes, no warnings.")
    ] = False,
) -> None:
    """Few-step video with AnimateDiff-Lightning, without ComfyUI.

    Notes, warnings and progress go to stderr, results to stdout.
    """
    if verbose and quiet:
        raise ValueError("give either --verbose or --quiet, not both.")
    _LOGGER.setLevel(logging.DEBUG if verbose else logging.ERROR if quiet else logging.INFO)


for command in (generate, train_motion, train, plan, export, inspect, convert):
    app.command()(command)
