"""The losses of distillation: distances, and what a batch of clips costs student or discriminator.

AnimateDiff-Lightning sections 3.2 and 3.3, SDXL-Lightning (arXiv 2402.13929) section 3. The
teacher's target is its real trajectory, made within the step. Distances are float32 whatever the
networks compute in, and those of probabilities are written with logits, so that they stay finite:
L_D = -log p - log(1 - p_hat) and L_G = -log p_hat, with p the discriminator's probability that a
state is the teacher's.
"""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from ...motion_module.module import MotionModule
from ..models.base_model import BaseModel, encode_prompts
from . import trajectory
from .batches import Batch
from .config import Phase, Stage
from .discriminator import Discriminator, State
from .student import MovingBase, Student

# of a batch, single values on the device: a GPU would wait where one is asked for its number
Figures = dict[str, Tensor]


@dataclass
class Networks:
    """Everything that computes in a phase.

    DDP may wrap `student`, `discriminator` and `fake`; the plain ones are never wrapped. Where no
    loss asks for a discriminator, or a fake, both are None. relativistic: how D is paired.

    real: the undistilled motion module, whose guided score the fake's is compared with, or None;
    averaged: a motion module of the student's averaged weights, where a loss asks for it, or None;
    bases: by slot; text_base: whose text encoder D hears (section 3.3 leaves it open: the one that
    D's backbone was trained with); base_index: by slot, as D counts them; base_names: of all
    processes, in that order.
    """

    stage: Stage
    phase: Phase
    bases: dict[int, MovingBase]
    teacher: MotionModule
    real: MotionModule | None
    plain_student: Student
    student: nn.Module
    plain_discriminator: Discriminator | None
    discriminator: nn.Module | None
    plain_fake: Student | None
    fake: nn.Module | None
    text_base: BaseModel
    base_index: dict[int, int]
    base_names: Sequence[str]
    relativistic: bool
    autocast: Callable[[], contextlib.AbstractContextManager]
    averaged: MotionModule | None = None

    @property
    def critic(self) -> nn.Module | None:
        """What learns beside the student: the discriminator, the fake or nothing."""
        return self.fake if self.discriminator is None else self.discriminator

    @property
    def plain_critic(self) -> nn.Module | None:
        return self.plain_fake if self.plain_discriminator is None else self.plain_discriminator

    @contextlib.contextmanager
    def critic_learns(self) -> Iterator[None]:
        """Let the fake, if any, move all bases: its backward may compute its forward anew."""
        with contextlib.ExitStack() as stack:
            if self.plain_fake is not None:
                for base in {id(b): b for b in self.bases.values()}.values():
                    stack.enter_context(base.moved_by(self.plain_fake.motion_module))
            yield


LossOfBatch = Callable[[Networks, Batch], tuple[Tensor, Figures]]


def mse(student: Tensor, teacher: Tensor) -> Tensor:
    """Return the mean squared distance of where student and teacher land."""
    return functional.mse_loss(student.float(), teacher.float())


def discriminator(teacher_logits: Tensor, student_logits: Tensor) -> Tensor:
    """Return L_D = -log sigmoid(teacher) - log(1 - sigmoid(student)), the clips' mean."""
    teacher, student = teacher_logits.float(), student_logits.float()
    return functional.softplus(-teacher).mean() + functional.softplus(student).mean()


def generator(student_logits: Tensor) -> Tensor:
    """Return L_G = -log sigmoid(student), non-saturating, the clips' mean."""
    return functional.softplus(-student_logits.float()).mean()


def relativistic(more: Tensor, less: Tensor) -> Tensor:
    """Return -log sigmoid(more - less) of two logits of the same x_t, the clips' mean.

    Relativistic pairing (arXiv 1807.00734): with the teacher's logit as `more` it is D's loss, with
    the student's the student's. What a clip shows is the same on both sides and falls out.
    """
    return functional.softplus(less.float() - more.float()).mean()


def huber(student: Tensor, target: Tensor, width: float = 1e-3) -> Tensor:
    """Return the pseudo-Huber distance sqrt(d^2 + w^2) - w, as AnimateLCM trains with."""
    difference = student.float() - target.float()
    return ((difference.square() + width**2).sqrt() - width).mean()


def mse_of_batch(networks: Networks, batch: Batch) -> tuple[Tensor, Figures]:
    """Return the distance of the student's landing from the teacher's (SDXL-Lightning 3.2)."""
    text = networks.bases[batch.slot].encode(batch.captions)
    target, _ = follow_teacher(networks, batch, text)
    landing, _ = move_student(networks, networks.student, batch, text)
    return mse(landing, target), {}


