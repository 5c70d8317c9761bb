"""The report of `evaluate miniature`: which settings, their rows, the table and the plot."""

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from ...motion_module import checkpoint
from ...motion_module.files import atomic_path
from ..files.digest import digest
from ..miniature import metrics, shipped, styles
from ..miniature.sample import Setting, Table, as_row, row, show
from ..models.base_model import load_base, quiet_libraries
from ..sampling import sample
from ..sampling.request import ClipRequest


@dataclass(frozen=True)
class Request:
    """What to measure; every base with every step count and guidance. ValueError if impossible."""

    bases: tuple[str, ...]
    motion_module: Path | None
    steps: tuple[int, ...]
    cfgs: tuple[float, ...]
    sampler: str
    clips: int
    out: Path

    def __post_init__(self) -> None:
        if self.sampler not in sample.SAMPLE:
            raise ValueError(
                f"the sampler {self.sampler!r} is unknown; use {', '.join(sample.SAMPLE)}."
            )
        if self.clips < 2:
            raise ValueError(f"--clips must be at least 2, not {self.clips}.")
        if self.out.suffix.lower() != ".csv":
            raise ValueError(f"{self.out.name} must end in .csv.")
        for base in self.bases:
            style_of(base)
        for steps, cfg in itertools.product(self.steps, self.cfgs):
            # raises for what is out of range, and where the plot cannot be written
            ClipRequest(("any",), steps=steps, cfg=cfg, out=self.out.with_suffix(".png"))


def numbers(text: str, kind: Callable[[str], float], option: str) -> tuple:
    """Return the numbers of "32,8,4"; ValueError names the option."""
    try:
        found = tuple(kind(part) for part in text.split(",") if part.strip())
    except ValueError as error:
        raise ValueError(f"{option} {text!r} is no list of numbers such as 4,2,1.") from error
    if not found or any(n < (1 if kind is int else 0) for n in found):
        raise ValueError(f"{option} {text!r} needs numbers of at least {1 if kind is int else 0}.")
    return found


def style_of(base: str) -> str:
    """Return the style that a base model's name or folder stands for; ValueError if none."""
    style = Path(base).name
    if style not in styles.STYLES:
        raise ValueError(
            f"{base} is no style of the miniature; use one of {', '.join(styles.STYLES)}, or a "
            "folder of such a name."
        )
    return style


def evaluate(request: Request) -> str:
    """Measure what is not in the CSV yet, and return the table; the plot lies beside the CSV."""
    quiet_libraries()
    file = request.motion_module or shipped.motion_module()
    module = checkpoint.load(file)
    built, of = module.build(dtype=torch.float32), _named(file.stem, request.motion_module)
    table, shown = Table(request.out), []
    for name in request.bases:
        style = style_of(name)
        shown += _bounds(table, style, request.clips)
        base, called = None, _named(style, Path(name) if Path(name).is_dir() else None)
        for steps in request.steps:
            for cfg in request.cfgs:
                setting = Setting(called, of, request.sampler, steps, cfg, request.clips)
                if table.find(setting) is None:
                    base = base or load_base(name if Path(name).is_dir() else shipped.base(name))
                    table.add(row(base, built, style, setting))
                shown.append(table.find(setting))
    plot(table.rows, request.out.with_suffix(".png"))
    return show(shown)


def _named(name: str, path: Path | None) -> str:
    """Return a name as the table has it: with a digest of what is not bundled, as names repeat."""
    return name if path is None else f"{name}-{digest(path)[:8]}"


def _bounds(table: Table, style: str, clips: int) -> list[dict[str, str]]:
    """Return the rows of true clips (the ceiling) and of chance."""
    scenes = metrics.held_out_scenes(clips)
    found = []
    for name, measure in (("true clips", metrics.ceiling), ("chance", metrics.chance)):
        setting = Setting(style, name, "", 0, 0.0, clips)
        if table.find(setting) is None:
            table.add(as_row(setting, 0, measure(scenes, style)))
        found.append(table.find(setting))
    return found


def plot(rows: Sequence[dict[str, str]], file: Path) -> None:
    """Draw every metric over the network evaluations, a line for each base, module and cfg."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    lines: dict[str, list[dict[str, str]]] = {}
    for found in rows:
        if int(found["steps"]):
            name = f"{found['base']}, {found['motion_module']}, cfg {float(found['cfg']):g}"
            lines.setdefault(name, []).append(found)
    figure, panels = pyplot.subplots(2, 4, figsize=(16, 7), sharex=True)
    for metric, panel in zip(metrics.METRICS, panels.flat, strict=True):
        for name, line in lines.items():
            line = sorted(line, key=lambda r: int(r["evaluations"]))
            x, y = [int(r["evaluations"]) for r in line], [float(r[metric]) for r in line]
            panel.plot(x, y, marker="o", label=name)
        panel.set(title=metric, xscale="log")
        panel.set_xlabel("network evaluations")
    panels.flat[0].legend(fontsize=7)
    figure.tight_layout()
    with atomic_path(file) as temporary:
        figure.savefig(temporary, dpi=80)
    pyplot.close(figure)
