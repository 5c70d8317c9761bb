"""The discriminator: what it is made from, what it takes, and what learns in it."""

import pytest
import torch
from animatediff_lightning.distill.miniature import models
from animatediff_lightning.distill.train.discriminator import Discriminator, Encoder
from animatediff_lightning.motion_module.inject import inject


def seeded(seed):
    return torch.Generator().manual_seed(seed)


@pytest.fixture(scope="module")
def parts():
    torch.manual_seed(0)
    unet = models.build_unet().requires_grad_(False)
    module = models.build_motion_module(unet).initialise(seeded(0))
    for part in module.temporal_transformers().values():
        torch.nn.init.normal_(part.proj_out.weight, std=0.1, generator=seeded(1))
    return unet, module


def make(parts, conditional=True, num_bases=3, **options):
    table = {"head_channels": 32, "head_blocks": 2, "generator": seeded(7)} | options
    encoder = Encoder(*parts, num_bases, table["generator"])
    return Discriminator(encoder, conditional=conditional, **table)


def state(clips=2, frames=4, height=8, width=8, t=499, seed=0):
    x = torch.randn(clips, frames, 12, height, width, generator=seeded(seed))
    return x, torch.full((clips,), t)


def text(clips=2):
    return torch.randn(clips, models.TOKENS, models.TEXT_WIDTH, generator=seeded(5))


@pytest.mark.parametrize(("frames", "height", "width"), [(2, 2, 2), (16, 8, 8), (5, 8, 12)])
@pytest.mark.parametrize("conditional", [True, False])
def test_any_frame_count_and_aspect_ratio_gives_a_logit_a_clip(
    parts, frames, height, width, conditional
):
    judge = make(parts, conditional, head_blocks=3)
    x_t = state(frames=frames, height=height, width=width) if conditional else None
    states = [state(frames=frames, height=height, width=width, seed=i) for i in (1, 2)]
    found = judge(states, x_t, text(), torch.tensor([0, 2]))
    assert [f.shape for f in found] == [(2,), (2,)]
    assert len({round(v, 6) for f in found for v in f.tolist()}) == 4


def test_clips_do_not_see_each_other(parts):
    judge = make(parts)
    x_t, after = state(), state(seed=1, t=-1)
    together = judge([after], x_t, text(), torch.tensor([0, 1]))[0]
    alone = [
        judge(
            [(after[0][i : i + 1], after[1][i : i + 1])],
            (x_t[0][i : i + 1], x_t[1][i : i + 1]),
            text()[i : i + 1],
            torch.tensor([i]),
        )[0]
        for i in range(2)
    ]
    torch.testing.assert_close(together, torch.cat(alone), rtol=1e-4, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("conditional", [True, False])
def test_every_parameter_learns(parts, conditional):
    judge = make(parts, conditional)
    logits = judge(
        [state(seed=1), state(seed=2)],
        state() if conditional else None,
        text(),
        torch.tensor([0, 1]),
    )
    (logits[0] - 2 * logits[1]).sum().backward()
    without = [name for name, p in judge.named_parameters() if p.grad is None]
    assert not without


@pytest.mark.slow
def test_what_it_hears(parts):
    """Time, text, the base model and where the state comes from all change its mind."""
    judge = make(parts)
    torch.nn.init.normal_(judge.encoder.base_embedding.weight, generator=seeded(3))
    index = torch.tensor([0, 0])
    usual = judge([state(seed=1)], state(), text(), index)[0]
    others = (
        judge([state(seed=1, t=249)], state(), text(), index),
        judge([state(seed=1)], state(t=999), text(), index),
        judge([state(seed=1)], state(seed=9), text(), index),
        judge([state(seed=1)], state(), text() + 1, index),
        judge([state(seed=1)], state(), text(), index + 1),
    )
    for (other,) in others:
        assert (other - usual).abs().max() > 1e-4


def test_a_fresh_embedding_tells_base_models_apart_from_the_start(parts):
    """At zero and the paper's learning rate it would take millions of updates to."""
    judge = make(parts)
    again = make(parts)
    logits = [judge([state()], state(seed=1), text(), torch.tensor([i, i]))[0] for i in (0, 2)]
    assert not torch.allclose(*logits)
    weights = judge.encoder.base_embedding.weight
    assert torch.equal(weights, again.encoder.base_embedding.weight)
    assert weights.std().item() == pytest.approx(1.0, abs=0.1)


@pytest.mark.slow
def test_the_encoder_equals_the_unet_with_its_motion_module(parts):
    unet, module = parts
    caught = {}
    hook = unet.mid_block.register_forward_hook(lambda *a: caught.update(mid=a[2]))
    injection = inject(unet, module, num_frames=4)
    try:
        x, t = state()
        unet(x.flatten(0, 1), t.repeat_interleave(4), text().repeat_interleave(4, 0))
    finally:
        injection.eject()
        hook.remove()
    encoder = Encoder(unet, module, 3, seeded(0))
    torch.nn.init.zeros_(encoder.base_embedding.weight)
    found = encoder((x, t), text(), torch.tensor([0, 1]))
    wanted = caught["mid"].unflatten(0, (2, 4)).transpose(1, 2)
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_what_it_is_made_from_stays_as_it_was_and_foreign_hooks_stay_out(parts):
    unet, module = parts
    before = {k: v.clone() for k, v in unet.state_dict().items()}
    injection = inject(unet, module, num_frames=2)  # somebody else's, for two frames
    try:
        judge = make(parts)
        loss = judge([state(seed=1)], state(), text(), torch.tensor([0, 1]))[0].sum()
        loss.backward()
        torch.optim.SGD(judge.parameters(), 1.0).step()
    finally:
        injection.eject()
    assert all(torch.equal(v, unet.state_dict()[k]) for k, v in before.items())
    assert all(p.grad is None for p in unet.parameters())


@pytest.mark.slow
def test_heads_come_from_their_generator_and_d_prime_keeps_the_encoder(parts):
    first, same = make(parts), make(parts)
    other = make(parts, generator=seeded(8))
    assert torch.equal(first.head.out.weight, same.head.out.weight)
    assert not torch.equal(first.head.out.weight, other.head.out.weight)
    prime = Discriminator(
        first.encoder, conditional=False, head_channels=32, head_blocks=2, generator=seeded(9)
    )
    assert prime.encoder is first.encoder
    with pytest.raises(RuntimeError):  # a conditional head wants the features of x_t, too
        first([state()], None, text(), torch.tensor([0, 1]))


def test_it_learns_in_float32_whatever_it_is_made_from(parts):
    unet, module = parts
    half = models.build_unet().to(torch.bfloat16)
    half.load_state_dict(unet.state_dict())
    judge = make((half, module))
    assert {p.dtype for p in judge.parameters()} == {torch.float32}
    with torch.autocast("cpu", torch.bfloat16):
        logit = judge([state()], state(seed=1), text(), torch.tensor([0, 1]))[0]
    assert torch.isfinite(logit).all()


@pytest.mark.slow
def test_gradients_are_finite_under_bfloat16_on_the_smallest_maps(parts):
    judge = make(parts)
    states = [state(frames=16, height=2, width=2, seed=i) for i in (1, 2, 3)]
    with torch.autocast("cpu", torch.bfloat16):
        teacher, student = judge(states[1:], states[0], text(), torch.tensor([0, 1]))
    assert teacher.dtype == torch.float32
    (student - teacher).sum().backward()
    assert all(p.grad.isfinite().all() for p in judge.parameters() if p.grad is not None)
