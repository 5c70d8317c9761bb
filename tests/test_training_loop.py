"""The resumable loop: what it learns, and that a stop at any step changes nothing."""

import os
import signal
import threading

import pytest
import torch
from animatediff_lightning.distill.engine import loop
from animatediff_lightning.distill.engine.denoising_loss import draw_timesteps, target
from animatediff_lightning.distill.engine.loop import (
    CHECKPOINT,
    LoopOptions,
    Stopped,
    train_weights,
)

OPTIONS = LoopOptions(60, 0.15, warmup=5, ema=0.9)


def problem():
    """Return a line's two numbers, to be fitted to samples that each step draws anew."""
    weights = {"a": torch.nn.Parameter(torch.zeros(1)), "b": torch.nn.Parameter(torch.zeros(1))}

    def loss(step):
        x = torch.randn(32, generator=torch.Generator().manual_seed(step))
        return ((weights["a"] * x + weights["b"] - (2 * x - 1)) ** 2).mean()

    return weights, loss


def fitted(folder, options=OPTIONS):
    weights, loss = problem()
    train_weights("line", weights, loss, options, folder)
    return {k: p.item() for k, p in weights.items()}


def test_it_learns(tmp_path):
    found = fitted(tmp_path)
    assert found["a"] == pytest.approx(2, abs=0.3)
    assert found["b"] == pytest.approx(-1, abs=0.3)


def test_the_result_is_the_moving_average_and_zero_turns_it_off(tmp_path):
    average = fitted(tmp_path / "on")
    last = fitted(tmp_path / "off", LoopOptions(60, 0.15, warmup=5, ema=0))
    saved = torch.load(tmp_path / "on" / CHECKPOINT, weights_only=True)
    assert average == {k: t.item() for k, t in saved["average"].items()}
    assert last == {k: t.item() for k, t in saved["weights"].items()}
    assert average != last


@pytest.mark.parametrize("stop_at", [1, 13, 45])
def test_stopped_and_started_again_is_the_same_to_the_bit(tmp_path, stop_at):
    expected = fitted(tmp_path / "undisturbed")
    weights, loss = problem()

    def disturbed(step):
        if step == stop_at:
            os.kill(os.getpid(), signal.SIGTERM)
        return loss(step)

    with pytest.raises(Stopped):
        train_weights("line", weights, disturbed, OPTIONS, tmp_path / "disturbed")
    assert fitted(tmp_path / "disturbed") == expected


def test_signals_are_given_back(tmp_path):
    before = signal.getsignal(signal.SIGTERM)
    fitted(tmp_path)
    assert signal.getsignal(signal.SIGTERM) is before


def test_it_runs_in_a_thread_too(tmp_path):
    found = []
    thread = threading.Thread(target=lambda: found.append(fitted(tmp_path)))
    thread.start()
    thread.join()
    assert found


def test_a_loss_that_is_no_number_names_the_step(tmp_path):
    weights, loss = problem()

    def broken(step):
        return loss(step) * (float("nan") if step == 7 else 1)

    with pytest.raises(ValueError, match="not finite at step 7"):
        train_weights("line", weights, broken, OPTIONS, tmp_path)
    assert not (tmp_path / CHECKPOINT).exists()


def test_a_checkpoint_of_another_run_is_refused(tmp_path):
    fitted(tmp_path)
    with pytest.raises(ValueError, match="another run"):
        train_weights("other", {"c": torch.nn.Parameter(torch.zeros(1))}, None, OPTIONS, tmp_path)
    with pytest.raises(ValueError, match="another run"):
        fitted(tmp_path, LoopOptions(20, 0.05))


@pytest.mark.parametrize(
    "change",
    [
        None,
        {"step": "x"},
        {"losses": ["x"]},
        {"weights": []},
        {"average": {}},
        {"weights": {"a": torch.zeros(3), "b": torch.zeros(1)}},
        {"optimizer": {}},
        {"seconds": "x"},
    ],
)
def test_a_checkpoint_of_something_else_is_told(tmp_path, change):
    fitted(tmp_path, LoopOptions(1, 0.1))
    file = tmp_path / CHECKPOINT
    content = torch.load(file, weights_only=True)
    torch.save([] if change is None else content | change, file)
    with pytest.raises(ValueError, match=r"checkpoint\.pt could not be read .*; delete it, and"):
        fitted(tmp_path)


@pytest.mark.parametrize(
    ("wrong", "said"), [({"iterations": 0}, "iterations"), ({"ema": 1.0}, "ema")]
)
def test_impossible_options_are_refused(wrong, said):
    with pytest.raises(ValueError, match=said):
        LoopOptions(**({"iterations": 1, "learning_rate": 1} | wrong))


def test_the_rate_warms_up_and_falls_to_nothing():
    rates = [OPTIONS.rate(step) for step in range(OPTIONS.iterations)]
    assert rates[0] == pytest.approx(0.15 / 5)
    assert rates.index(max(rates)) == 4
    assert rates[-1] < 0.15 * 0.001


def test_timesteps_are_uniform_at_one_and_noisier_above():
    generator = torch.Generator().manual_seed(0)
    even, noisy = (draw_timesteps(20000, generator, bias) for bias in (1.0, 1.5))
    assert even.min() == 0
    assert even.max() == 999
    assert (even > 499).float().mean() == pytest.approx(0.5, abs=0.02)
    assert (noisy > 499).float().mean() == pytest.approx(0.63, abs=0.02)


def test_the_target_is_what_the_base_predicts():
    x0, eps = torch.randn(2, 2, 4, 4, 4, generator=torch.Generator().manual_seed(0))
    t = torch.tensor([10, 900])
    assert torch.equal(target(x0, eps, t, "epsilon"), eps)
    v = target(x0, eps, t, "v_prediction")
    wanted = eps[0] * v_alpha(10) - x0[0] * (1 - v_alpha(10) ** 2) ** 0.5
    torch.testing.assert_close(v[0], wanted, rtol=1e-5, atol=1e-5)
    with pytest.raises(ValueError, match="sample"):
        target(x0, eps, t, "sample")


def v_alpha(t):
    from animatediff_lightning.samplers.schedule import alphas_cumprod

    return alphas_cumprod()[t].sqrt().float()


def test_checkpoints_are_written_whole(tmp_path, monkeypatch):
    weights, loss = problem()
    monkeypatch.setattr(loop.torch, "save", lambda *_: (_ for _ in ()).throw(OSError("full")))
    with pytest.raises(OSError, match="full"):
        train_weights("line", weights, loss, OPTIONS, tmp_path)
    assert list(tmp_path.iterdir()) == []
