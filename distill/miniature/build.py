"""`miniature build`: every stage from seeds, each resumable, each behind its gate.

A stage that is done leaves its weights, a contact sheet and its gate's figures as files; a stage
that is not leaves its checkpoint, from which the same command goes on.
"""

import json
import logging
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch
from diffusers.models import UNet2DConditionModel
from transformers import CLIPTextModel

from ...motion_module import checkpoint
from ...motion_module.files import atomic_path
from ...motion_module.module import MotionModule
from ..engine import distributed, loop
from ..files import clip_writer
from ..models.base_model import BaseModel, Vae, load_base, quiet_libraries
from ..models.latents import to_frames
from . import gates, metrics, models, sample, split, stages, styles
from .gates import Check
from .recipe import MOTION_STAGE, RECIPES, Recipe

logger = logging.getLogger(__name__)
MOTION_FILE = "motion_module.safetensors"
Weights = dict[str, torch.nn.Parameter]
_SHEET_CLIPS = 4
_SHEET_CFG = 2.5


@dataclass(frozen=True)
class Folders:
    """Where a build keeps things: bases by style, the motion module, and work in progress."""

    root: Path

    def base(self, style: str) -> Path:
        return self.root / "bases" / style

    def work(self, stage: str) -> Path:
        return self.root / "work" / stage

    def report(self, gate: str) -> Path:
        return self.root / "gates" / f"{gate}.json"

    def sheet(self, stage: str) -> Path:
        return self.root / "sheets" / f"{stage}.png"

    @property
    def motion_module(self) -> Path:
        return self.root / MOTION_FILE


def build_miniature(folder: Path, recipe_name: str, gated: bool = True) -> None:
    """Train what is missing in `folder`, stage by stage; raises ValueError at a gate that fails.

    Not `gated`, it goes on behind a gate that fails, whose figures are written down all the same.
    Under torchrun the first base and the motion module are trained by all processes together, and
    the other bases and their gates are shared out among them.
    """
    recipe, folders = RECIPES[recipe_name], Folders(folder)
    recipe = replace(recipe, gated=recipe.gated and gated)
    quiet_libraries()
    distributed.start(torch.device("cpu"))
    _first_base(folders, recipe)
    _gate(folders, recipe, f"a-{styles.F0}", lambda: _gate_a(folders, recipe, styles.F0))
    others = [s for s in recipe.styles if s != styles.F0]
    for style in _my_share(others):
        with distributed.alone():
            _other_base(folders, recipe, style)
            _gate(folders, recipe, f"a-{style}", partial(_gate_a, folders, recipe, style))
    distributed.barrier()
    _motion(folders, recipe)
    _gate(folders, recipe, "b-cfg", lambda: _choose_cfg(folders, recipe))
    for style in _my_share([*others, styles.F0]):
        with distributed.alone():
            _gate(folders, recipe, f"b-{style}", partial(_gate_b, folders, recipe, style))
    distributed.barrier()


def teacher_cfg(folders: Folders) -> float:
    """Return the guidance that suits the motion module best, as measured before gate B."""
    return gates.read_report(folders.report("b-cfg"))[0].value


def _first_base(folders: Folders, recipe: Recipe) -> None:
    if folders.base(styles.F0).is_dir():
        return
    work = folders.work(styles.F0)
    start = work / "start"
    if not start.is_dir() and distributed.rank() == 0:
        torch.manual_seed(recipe.seed)
        _write_whole(start, models.build_unet(), models.build_text_encoder(), models.build_vae())
    distributed.barrier()
    base = load_base(start)
    weights = stages.trainable(unet=base.unet, text=base.text_encoder)
    _train_base(folders, recipe, base, styles.F0, weights)


def _other_base(folders: Folders, recipe: Recipe, style: str) -> None:
    if folders.base(style).is_dir():
        return
    base = load_base(folders.base(styles.F0))
    weights = stages.trainable(unet=base.unet)
    _train_base(folders, recipe, base, style, weights)


def _train_base(
    folders: Folders, recipe: Recipe, base: BaseModel, style: str, weights: Weights
) -> None:
    stage, seed = recipe.first_base, recipe.seed
    if style != styles.F0:
        stage, seed = recipe.other_bases, recipe.seed + 1 + list(styles.STYLES).index(style)
    loss = stages.base_loss(base, style, stage, seed)
    loop.train_weights(f"base model {style}", weights, loss, stage.loop, folders.work(style))
    if distributed.rank() == 0:
        _sheet(folders.sheet(style), base, None, style, recipe.teacher_steps)
        _write_whole(folders.base(style), base.unet, base.text_encoder, base.vae)
    distributed.barrier()


