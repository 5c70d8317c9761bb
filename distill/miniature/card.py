"""The model card that ships beside the miniature's weights, written from recipe and gates."""

from collections.abc import Iterable, Sequence
from pathlib import Path

from torch import nn

from ...motion_module.checkpoint import MotionCheckpoint
from ..files import records
from ..library_errors import one_sentence
from . import gates, models, probe, split, styles, world
from .recipe import MOTION_STAGE, Recipe, Stage

_TEXT = """# The miniature: model card

Weights of a toy world, trained from seeds by `animatediff-lightning miniature build --recipe full`
and packed by `miniature pack`. For trying the pipeline and measuring distillation; they draw
nothing but the {words} words below, in {size} x {size} pixels and {frames} frames.

- **Data:** clips of the procedural world in `distill/miniature/world.py`; no picture from anywhere
  else. {trained} of {all} combinations of colour, animal, size and direction are trained, the
  others held out for every figure below.
- **Words:** {vocabulary}.
- **Base models:** one for each style ({names}), diffusers UNets of {unet:,} parameters that predict
  v on AnimateDiff's linear betas; `plain` is f_0, the others are fine-tuned from it. One CLIP text
  encoder of {text:,} parameters for all, trained with f_0. The VAE is a lossless Haar transform
  of 12 channels; `vae.json` has their mean and deviation.
- **Split** (`distill/miniature/split.py`): students train on {train_bases}; recipes are chosen on
  {validation_bases} and {validation} captions; tables are measured on {test_bases}, too, and on
  {test} other captions, which no choice has seen.
- **Motion module:** AnimateDiff v2's class, {motion:,} parameters, {heads} heads, trained on
  clips of f_0's style alone with f_0 frozen. It is the undistilled teacher: {steps} Euler steps,
  cfg {cfg:g}.
- **Probe** (`probe.safetensors`): {probe:,} parameters, {probe_steps} steps of `miniature probe` on
  true clips of every style, to tell colour, animal, size, motion and style; its features are what
  `evaluate fvd` compares. No base model and no motion module has seen it.
- **Stored** in float16.

## Training

| stage | samples a step | steps | learning rate | average | minutes |
|---|---|---|---|---|---|
{training}

AdamW, cosine decay, gradients clipped at 1; captions dropped for {dropped:.0%} of the samples, on
two CPU cores; f_0 and the motion module by two processes together, the others by one each.

{students}## Gates

Held-out captions, {steps} Euler steps, cfg {cfg:g}, measured in the pixels (`measure.py`):
{clips} clips on `plain`, {other} on each other base model.

| gate | figure | value | bound |
|---|---|---|---|
{gates}
"""


_STUDENTS = """## Distilled

`train` made these motion modules of the undistilled one, on clips that `data generate` made;
{global_batch} clips a step; they want cfg 1. Seen base models: {bases}. How good they are:
`docs/miniature.md`.

| file | steps | taught by | loss | iterations |
|---|---|---|---|---|
{rows}

"""


MINUTES = "minutes.json"  # of training, by stage


def format_card(
    recipe: Recipe, cfg: float, weights: Path, students: Sequence[MotionCheckpoint] = ()
) -> str:
    """Return the card's text; `weights` is the folder with gate reports and minutes."""
    unet = models.build_unet()
    return _TEXT.format(
        words=len(world.vocabulary()),
        vocabulary=", ".join(world.vocabulary()),
        size=world.SIZE,
        frames=world.FRAMES,
        trained=len(split.combinations("train")),
        all=sum(len(split.combinations(part)) for part in split.BASES),
        names=", ".join(styles.STYLES),
        unet=_count(unet),
        text=_count(models.build_text_encoder()),
        motion=_count(models.build_motion_module(unet)),
        heads=models.HEADS,
        cfg=cfg,
        steps=recipe.teacher_steps,
        clips=recipe.gate_clips,
        other=recipe.other_clips,
        dropped=recipe.motion.no_caption,
        training="\n".join(_training(recipe, _minutes(weights / MINUTES))),
        gates="\n".join(_gates(weights / "gates")),
        validation=len(split.captions("validation")),
        test=len(split.captions("test")),
        **{f"{part}_bases": ", ".join(bases) for part, bases in split.BASES.items()},
        probe=_count(probe.Probe()),
        probe_steps=probe.LOOP.iterations,
        students=_distilled(students),
    )


def _training(recipe: Recipe, minutes: dict[str, float]) -> Iterable[str]:
    others = [took for stage, took in minutes.items() if stage not in (styles.F0, MOTION_STAGE)]
    most = max(others, default=None)
    stages: dict[str, tuple[Stage, str, float | None]] = {
        "f_0 and text encoder": (recipe.first_base, "frames", minutes.get(styles.F0)),
        "each other base model": (recipe.other_bases, "frames", most),
        "motion module": (recipe.motion, "clips", minutes.get(MOTION_STAGE)),
    }
    for name, (stage, what, took) in stages.items():
        loop = stage.loop
        yield (
            f"| {name} | {stage.batch} {what} | {loop.iterations} | {loop.learning_rate:g} | "
            f"{loop.ema:g} | {'not recorded' if took is None else took} |"
        )


def _minutes(file: Path) -> dict[str, float]:
    """Return the minutes of each stage; those of a build by an older version are not recorded."""
    if not file.is_file():
        return {}
    with one_sentence(str(file), "delete it, and build again"):
        return {stage: float(took) for stage, took in records.read(file, dict).items()}


def _distilled(students: Sequence[MotionCheckpoint]) -> str:
    if not students:
        return ""
    rows = "\n".join(
        f"| `{student.path.name}` | {student.steps} | {student.metadata['teacher_steps']} steps | "
        f"{student.metadata['loss']} | {student.metadata['iterations']} |"
        for student in students
    )
    return _STUDENTS.format_map(students[0].metadata | {"rows": rows})


def _gates(folder: Path) -> Iterable[str]:
    for report in sorted(folder.glob("*.json")):
        for check in gates.read_report(report):
            sign = "at most" if check.at_most else "at least"
            verdict = "" if check.passed else " (**not reached**)"
            yield (
                f"| {report.stem} | {check.what} | {check.value:.3f} | "
                f"{sign} {check.bound}{verdict} |"
            )


def _count(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())
