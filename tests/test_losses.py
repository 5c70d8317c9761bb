"""The losses and their gradients, against formulas by hand."""

import torch
from animatediff_lightning.distill.train import losses

TEACHER = torch.tensor([0.3, -1.2, 2.0], dtype=torch.float32, requires_grad=True)
STUDENT = torch.tensor([1.5, -0.4, 0.1], dtype=torch.float32, requires_grad=True)


def test_l_d_and_its_gradients():
    loss = losses.discriminator(TEACHER, STUDENT)
    p, p_hat = TEACHER.sigmoid(), STUDENT.sigmoid()
    torch.testing.assert_close(loss, (-p.log() - (1 - p_hat).log()).mean())
    by_teacher, by_student = torch.autograd.grad(loss, [TEACHER, STUDENT])
    torch.testing.assert_close(by_teacher, (p - 1) / 3)
    torch.testing.assert_close(by_student, p_hat / 3)


def test_l_g_and_its_gradient():
    loss = losses.generator(STUDENT)
    p_hat = STUDENT.sigmoid()
    torch.testing.assert_close(loss, (-p_hat.log()).mean())
    (gradient,) = torch.autograd.grad(loss, [STUDENT])
    torch.testing.assert_close(gradient, (p_hat - 1) / 3)


def test_l_g_still_moves_a_student_that_is_wholly_found_out():
    logits = torch.full((4,), -60.0, requires_grad=True)
    loss = losses.generator(logits)
    loss.backward()
    assert torch.isfinite(loss)
    torch.testing.assert_close(logits.grad, torch.full((4,), -0.25))


def test_a_relativistic_pair_knows_nothing_but_the_difference():
    loss = losses.relativistic(TEACHER, STUDENT)
    p = (TEACHER - STUDENT).sigmoid()
    torch.testing.assert_close(loss, (-p.log()).mean())
    by_teacher, by_student = torch.autograd.grad(loss, [TEACHER, STUDENT])
    torch.testing.assert_close(by_teacher, (p - 1) / 3)
    torch.testing.assert_close(by_student, (1 - p) / 3)
    torch.testing.assert_close(losses.relativistic(TEACHER + 5, STUDENT + 5), loss)


def test_mse_and_huber():
    a, b = torch.tensor([1.0, 2.0]), torch.tensor([1.0, 5.0])
    assert losses.mse(a, b).item() == 4.5
    assert abs(losses.huber(a, b).item() - (3.0 - 1e-3) / 2) < 1e-5


def test_losses_are_float32_whatever_comes():
    half = torch.zeros(2, dtype=torch.bfloat16)
    for loss in (losses.discriminator(half, half), losses.generator(half), losses.mse(half, half)):
        assert loss.dtype == torch.float32
