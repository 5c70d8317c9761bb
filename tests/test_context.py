"""Windows cover every frame, weights add up to 1, and one window over all is plain attention."""

import pytest
import torch
from animatediff_lightning.motion_module import temporal
from animatediff_lightning.motion_module.temporal import TemporalTransformer
from animatediff_lightning.samplers import context
from animatediff_lightning.samplers.context import FUSES, SCHEDULES, ContextOptions


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("fuse", FUSES)
@pytest.mark.parametrize(("frames", "length", "overlap"), [(40, 16, 4), (33, 8, 2), (17, 16, 0)])
@pytest.mark.parametrize("closed_loop", [False, True])
def test_every_frame_is_covered_with_weight_one(
    schedule, fuse, frames, length, overlap, closed_loop
):
    options = ContextOptions(length, overlap, schedule, fuse, closed_loop)
    for step in range(9):
        plan = context.plan(frames, options, step)
        assert plan.indices.shape == plan.weights.shape
        assert plan.indices.shape[1] == length
        total = torch.zeros(frames, dtype=torch.float64)
        total.index_add_(0, plan.indices.flatten(), plan.weights.flatten())
        torch.testing.assert_close(total, torch.ones(frames, dtype=torch.float64))
        assert all(len(set(w.tolist())) == length for w in plan.indices)


def test_static_windows_by_hand():
    cut = context.windows(10, ContextOptions(4, 1, "static"))
    assert cut == [(0, 1, 2, 3), (3, 4, 5, 6), (6, 7, 8, 9)]
    assert context.windows(11, ContextOptions(4, 1, "static"))[-1] == (7, 8, 9, 10)


def test_looped_windows_by_hand():
    options = ContextOptions(4, 1, "looped", closed_loop=True)
    assert context.windows(6, options, 0) == [(0, 1, 2, 3), (3, 4, 5, 0)]
    assert context.windows(6, options, 1) == [(3, 4, 5, 0), (0, 1, 2, 3)]


def test_uniform_windows_never_wrap_and_move_with_the_step():
    options = ContextOptions(16, 4, "uniform")
    seen = [context.windows(40, options, step) for step in range(4)]
    assert all(list(w) == sorted(w) for cut in seen for w in cut)
    assert len({tuple(cut) for cut in seen}) > 1


def test_step_shift_is_the_van_der_corput_sequence():
    assert [context.step_shift(s) for s in range(6)] == [0, 0.5, 0.25, 0.75, 0.125, 0.625]


def test_a_short_clip_is_one_window():
    assert context.windows(16, ContextOptions()) == [tuple(range(16))]
    assert context.windows(5, ContextOptions()) == [tuple(range(5))]


def test_fuse_weights_by_hand():
    def weights(fuse, window=(2, 3, 4, 5), frames=9, overlap=2):
        options = ContextOptions(4, overlap, fuse=fuse)
        return context.fuse_weights(window, frames, options).tolist()

    assert weights("flat") == [1, 1, 1, 1]
    assert weights("pyramid") == [1, 2, 2, 1]
    assert weights("relative") == pytest.approx([0.01, 0.66777, 0.66777, 0.01], abs=1e-4)
    assert weights("overlap-linear") == pytest.approx([0, 1, 1, 0], abs=1e-30)
    assert weights("overlap-linear", (0, 1, 2, 3)) == pytest.approx([1, 1, 1, 0], abs=1e-30)
    assert weights("overlap-linear", (5, 6, 7, 8)) == pytest.approx([0, 1, 1, 1], abs=1e-30)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"context_length": 1}, "at least 2"),
        ({"context_length": 4, "context_overlap": 4}, "between 0 and 3"),
        ({"schedule": "spiral"}, "uniform, static, looped"),
        ({"fuse": "glue"}, "pyramid, relative"),
    ],
)
def test_bad_options_are_refused(options, sentence):
    with pytest.raises(ValueError, match=sentence):
        ContextOptions(**options)


@pytest.fixture
def part(thin_config, random_module):
    config = thin_config(channels=(32,), mid=False)
    return random_module(config).temporal_transformers()["down_blocks.0.motion_modules.0"]


def test_one_window_over_all_is_plain_attention(part: TemporalTransformer):
    x = torch.randn(2 * 12, 32, 3, 3, generator=torch.Generator().manual_seed(0))
    everything = context.plan(12, ContextOptions(16, 4))
    windows = everything.to(x)
    torch.testing.assert_close(part(x, 12, windows=windows), part(x, 12), rtol=1e-4, atol=1e-5)


def test_windows_reach_beyond_the_positions_and_are_seen_alone(part: TemporalTransformer):
    """With flat weights and no overlap, each window is a clip of its own."""
    x = torch.randn(32, 32, 3, 3, generator=torch.Generator().manual_seed(0))
    assert part.max_frames == 16
    plan = context.plan(32, ContextOptions(16, 0, "static", "flat")).to(x)
    apart = torch.cat([part(half, 16) for half in x.chunk(2)])
    torch.testing.assert_close(part(x, 32, windows=plan), apart, rtol=1e-4, atol=1e-5)


def test_long_clips_in_parts_equal_the_whole(part: TemporalTransformer, monkeypatch):
    """Of 2 x 5 x 3 positions, at most two at a time: 15 calls instead of one."""
    x = torch.randn(2 * 24, 32, 5, 3, generator=torch.Generator().manual_seed(2))
    plan = context.plan(24, ContextOptions(8, 3)).to(x)
    calls = []
    part.proj_in.register_forward_hook(lambda _m, inputs, _o: calls.append(len(inputs[0])))
    whole = part(x, 24, windows=plan)
    assert calls == [30]
    monkeypatch.setitem(temporal.CHUNK_TOKENS, "cpu", 24 * 2)
    torch.testing.assert_close(part(x, 24, windows=plan), whole, rtol=1e-4, atol=1e-5)
    assert calls[1:] == [2] * 15


def test_overlapping_windows_are_fused_by_weight(part: TemporalTransformer):
    """Against a plain loop that projects within each window, as the equation is written."""
    attention = part.transformer_blocks[0].attention_blocks[0]
    x = torch.randn(5, 24, 32, generator=torch.Generator().manual_seed(1))
    plan = context.plan(24, ContextOptions(8, 3, "uniform", "pyramid"), step=2).to(x)
    wanted = torch.zeros_like(x)
    for window, weight in zip(plan.indices, plan.weights, strict=True):
        wanted[:, window] += attention(x[:, window]) * weight[:, None]
    torch.testing.assert_close(attention(x, 1.0, plan), wanted, rtol=1e-4, atol=1e-5)


def test_window_longer_than_the_positions_is_refused(part: TemporalTransformer):
    plan = context.plan(40, ContextOptions(20, 4))
    with pytest.raises(ValueError, match="positions for 16 frames"):
        part(torch.zeros(40, 32, 2, 2), 40, windows=plan)
