"""The noise schedule and the grids against the numbers of paper.md and against diffusers."""

from itertools import pairwise

import pytest
import torch
from animatediff_lightning.samplers import schedule
from diffusers import EulerDiscreteScheduler


def peer(num_steps: int) -> EulerDiscreteScheduler:
    scheduler = EulerDiscreteScheduler(
        timestep_spacing="trailing",
        beta_schedule="linear",
        beta_start=0.00085,
        beta_end=0.012,
    )
    scheduler.set_timesteps(num_steps)
    return scheduler


def test_last_timestep_has_the_papers_alpha_bar_and_sigma():
    ab = schedule.alphas_cumprod()
    assert ab.shape == (1000,)
    assert ab.dtype == torch.float64
    assert f"{ab[-1]:.7f}" == "0.0015790"
    assert f"{ab[-1].sqrt():.6f}" == "0.039736"
    assert f"{schedule.sigmas(1)[0]:.4f}" == "25.1461"


def test_sigmas_for_four_steps_are_the_papers():
    found = [f"{s:.4f}" for s in schedule.sigmas(4).tolist()]
    assert found == ["25.1461", "6.5572", "2.2760", "0.8670", "0.0000"]
    assert schedule.sigmas(4)[-1] == 0


@pytest.mark.parametrize(
    ("steps", "grid"),
    [
        (8, [999, 874, 749, 624, 499, 374, 249, 124]),
        (4, [999, 749, 499, 249]),
        (2, [999, 499]),
        (1, [999]),
    ],
)
def test_trailing_grids_are_the_papers(steps, grid):
    assert schedule.trailing_timesteps(steps) == grid


@pytest.mark.parametrize("steps", [1, 2, 3, 4, 6, 7, 8, 32, 128])
def test_grid_and_sigmas_equal_diffusers(steps):
    scheduler = peer(steps)
    assert schedule.trailing_timesteps(steps) == scheduler.timesteps.long().tolist()
    assert schedule.sigmas(steps).dtype == torch.float32
    torch.testing.assert_close(schedule.sigmas(steps), scheduler.sigmas, rtol=2e-5, atol=0)


def test_grids_are_nested():
    grids = [set(schedule.trailing_timesteps(n)) for n in (128, 32, 8, 4, 2, 1)]
    for finer, coarser in pairwise(grids):
        assert coarser < finer


@pytest.mark.parametrize("steps", [1, 3, 8])
def test_start_step_is_a_suffix_of_the_grid(steps):
    for start in range(steps):
        assert (
            schedule.trained_timesteps(steps, start) == schedule.trailing_timesteps(steps)[start:]
        )
        assert torch.equal(schedule.sigmas(steps, start), schedule.sigmas(steps)[start:])


@pytest.mark.parametrize("steps", [0, -4, 1001])
def test_impossible_steps_are_refused(steps):
    with pytest.raises(ValueError, match=f"between 1 and 1000, not {steps};"):
        schedule.trailing_timesteps(steps)


@pytest.mark.parametrize("start", [-1, 4, 5])
def test_start_step_outside_the_grid_is_refused(start):
    with pytest.raises(ValueError, match=f"between 0 and 3 for 4 steps, not {start};"):
        schedule.trained_timesteps(4, start)


def test_alpha_bar_keeps_the_shape_and_is_one_for_the_clean_sample():
    ab = schedule.alpha_bar(torch.tensor([[0, 999], [schedule.CLEAN, 499]]))
    assert ab.shape == (2, 2)
    assert ab[1, 0] == 1
    assert ab[0, 0] == pytest.approx(1 - 0.00085, abs=1e-12)


def test_the_table_cannot_be_changed_by_a_caller():
    schedule.alphas_cumprod().zero_()
    assert schedule.alphas_cumprod()[0] > 0.9
