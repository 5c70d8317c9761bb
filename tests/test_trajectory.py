"""Where students start, what the teacher walks through, and renoising, against algebra."""

import itertools
from fractions import Fraction

import pytest
import torch
from animatediff_lightning.distill.train import trajectory
from animatediff_lightning.distill.train.config import Phase, Stage
from animatediff_lightning.samplers import prediction, schedule

PHASES = (Phase(iterations=1),)


def stage(teacher, student, **options):
    options.setdefault("loss", "adversarial")
    return Stage(teacher_steps=teacher, student_steps=student, phases=PHASES, **options)


@pytest.mark.parametrize("steps", [1, 2, 4, 8, 32, 128])
def test_students_start_on_their_trailing_grid(steps):
    starts = trajectory.start_positions(stage(steps * 2, steps))
    assert [trajectory.timestep(p) for p in starts] == schedule.trailing_timesteps(steps)


@pytest.mark.parametrize(("steps", "different"), [(128, 8), (32, 8), (8, 0), (1, 0)])
def test_the_other_rounding_differs_by_one_timestep_on_the_long_grids_alone(steps, different):
    starts = trajectory.start_positions(stage(steps * 2, steps))
    apart = [trajectory.timestep(p) - round(p - 1) for p in starts]
    assert {abs(a) for a in apart} <= {0, 1}
    assert sum(a != 0 for a in apart) == different


def test_a_consistency_student_starts_on_the_whole_grid_of_its_teacher():
    starts = trajectory.start_positions(stage(32, 1, loss="consistency"))
    assert [trajectory.timestep(p) for p in starts] == schedule.trailing_timesteps(32)


@pytest.mark.parametrize(("teacher", "student"), [(128, 32), (32, 8), (8, 4), (4, 2), (2, 1)])
def test_the_teacher_walks_its_own_grid_between_two_points_of_the_students(teacher, student):
    own = [*schedule.trailing_timesteps(teacher), schedule.CLEAN]
    landing = [*schedule.trailing_timesteps(student)[1:], schedule.CLEAN]
    for start, end in zip(
        trajectory.start_positions(stage(teacher, student)), landing, strict=True
    ):
        points = [trajectory.timestep(p) for p in trajectory.points(start, student, teacher)]
        first = own.index(points[0])
        assert points == own[first : first + teacher // student + 1]
        assert points[-1] == end


def test_the_last_landing_is_the_clean_sample_and_not_timestep_0():
    last = trajectory.start_positions(stage(128, 32))[-1]
    assert trajectory.timestep(trajectory.points(last, 32, 128)[-1]) == schedule.CLEAN


def test_starts_below_a_whole_stride_end_at_the_clean_sample():
    points = trajectory.points(Fraction(250), 2, 4)
    assert [trajectory.timestep(p) for p in points] == [249, -1, -1]


def test_a_teacher_that_skips_a_level_takes_more_moves_to_the_same_landing():
    near, far = (trajectory.points(Fraction(1000), 2, teacher) for teacher in (4, 8))
    assert len(far) == 2 * len(near) - 1
    assert far[-1] == near[-1]


def test_the_walk_equals_a_plain_loop_for_clips_at_different_places():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(3, 2, 4, 3, 3, generator=generator, dtype=torch.float64)
    starts = [Fraction(1000), Fraction(500), Fraction(250)]
    places = [trajectory.points(p, 2, 8) for p in starts]

    def predict(x, t):
        return torch.sin(x) * (1 + t.double().reshape(-1, 1, 1, 1, 1) / 1000)

    found, end = trajectory.follow(predict, x, places)
    for i, points in enumerate(places):
        y = x[i]
        for a, b in itertools.pairwise(points):
            t, t_next = trajectory.timestep(a), trajectory.timestep(b)
            if t == t_next:
                continue
            eps = torch.sin(y) * (1 + t / 1000)
            ab, ab_next = (schedule.alpha_bar(torch.tensor(s)) for s in (t, t_next))
            x0 = (y - (1 - ab).sqrt() * eps) / ab.sqrt()
            y = ab_next.sqrt() * x0 + (1 - ab_next).sqrt() * eps
        torch.testing.assert_close(found[i], y, rtol=1e-12, atol=1e-12)
    assert end.tolist() == [499, schedule.CLEAN, schedule.CLEAN]


def test_the_walk_asks_no_more_once_every_clip_is_clean():
    asked = []

    def predict(x, t):
        asked.append(t.tolist())
        return x

    trajectory.follow(predict, torch.ones(1, 2, 1, 1, 1), [trajectory.points(Fraction(250), 2, 8)])
    assert asked == [[249], [124]]


def test_renoising_a_clean_clip_is_the_forward_process():
    x, noise = torch.randn(2, 2, 3, 4, 4), torch.randn(2, 2, 3, 4, 4)
    clean = torch.tensor([schedule.CLEAN, schedule.CLEAN])
    found, t = trajectory.renoise(x, clean, (9, 749), noise)
    assert t.tolist() == [9, 749]
    torch.testing.assert_close(found, prediction.forward(x, noise, t))


def test_renoising_goes_up_along_the_forward_process_and_never_down():
    x0, eps, noise = (torch.randn(20000, 1, 1, 1, 1, dtype=torch.float64) for _ in range(3))
    x = prediction.forward(x0, eps, 499)
    t = torch.full((len(x),), 499)
    up, at = trajectory.renoise(x, t, (749,) * len(x), noise)
    assert set(at.tolist()) == {749}
    alpha, sigma = prediction.coefficients(749, x0)
    # the mean given x0, and the variance, of x_749 as if noised from x0 at once
    assert abs(((up - alpha * x0).square().mean() / sigma**2 - 1).item()) < 0.03
    down, at = trajectory.renoise(x, t, (9,) * len(x), noise)
    assert torch.equal(down, x)
    assert set(at.tolist()) == {499}


def test_without_a_t_star_nothing_is_noised():
    x = torch.randn(1, 2, 1, 2, 2)
    found, t = trajectory.renoise(x, torch.tensor([-1]), (None,), torch.randn_like(x))
    assert torch.equal(found, x)
    assert t.tolist() == [-1]
