"""The `export` command: a run's students in both released layouts, with a model card.

AnimateDiff-Lightning released animatediff_lightning_{1,2,4,8}step_{comfyui,diffusers}.safetensors.
"""

from pathlib import Path

import torch

from ..motion_module import checkpoint
from ..motion_module.checkpoint import MotionCheckpoint
from ..motion_module.files import atomic_path
from .request import check_writable
from .run_folder import RunFolder

LAYOUTS = ("comfyui", "diffusers")
CARD = "README.md"
_TEXT = """# {name}: model card

Motion modules for few-step video, distilled by `animatediff-lightning train` (progressive
adversarial distillation, AnimateDiff-Lightning, arXiv 2403.12706). Each is one file in two key
layouts: `_comfyui` for ComfyUI's Load Motion Module, `_diffusers` for diffusers' MotionAdapter.

| file | steps | distilled from | iterations | loss |
|---|---|---|---|---|
{rows}

- **Use:** Euler on linear betas (0.00085 to 0.012) at trailing timesteps, cfg 1, the file's steps.
- **Trained with the base models:** {bases}. Others of their family may work.
- **Frames:** {frames}; clips a step: {global_batch}; seed {seed}; config {training}.
- **Norm scope:** {norm_scope}: each frame is normalised by itself, as in ComfyUI. Diffusers'
  UNetMotionModel takes statistics over the clip, so that its clips differ a little.
- **Not known:** what licences of base models and clips ask for; whoever shares these files must.
"""


def export(run: Path, out: Path, name: str, dtype: torch.dtype, force: bool) -> list[Path]:
    """Write every student of a run's folder as {name}_Nstep_LAYOUT.safetensors, and the card.

    Returns the files. Raises ValueError where the run has no student yet, or a file is there
    already and not `force`.
    """
    found = students(run)
    targets = [
        (known, layout, out / f"{name}_{known.path.stem}_{layout}.safetensors")
        for known in found
        for layout in LAYOUTS
    ]
    card = out / CARD
    there = [f for f in (card, *(target for *_, target in targets)) if f.exists()]
    if there and not force:
        raise ValueError(f"{there[0]} exists; pass --force to overwrite it, or another --out.")
    check_writable(card)
    for known, layout, target in targets:
        checkpoint.save(known.build(dtype=dtype), target, layout=layout, metadata=known.metadata)
    with atomic_path(card) as temporary:
        temporary.write_text(_card(name, found), encoding="utf-8")
    return [*(target for *_, target in targets), card]


def students(run: Path) -> list[MotionCheckpoint]:
    """Return a run's finished students, most steps first; ValueError where there is none."""
    files = RunFolder(run).students()
    if not files:
        raise ValueError(
            f"{run} holds no finished student; give the folder that `train` wrote, once its first "
            "stage is done."
        )
    return sorted((checkpoint.load(f) for f in files), key=lambda known: -known.steps)


def _card(name: str, found: list[MotionCheckpoint]) -> str:
    known = found[0].metadata
    rows = (
        f"| {name}_{c.path.stem} | {c.steps} | {c.metadata['teacher_steps']} steps | "
        f"{c.metadata['iterations']} | {c.metadata['loss']} |"
        for c in found
    )
    return _TEXT.format(name=name, rows="\n".join(rows), **known)
