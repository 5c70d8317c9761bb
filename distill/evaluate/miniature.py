"""The report of `evaluate miniature`: its rows, the table and the plot."""

from collections.abc import Sequence
from pathlib import Path

import torch

from ...motion_module import checkpoint
from ...motion_module.files import atomic_path
from ..files.digest import digest
from ..miniature import metrics, shipped
from ..miniature.sample import Setting, Table, as_row, row, show
from ..miniature.split import Part
from ..models.base_model import BaseModel, load_base, quiet_libraries
from .miniature_request import MiniatureRequest, style_of


def evaluate_miniature(request: MiniatureRequest) -> str:
    """Measure what is not in the CSV yet, and return the table; the plot lies beside the CSV."""
    quiet_libraries()
    file = request.motion_module or shipped.motion_module()
    module = checkpoint.load(file).build(dtype=torch.float32)
    module_name = _named(file.stem, request.motion_module)
    table = Table(request.out)
    shown: list[dict[str, str]] = []
    for name in request.bases:
        style = style_of(name)
        shown += _bounds(table, style, request.clips, request.captions)
        base: BaseModel | None = None
        base_name = _named(style, Path(name) if Path(name).is_dir() else None)
        for steps in request.steps:
            for cfg in request.cfgs:
                setting = Setting(
                    base_name,
                    module_name,
                    request.sampler,
                    steps,
                    cfg,
                    request.clips,
                    request.captions,
                )
                line = table.find(setting)
                if line is None:
                    base = base or load_base(name if Path(name).is_dir() else shipped.base(name))
                    line = table.add(row(base, module, style, setting))
                shown.append(line)
    plot_metrics(table.rows, request.plot)
    return show(shown)


def _named(name: str, path: Path | None) -> str:
    """Return a name as the table has it: with a digest of what is not bundled, as names repeat."""
    return name if path is None else f"{name}-{digest(path)[:8]}"


def _bounds(table: Table, style: str, clips: int, captions: Part) -> list[dict[str, str]]:
    """Return the rows of true clips (the ceiling) and of chance."""
    scenes = metrics.held_out_scenes(clips, captions)
    rows = []
    for name, measure in (("true clips", metrics.ceiling), ("chance", metrics.chance)):
        setting = Setting(style, name, "", 0, 0.0, clips, captions)
        line = table.find(setting)
        rows.append(line or table.add(as_row(setting, 0, measure(scenes, style))))
    return rows


def plot_metrics(rows: Sequence[dict[str, str]], file: Path) -> None:
    """Draw every metric over the network evaluations, a line for each base, module and cfg."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    lines: dict[str, list[dict[str, str]]] = {}
    for line in rows:
        if int(line["steps"]):
            name = f"{line['base']}, {line['motion_module']}, cfg {float(line['cfg']):g}"
            lines.setdefault(name, []).append(line)
    figure, panels = pyplot.subplots(3, 3, figsize=(13, 10), sharex=True)
    for metric, panel in zip(metrics.METRICS, panels.flat, strict=True):
        for name, unordered in lines.items():
            ordered = sorted(unordered, key=lambda r: int(r["evaluations"]))
            x, y = [int(r["evaluations"]) for r in ordered], [float(r[metric]) for r in ordered]
            panel.plot(x, y, marker="o", label=name)
        panel.set(title=metric, xscale="log")
        panel.set_xlabel("network evaluations")
    panels.flat[0].legend(fontsize=7)
    figure.tight_layout()
    with atomic_path(file) as temporary:
        figure.savefig(temporary, dpi=80)
    pyplot.close(figure)
