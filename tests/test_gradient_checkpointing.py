"""Gradient checkpointing: the same gradients from less memory, and nothing left behind."""

import pytest
import torch
from animatediff_lightning.distill.engine.gradient_checkpointing import checkpointed
from animatediff_lightning.distill.miniature import models
from animatediff_lightning.motion_module.inject import inject

FRAMES = 4


@pytest.fixture
def parts():
    torch.manual_seed(0)
    unet = models.build_unet().requires_grad_(False)
    student, teacher = (models.build_motion_module(unet) for _ in range(2))
    for seed, module in enumerate((student, teacher)):
        module.initialise(torch.Generator().manual_seed(seed))
        for part in module.temporal_transformers().values():
            torch.nn.init.normal_(part.proj_out.weight, std=0.1)
    return unet, student, teacher


def run(unet, module, x):
    injection = inject(unet, module, num_frames=FRAMES)
    try:
        text = torch.ones(len(x), models.TOKENS, models.TEXT_WIDTH)
        return unet(x, 500, text).sample
    finally:
        injection.eject()


def gradients(unet, student, teacher):
    """Return the student's gradients where a teacher takes its place in between."""
    x = torch.randn(2 * FRAMES, 12, 8, 8, generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        wanted = run(unet, teacher, x)
    student.zero_grad()
    loss = (run(unet, student, x) - wanted).square().mean()
    with torch.no_grad():
        run(unet, teacher, x)
    loss.backward()
    return {k: p.grad.clone() for k, p in student.named_parameters()}


def saved_bytes(work):
    sizes = {}

    def keep(tensor):
        sizes[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        work()
    return sum(sizes.values())


@pytest.mark.slow
def test_the_gradients_are_the_same(parts):
    unet, student, teacher = parts
    plain = gradients(unet, student, teacher)
    with checkpointed(unet, student):
        found = gradients(unet, student, teacher)
    for name, gradient in plain.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-5, atol=1e-8)


def test_much_less_is_kept_for_the_backward_pass(parts):
    unet, student, _ = parts
    x = torch.randn(2 * FRAMES, 12, 8, 8)
    kept = []
    plain = saved_bytes(lambda: kept.append(run(unet, student, x)))
    with checkpointed(unet, student):
        found = saved_bytes(lambda: kept.append(run(unet, student, x)))
    assert found < plain / 2


def test_nothing_is_left_behind_even_after_an_error(parts):
    unet, student, _ = parts

    def fail():
        with checkpointed(unet, student):
            assert any("forward" in vars(m) for m in unet.modules())
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert not any("forward" in vars(m) for net in (unet, student) for m in net.modules())


def test_nothing_is_recomputed_where_no_gradient_is_wanted(parts, monkeypatch):
    unet, student, _ = parts

    def refuse(*_args, **_options):
        raise AssertionError

    path = "animatediff_lightning.distill.engine.gradient_checkpointing.checkpoint"
    monkeypatch.setattr(path, refuse)
    with checkpointed(unet, student), torch.no_grad():
        run(unet, student, torch.randn(FRAMES, 12, 8, 8))