def consistency_of_batch(networks: Networks, batch: Batch) -> tuple[Tensor, Figures]:
    """Return how much x0 differs before and after one guided move of the teacher.

    The baseline: latent consistency distillation (arXiv 2310.04378, AnimateLCM 2402.00769). The
    target network is the student itself, held still, or its average.
    """
    base = networks.bases[batch.slot]
    text = base.encode(batch.captions)
    moved, t_next = follow_teacher(networks, batch, text)
    to_clean = [(p, trajectory.CLEAN_POSITION) for p in batch.positions]
    x0, _ = trajectory.follow(
        lambda x, t: networks.student(batch.slot, x, t, text), batch.x_t, to_clean
    )
    of_target = networks.averaged or networks.plain_student.motion_module
    with torch.no_grad(), base.moved_by(of_target):
        target = trajectory.to_clean(moved, base.predict_eps(moved, t_next, text), t_next)
    return huber(x0, target), {}


def discriminator_of_batch(networks: Networks, batch: Batch) -> tuple[Tensor, Figures]:
    """Return L_D on where teacher and student land, both noised to t* where the stage says so."""
    text = networks.bases[batch.slot].encode(batch.captions)
    real = follow_teacher(networks, batch, text)
    with torch.no_grad():
        fake = move_student(networks, networks.plain_student, batch, text)
    real, fake = (trajectory.renoise(*state, batch.renoise, batch.noise) for state in (real, fake))
    of_teacher, of_student = _logits(networks, networks.discriminator, batch, [real, fake])
    gap = of_teacher - of_student
    figures = {
        "d_on_teacher": (of_teacher > 0).float().mean(),
        "d_on_student": (of_student < 0).float().mean(),
        "d_gap": gap.detach().float().mean(),
    }
    if not networks.relativistic:
        return discriminator(of_teacher, of_student), figures
    right = (gap > 0).float().mean()  # a single logit means nothing
    return relativistic(of_teacher, of_student), figures | {
        "d_on_teacher": right,
        "d_on_student": right,
    }


def generator_of_batch(networks: Networks, batch: Batch) -> tuple[Tensor, Figures]:
    """Return L_G of where the student lands, with the phase's share of MSE; D must be frozen."""
    text = networks.bases[batch.slot].encode(batch.captions)
    weight = networks.phase.mse_weight
    figures: Figures = {}
    landing = move_student(networks, networks.student, batch, text)
    states = [landing]
    if networks.relativistic or weight:
        states.append(follow_teacher(networks, batch, text))
    seen = states if networks.relativistic else states[:1]
    seen = [trajectory.renoise(*state, batch.renoise, batch.noise) for state in seen]
    logits = _logits(networks, networks.plain_discriminator, batch, seen)
    loss = relativistic(*logits) if networks.relativistic else generator(*logits)
    if weight:
        apart, figures = weighted_mse(weight, landing[0], states[1][0])
        loss = loss + apart
    return loss, figures


def weighted_mse(weight: float, landing: Tensor, target: Tensor) -> tuple[Tensor, Figures]:
    """Return a share of the distance of two landings, and how far they are apart."""
    apart = mse(landing, target)
    return weight * apart, {"mse": apart.detach()}


@torch.no_grad()
def follow_teacher(networks: Networks, batch: Batch, text: Tensor) -> State:
    """Return where the teacher's trajectory lands: clips (clips, frames, c, h, w) and timesteps."""
    stage, base = networks.stage, networks.bases[batch.slot]
    steps = stage.teacher_steps_of(networks.phase)
    stride = stage.teacher_steps if stage.loss == "consistency" else stage.student_steps
    points = [trajectory.points(p, stride, steps) for p in batch.positions]
    negative = base.encode([""] * len(text)) if stage.cfg != 1 else text
    with base.moved_by(networks.teacher):
        return trajectory.follow(
            lambda x, t: base.predict_guided(x, t, text, negative, stage.cfg), batch.x_t, points
        )


def move_student(networks: Networks, student: nn.Module, batch: Batch, text: Tensor) -> State:
    """Return where the student's single move lands, as `follow_teacher`."""
    steps = networks.stage.student_steps
    points = [trajectory.points(p, steps, steps) for p in batch.positions]
    return trajectory.follow(lambda x, t: student(batch.slot, x, t, text), batch.x_t, points)


def _logits(
    networks: Networks, discriminator: nn.Module | None, batch: Batch, states: Sequence[State]
) -> list[Tensor]:
    assert discriminator is not None, "an adversarial phase has one"
    x_t = (batch.x_t, batch.timesteps) if networks.phase.conditional else None
    text = encode_prompts(networks.text_base, batch.captions)
    index = torch.full((len(text),), networks.base_index[batch.slot], device=text.device)
    return discriminator(states, x_t, text, index)
