"""The losses of one iteration of distillation, of the student and of the discriminator.

AnimateDiff-Lightning sections 3.2 and 3.3, SDXL-Lightning (arXiv 2402.13929) section 3. The
teacher's target is its real walk, made inside the step.
"""

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ...motion_module.module import MotionModule
from ..engine import distributed
from ..models.base_model import BaseModel, encode_prompts
from . import losses, trajectory
from .batches import Batch
from .config import Phase, Stage
from .discriminator import Discriminator
from .student import MovingBase, Student

Figures = dict[str, float]


@dataclass
class Networks:
    """Everything that computes in a phase. `student` and `judge` may be wrapped by DDP.

    bases: by slot; text_base: whose text encoder D hears (section 3.3 leaves it open: the one that
    D's backbone was trained with); base_index: by slot, as D counts them.
    """

    stage: Stage
    phase: Phase
    bases: dict[int, MovingBase]
    teacher: MotionModule
    student: nn.Module
    judge: nn.Module | None
    text_base: BaseModel
    base_index: dict[int, int]
    autocast: Callable[[], contextlib.AbstractContextManager]

    @property
    def plain_student(self) -> Student:
        return getattr(self.student, "module", self.student)

    @property
    def plain_judge(self) -> Discriminator:
        return getattr(self.judge, "module", self.judge)


@torch.no_grad()
def teach(networks: Networks, batch: Batch, text: Tensor) -> tuple[Tensor, Tensor]:
    """Return where the teacher's walk lands: clips (clips, frames, c, h, w), timesteps (clips,)."""
    stage, moving = networks.stage, networks.bases[batch.slot]
    steps = networks.phase.teacher_steps or stage.teacher_steps
    places = [trajectory.points(p, _stride_of(stage), steps) for p in batch.positions]
    without = moving.encode([""] * len(text)) if stage.cfg != 1 else text
    with moving.taught_by(networks.teacher):
        return trajectory.walk(
            lambda x, t: moving.predict_guided(x, t, text, without, stage.cfg), batch.x_t, places
        )


def land(networks: Networks, student: nn.Module, batch: Batch, text: Tensor):
    """Return where the student's single move lands, with timesteps as `teach`."""
    steps = networks.stage.student_steps
    ends = [trajectory.points(p, steps, steps) for p in batch.positions]
    return trajectory.walk(lambda x, t: student(batch.slot, x, t, text), batch.x_t, ends)


def mse_loss(networks: Networks, batch: Batch) -> tuple[Tensor, Figures]:
    """Return the distance of the student's landing from the teacher's (SDXL-Lightning 3.2)."""
    text = networks.bases[batch.slot].encode(batch.captions)
    wanted, _ = teach(networks, batch, text)
    found, _ = land(networks, networks.student, batch, text)
    return losses.mse(found, wanted), {}


def consistency_loss(networks: Networks, batch: Batch) -> tuple[Tensor, Figures]:
    """Return how much x0 differs before and after one guided move of the teacher.

    The baseline: latent consistency distillation (arXiv 2310.04378, AnimateLCM 2402.00769), with
    the student itself, held still, as the target network.
    """
    moving = networks.bases[batch.slot]
    text = moving.encode(batch.captions)
    moved, t_next = teach(networks, batch, text)
    ends = [(p, trajectory.CLEAN_POSITION) for p in batch.positions]
    found, _ = trajectory.walk(
        lambda x, t: networks.student(batch.slot, x, t, text), batch.x_t, ends
    )
    with torch.no_grad():
        eps = networks.plain_student(batch.slot, moved, t_next, text)
        wanted = trajectory.to_clean(moved, eps, t_next)
    return losses.huber(found, wanted), {}


def discriminator_loss(networks: Networks, batch: Batch) -> tuple[Tensor, Figures]:
    """Return L_D on where teacher and student land, both noised to t* where the stage says so."""
    text = networks.bases[batch.slot].encode(batch.captions)
    real = teach(networks, batch, text)
    with torch.no_grad():
        fake = land(networks, networks.plain_student, batch, text)
    real, fake = (trajectory.renoise(*state, batch.renoise, batch.noise) for state in (real, fake))
    on_teacher, on_student = _judged(networks, networks.judge, batch, [real, fake])
    figures = {
        "d_on_teacher": (on_teacher > 0).float().mean().item(),
        "d_on_student": (on_student < 0).float().mean().item(),
        "d_gap": (on_teacher - on_student).float().mean().item(),
    }
    return losses.discriminator(on_teacher, on_student), figures


def generator_loss(networks: Networks, batch: Batch) -> tuple[Tensor, Figures]:
    """Return L_G of where the student lands; D must be frozen."""
    text = networks.bases[batch.slot].encode(batch.captions)
    fake = land(networks, networks.student, batch, text)
    fake = trajectory.renoise(*fake, batch.renoise, batch.noise)
    (on_student,) = _judged(networks, networks.plain_judge, batch, [fake])
    return losses.generator(on_student), {}


def accumulate(
    networks: Networks,
    module: nn.Module,
    batches: Sequence[Batch],
    loss_of_batch: Callable[[Networks, Batch], tuple[Tensor, Figures]],
) -> Figures:
    """Add up the gradients of the batches' mean loss; processes meet once, in the last batch.

    Returns the loss and what it tells, this process's means.
    """
    sums: Figures = {}
    for n, batch in enumerate(batches):
        last = n == len(batches) - 1
        with contextlib.nullcontext() if last else distributed.no_sync(module):
            with networks.autocast():
                loss, figures = loss_of_batch(networks, batch)
            (loss / len(batches)).backward()
        for name, value in (figures | {"loss": loss.item()}).items():
            sums[name] = sums.get(name, 0.0) + value / len(batches)
    return sums


def _judged(networks: Networks, judge: nn.Module, batch: Batch, states) -> list[Tensor]:
    x_t = (batch.x_t, batch.timesteps) if networks.phase.conditional else None
    text = encode_prompts(networks.text_base, batch.captions)
    index = torch.full((len(text),), networks.base_index[batch.slot], device=text.device)
    return judge(states, x_t, text, index)


def _stride_of(stage: Stage) -> int:
    """Return how many steps as long as the student's make up the schedule."""
    return stage.teacher_steps if stage.loss == "consistency" else stage.student_steps
