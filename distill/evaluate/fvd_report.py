"""What `evaluate fvd` writes of its rows: a table, a plot, and a contact sheet a base model."""

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import TypedDict

import numpy as np

from ...motion_module.files import atomic_path
from ..files import clip_writer

TABLE = "fvd.csv"
SHOWN_FRAMES = 8
_SMALLEST_SIDE = 64  # pixels of a frame in a contact sheet


class Row(TypedDict):
    """A method on a base model, as the table shows it; n: clips.

    fvd: to the teacher's clips of other seeds; floor: between the teacher's own; fvd_true and
    floor_true: the same with true clips, blank where there are none; trajectory: to the teacher's
    clips of the same seeds.
    """

    base: str
    motion_module: str
    sampler: str
    steps: int
    cfg: str
    evaluations: int
    n: int
    fvd: str
    floor: str
    fvd_true: str
    floor_true: str
    trajectory: str


COLUMNS = tuple(Row.__annotations__)


def write_table(file: Path, rows: Sequence[Row]) -> None:
    """Write rows as CSV."""
    with (
        atomic_path(file) as temporary,
        open(temporary, "w", newline="", encoding="utf-8") as target,
    ):
        writer = csv.DictWriter(target, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def plot_distances(rows: Sequence[Row], file: Path) -> None:
    """Draw the distances over network evaluations, a line for each base, and their floors."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, panel = pyplot.subplots(figsize=(8, 5))
    for number, base in enumerate(dict.fromkeys(r["base"] for r in rows)):
        mine = sorted((r for r in rows if r["base"] == base), key=lambda r: r["evaluations"])
        x, y = [r["evaluations"] for r in mine], [float(r["fvd"]) for r in mine]
        panel.plot(x, y, "o", color=f"C{number}", label=base)
        panel.axhline(float(mine[0]["floor"]), color=f"C{number}", linewidth=0.7, linestyle=":")
    panel.set(xlabel="network evaluations", ylabel="Frechet distance to the teacher", xscale="log")
    panel.legend()
    figure.tight_layout()
    with atomic_path(file) as temporary:
        figure.savefig(temporary, dpi=80)
    pyplot.close(figure)


def draw_comparison(file: Path, methods: Sequence[np.ndarray]) -> None:
    """Draw a row a clip: the teacher's above each method's, clip after clip."""
    clips = [
        clip_writer.enlarge(shown[clip], _SMALLEST_SIDE)
        for clip in range(len(methods[0]))
        for shown in methods
    ]
    clip_writer.write_clip(file, clip_writer.rows(clips, SHOWN_FRAMES)[None], fps=1)
