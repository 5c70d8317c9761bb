"""Distribution matching: the student's clips are pulled to where the guided teacher's are dense.

After DMD2 (arXiv 2405.14867) and TDM (arXiv 2503.06674), for one motion module in several frozen
base models; the renoising of landings that are not clean is derived here. Two scores are compared
on the student's own clips: the teacher's under guidance ("real"), and that of a third motion
module, the fake, which keeps learning what the student makes. Student, teacher and fake share the
frozen bases. No clips are needed, only captions: the student walks from pure noise.

With s where a step lands, y its landing and tau > s: x_tau = a y + b noise, where
a^2 = alpha_bar_tau / alpha_bar_s and b^2 = 1 - a^2. Denoising score matching of x_tau given y wants
eps_fake = sigma_tau / b * noise, so the fake minimises |b / sigma_tau * eps_fake - noise|^2.
"""

from dataclasses import replace

import torch
from torch import Tensor

from ...samplers import guidance, schedule
from . import trajectory
from .batches import Batch
from .discriminator import State
from .losses import Figures, Networks, follow_teacher, weighted_mse


def fake_of_batch(networks: Networks, batch: Batch) -> tuple[Tensor, Figures]:
    """Return how far the fake is from the score of the student's clips; bases must hold it."""
    base = networks.bases[batch.slot]
    text = base.encode(batch.captions)
    with torch.no_grad(), base.moved_by(networks.plain_student.motion_module):
        start = walk(networks, batch, text)
        eps = networks.plain_student(batch.slot, *start, text)
        landing = land(networks, batch, start, eps)
    x, tau = trajectory.renoise(*landing, batch.renoise, batch.noise)
    assert networks.fake is not None, "a distribution phase has one"
    eps = networks.fake(batch.slot, x, tau, text)
    return score_error(eps, landing[1], tau, batch.noise), {}


def distribution_of_batch(networks: Networks, batch: Batch) -> tuple[Tensor, Figures]:
    """Return a loss whose gradient moves x0 of the student from the fake's x0 to the teacher's.

    The phase's share of MSE between landings is added to it. Its figures tell how well the fake and
    the unguided teacher denoise what the student makes: where they are equal, the fake says no more
    than the teacher does.
    """
    text = networks.bases[batch.slot].encode(batch.captions)
    start = walk(networks, batch, text)
    eps = networks.student(batch.slot, *start, text)
    x0, landing = trajectory.to_clean(start[0], eps, start[1]), land(networks, batch, start, eps)
    gradient, figures = distribution_gradient(networks, batch, text, x0.detach(), landing)
    loss, weight = (x0 * gradient).mean(), networks.phase.mse_weight
    if not weight:
        return loss, figures
    target, _ = follow_teacher(networks, replace(batch, x_t=start[0]), text)
    apart, more = weighted_mse(weight, landing[0], target)
    return loss + apart, figures | more


@torch.no_grad()
def distribution_gradient(
    networks: Networks, batch: Batch, text: Tensor, x0: Tensor, landing: State
) -> tuple[Tensor, Figures]:
    """Return where x0 of the student must not go, shaped like it, and figures of both scores."""
    stage, base = networks.stage, networks.bases[batch.slot]
    assert networks.plain_fake is not None, "a distribution phase has one"
    assert networks.real is not None, "a distribution phase has one"
    x, tau = trajectory.renoise(*landing, batch.renoise, batch.noise)
    with base.moved_by(networks.plain_fake.motion_module):
        of_fake = base.predict_eps(x, tau, text)
    with base.moved_by(networks.real):
        of_teacher = base.predict_eps(x, tau, text)
        guided = of_teacher
        if stage.guidance_of_real != 1:
            without = base.predict_eps(x, tau, base.encode([""] * len(text)))
            guided = guidance.guide(of_teacher, without, stage.guidance_of_real)
    x0_fake, x0_real = (trajectory.to_clean(x, e, tau) for e in (of_fake, guided))
    far = (x0 - x0_real).abs().flatten(1).mean(1).clamp(min=stage.normaliser_floor)
    figures = {
        name: score_error(e, landing[1], tau, batch.noise)
        for name, e in (("error_of_fake", of_fake), ("error_of_teacher", of_teacher))
    }
    return (x0_fake - x0_real) / far.reshape(-1, *(1,) * (x0.ndim - 1)), figures


@torch.no_grad()
def walk(networks: Networks, batch: Batch, text: Tensor) -> State:
    """Return the student's own clips at the start of each clip's step, from the noise x_t."""
    points = [trajectory.walk(p, networks.stage.student_steps) for p in batch.positions]
    student = networks.plain_student
    return trajectory.follow(lambda x, t: student(batch.slot, x, t, text), batch.x_t, points)


def land(networks: Networks, batch: Batch, start: State, eps: Tensor) -> State:
    """Return where the step of each clip lands, and those timesteps."""
    steps = networks.stage.student_steps
    points = [trajectory.points(p, steps, steps) for p in batch.positions]
    return trajectory.follow(lambda _x, _t: eps, start[0], points)


def score_error(eps: Tensor, landed: Tensor, tau: Tensor, noise: Tensor) -> Tensor:
    """Return the mean of |b / sigma_tau * eps - noise|^2, see the module's docstring."""
    kept = schedule.alpha_bar(tau) / schedule.alpha_bar(landed)
    weight = ((1 - kept) / (1 - schedule.alpha_bar(tau))).sqrt().to(eps.dtype).to(eps.device)
    weighted = weight.reshape(-1, *(1,) * (eps.ndim - 1)) * eps
    return (weighted - noise).square().mean()
