"""`evaluate miniature`: held-out captions in, metrics from the pixels out, a row for each setting.

One seed a caption, the same for every base model, motion module, sampler and step count
(AnimateDiff-Lightning section 4.2).
"""

import csv
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from ...motion_module.files import atomic_path
from ...motion_module.module import MotionModule
from ..library_errors import one_sentence
from ..models.base_model import BaseModel
from ..models.latents import decode_images
from ..sampling.sample import generate_latents
from ..sampling.settings import SamplingSettings, count_evaluations
from . import metrics, split, world

_CLIPS_AT_ONCE = 20


@dataclass(frozen=True)
class Setting:
    """What a row of the table is about; `evaluations` counts what one clip asks of the network.

    captions: which held-out ones (split.py).
    """

    base: str
    motion_module: str
    sampler: str
    steps: int
    cfg: float
    n: int
    captions: split.Part = "test"

    @property
    def evaluations(self) -> int:
        return count_evaluations(self.steps, self.cfg)


def sample_clips(
    base: BaseModel,
    module: MotionModule | None,
    captions: Sequence[str],
    setting: Setting,
    first_seed: int = 0,
    frames: int = world.FRAMES,
) -> Tensor:
    """Return one clip a caption, (n, frames, 3, h, w) in [-1, 1]; caption i has seed first + i.

    Without a motion module every frame is an image of its own.
    """
    settings = SamplingSettings(
        frames=frames, steps=setting.steps, cfg=setting.cfg, sampler=setting.sampler
    ).sized(base.default_size, base.latent_factor)
    seeds = range(first_seed, first_seed + len(captions))
    lcm_noise = torch.Generator().manual_seed(first_seed)  # as the published tables were measured
    latents = generate_latents(base, module, captions, seeds, settings, lcm_noise=lcm_noise)
    return torch.stack([decode_images(base, x0, at_once=frames).cpu() for x0 in latents])


def sample_all(
    base: BaseModel, module: MotionModule | None, scenes: world.Scenes, setting: Setting
) -> Tensor:
    """Return a clip of every scene's caption, a few at a time, with a progress bar."""
    captions = scenes.captions()
    starts = range(0, len(captions), _CLIPS_AT_ONCE)
    label = f"{setting.base}, {setting.steps} steps, cfg {setting.cfg:g}"
    return torch.cat(
        [
            sample_clips(base, module, captions[i : i + _CLIPS_AT_ONCE], setting, first_seed=i)
            for i in tqdm(starts, desc=label, disable=None, leave=False)
        ]
    )


def row(
    base: BaseModel, module: MotionModule | None, style: str, setting: Setting
) -> dict[str, object]:
    """Return a row of the table: the setting, its evaluations and every metric's mean."""
    scenes = metrics.held_out_scenes(setting.n, setting.captions)
    scores = metrics.score(sample_all(base, module, scenes, setting), scenes, style)
    return as_row(setting, setting.evaluations, metrics.summary(scores))


def as_row(setting: Setting, evaluations: int, values: dict[str, float]) -> dict[str, object]:
    """Return a row with rounded metrics, blank where there is none."""
    rounded = {k: round(values[k], 3) if k in values else "" for k in metrics.METRICS}
    return asdict(setting) | {"evaluations": evaluations} | rounded


_COLUMNS = [*(f.name for f in fields(Setting)), "evaluations", *metrics.METRICS]


class Table:
    """Rows in a CSV file, written whole after each row; rows that are there are not made again.

    Raises ValueError where the file is another table.
    """

    def __init__(self, file: Path) -> None:
        self.file = file
        self.rows: list[dict[str, str]] = []
        if file.is_file():
            with (
                one_sentence(str(file), "choose another --out"),
                file.open(newline="", encoding="utf-8") as source,
            ):
                reader = csv.DictReader(source)
                columns, self.rows = reader.fieldnames, list(reader)
                if columns == _COLUMNS:
                    _check_rows(self.rows)
            if columns != _COLUMNS:
                raise ValueError(f"{file} is another table; choose another --out.")

    def find(self, setting: Setting) -> dict[str, str] | None:
        """Return the row of a setting, or None."""
        cells = {k: str(v) for k, v in asdict(setting).items()}
        return next((r for r in self.rows if all(r.get(k) == v for k, v in cells.items())), None)

    def add(self, new: dict[str, object]) -> dict[str, str]:
        """Write a new row, and return it as the file has it."""
        written = {k: str(v) for k, v in new.items()}
        self.rows.append(written)
        with (
            atomic_path(self.file) as temporary,
            open(temporary, "w", newline="", encoding="utf-8") as target,
        ):
            writer = csv.DictWriter(target, _COLUMNS, lineterminator=os.linesep)
            writer.writeheader()
            writer.writerows(self.rows)
        return written


def _check_rows(rows: Sequence[dict[str, str]]) -> None:
    """Raise ValueError for a row whose cells are too many, too few, or text instead of numbers."""
    for number, cells in enumerate(rows, 1):
        if set(cells) != set(_COLUMNS) or None in cells.values():
            raise ValueError(f"row {number} has not as many cells as there are columns")
        measured = metrics.METRICS if int(cells["steps"]) else ()
        for column in ("n", "evaluations", "cfg", *measured):
            float(cells[column])


def show(rows: Iterable[Mapping[str, object]]) -> str:
    """Return rows as a table for the terminal, and for Markdown."""
    texts = [{k: str(v) for k, v in r.items()} for r in rows]
    if not texts:
        return "no rows"
    names = list(texts[0])
    widths = {n: max(len(n), *(len(t[n]) for t in texts)) for n in names}
    lines = [names, ["-" * widths[n] for n in names], *([t[n] for n in names] for t in texts)]
    return "\n".join(
        "| "
        + " | ".join(f"{cell:<{widths[n]}}" for n, cell in zip(names, line, strict=True))
        + " |"
        for line in lines
    )
