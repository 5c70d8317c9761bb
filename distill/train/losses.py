"""The losses of distillation, in float32 whatever the networks compute in.

AnimateDiff-Lightning section 3.3: L_D = -log p - log(1 - p_hat), L_G = -log p_hat, with p the
discriminator's probability that a state is the teacher's; written with logits, so that they stay
finite.
"""

from torch import Tensor
from torch.nn import functional


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


def huber(student: Tensor, target: Tensor, width: float = 1e-3) -> Tensor:
    """Return the pseudo-Huber distance sqrt(d^2 + w^2) - w, as AnimateLCM trains with."""
    difference = student.float() - target.float()
    return ((difference.square() + width**2).sqrt() - width).mean()
