"""The `export` command: a run's students in both released layouts, with a model card.

AnimateDiff-Lightning released animatediff_lightning_{1,2,4,8}step_{comfyui,diffusers}.safetensors.
"""

from pathlib import Path

import torch

from ...motion_module import checkpoint
from ...motion_module.checkpoint import MotionCheckpoint
from ...motion_module.files import atomic_path
from ...motion_module.keys import Layout
from ..files.output import check_writable
from ..models.student_files import METHODS, students

LAYOUTS: tuple[Layout, ...] = ("comfyui", "diffusers")
CARD = "README.md"
_TEXT = """# {name}: model card

Motion modules for few-step video, distilled by `animatediff-lightning train` ({methods}).
Each is one file in two key layouts: `_comfyui` for ComfyUI's Load Motion Module, `_diffusers` for
diffusers' MotionAdapter.

| file | steps | distilled from | iterations | loss | config |
|---|---|---|---|---|---|
{rows}

{use}
- **Trained with the base models:** {bases}. Others of their family may work.
- **Frames:** {frames}; clips a step: {global_batch}; seed {seed}.
- **Norm scope:** {norm_scope}: {scope}
- **Licences:** not recorded here. Check the licences of the base models and clips before you share
  these files.
"""

_SCOPES = {
    "frame": "each frame is normalised by itself, as in ComfyUI. Diffusers'\n"
    "  UNetMotionModel takes statistics over the clip, so that its clips differ a little.",
    "clip": "statistics are taken over the clip, as in diffusers' UNetMotionModel.",
}
_BETAS = "linear betas (0.00085 to 0.012)"
_USE = f"- **Use:** Euler and the file's steps, on {_BETAS} at trailing timesteps, cfg 1."
_USE_OF_CONSISTENCY = (
    f"- **Use of the consistency module:** the sampler `lcm` and 1 to 8 steps, on {_BETAS}, cfg 1."
)


def export(run: Path, out: Path, name: str, dtype: torch.dtype, force: bool) -> list[Path]:
    """Write every student of a run's folder as {name}_Nstep_LAYOUT.safetensors, and the card.

    Returns the files. Raises ValueError, before any is written, where the run has no student yet,
    one of them does not tell how it was made, or a file is there already and not `force`.
    """
    finished = students(run)
    targets = [
        (student, layout, out / f"{name}_{student.path.stem}_{layout}.safetensors")
        for student in finished
        for layout in LAYOUTS
    ]
    card = out / CARD
    existing = [f for f in (card, *(target for *_, target in targets)) if f.exists()]
    if existing and not force:
        raise ValueError(f"{existing[0]} exists; pass --force to overwrite it, or another --out.")
    check_writable(card)
    text = _card(name, finished)
    for student, layout, target in targets:
        checkpoint.save(
            student.build(dtype=dtype), target, layout=layout, metadata=student.metadata
        )
    with atomic_path(card) as temporary:
        temporary.write_text(text, encoding="utf-8")
    return [*(target for *_, target in targets), card]


def _card(name: str, students: list[MotionCheckpoint]) -> str:
    metadata = students[0].metadata
    rows = (
        f"| {name}_{c.path.stem} | {c.steps} | {c.metadata['teacher_steps']} steps | "
        f"{c.metadata['iterations']} | {c.metadata['loss']} | {c.metadata['training']} |"
        for c in students
    )
    losses = [loss for loss in METHODS if any(c.metadata["loss"] == loss for c in students)]
    use = [_USE] if losses != ["consistency"] else []
    use += [_USE_OF_CONSISTENCY] if "consistency" in losses else []
    words = {
        "name": name,
        "rows": "\n".join(rows),
        "use": "\n".join(use),
        "methods": "; ".join(METHODS[loss] for loss in losses),
        "scope": _SCOPES[metadata["norm_scope"]],
    }
    return _TEXT.format_map(metadata | words)