def _motion(folders: Folders, recipe: Recipe) -> None:
    if folders.motion_module.is_file():
        return
    base = load_base(folders.base(styles.F0))
    generator = torch.Generator().manual_seed(recipe.seed + 100)
    module = models.build_motion_module(base.unet).initialise(generator)
    loss, injection = stages.motion_stage_loss(
        base, module, styles.F0, recipe.motion, recipe.seed + 101
    )
    weights = stages.trainable(motion=module)
    work = folders.work(MOTION_STAGE)
    loop.train_weights("motion module", weights, loss, recipe.motion.loop, work)
    injection.eject()
    if distributed.rank() == 0:
        _sheet(folders.sheet("motion"), base, module, styles.F0, recipe.teacher_steps)
        metadata = {"family": "AnimateDiff (miniature)", "steps": 0}
        checkpoint.save(module, folders.motion_module, metadata=metadata)
    distributed.barrier()


def _gate(folders: Folders, recipe: Recipe, name: str, measure: Callable[[], list[Check]]) -> None:
    """Measure a gate once, write down its figures, and stop the build where it fails."""
    file = folders.report(name)
    if not file.is_file() and distributed.rank() == 0:
        checks = measure()
        for check in checks:
            logger.info("gate %s: %s", name, check)
        with atomic_path(file) as temporary:
            temporary.write_text(json.dumps([c.as_dict() for c in checks], indent=2))
    distributed.barrier()
    failed = [check.what for check in gates.read_report(file) if not check.passed]
    if failed and recipe.gated:
        raise ValueError(
            f"gate {name} failed ({', '.join(failed)}); {file} has the figures. Change "
            "the recipe and delete that file, or build with --no-gates."
        )


def _gate_a(folders: Folders, recipe: Recipe, style: str) -> list[Check]:
    base = load_base(folders.base(style))
    clips = recipe.gate_clips if style == styles.F0 else recipe.other_clips
    return gates.gate_a(base, style, clips, recipe.teacher_steps)


def _choose_cfg(folders: Folders, recipe: Recipe) -> list[Check]:
    names = [styles.F0, *(s for s in split.BASES["validation"] if s in recipe.styles)]
    bases = {name: load_base(folders.base(name)) for name in names}
    clips, steps = recipe.other_clips, max(2, recipe.teacher_steps // 2)
    cfg = gates.best_cfg(bases, _module(folders), clips, steps)
    return [Check("guidance of the teacher", cfg, 1.0)]


def _gate_b(folders: Folders, recipe: Recipe, style: str) -> list[Check]:
    base, module, cfg = load_base(folders.base(style)), _module(folders), teacher_cfg(folders)
    if style == styles.F0:
        return gates.gate_b_first(base, module, cfg, recipe.gate_clips, recipe.teacher_steps)
    return gates.gate_b_other(base, module, style, cfg, recipe.other_clips, recipe.teacher_steps)


def _module(folders: Folders) -> MotionModule:
    return checkpoint.load(folders.motion_module).build(dtype=torch.float32)


def _sheet(
    file: Path, base: BaseModel, module: MotionModule | None, style: str, steps: int
) -> None:
    """Write a picture of a few held-out captions, a row each, enlarged."""
    scenes = metrics.held_out_scenes(_SHEET_CLIPS, "validation")
    setting = sample.Setting(style, "", "euler", steps, _SHEET_CFG, len(scenes))
    clips = sample.sample_all(base, module, scenes, setting)[:, ::2]
    picture = clip_writer.rows([to_frames(clip).numpy() for clip in clips])[None]
    clip_writer.write_clip(file, clip_writer.enlarge(picture, 512), fps=1)


def _write_whole(
    folder: Path, unet: UNet2DConditionModel, text_encoder: CLIPTextModel, vae: Vae
) -> None:
    temporary = folder.with_name(f".{folder.name}")
    shutil.rmtree(temporary, ignore_errors=True)
    models.write_base(temporary, unet, text_encoder, vae)
    temporary.rename(folder)


def _my_share(names: list[str]) -> Iterator[str]:
    yield from names[distributed.rank() :: distributed.world_size()]
