"""Sliding windows inside a ComfyUI interpreter; each check prints one JSON line.

PYTHON_OF_COMFYUI tests/host/context_checks.py COMFYUI_FOLDER MODELS_FOLDER [CHECK ...]
"""

from unittest import mock

import controls
import host
from checking import Graph, close, equal, main, refusal, window_by_window

GRAPH = Graph()


def sliding(
    context_length=8,
    context_overlap=2,
    schedule="uniform",
    fuse="pyramid",
    closed_loop=False,
    windows_per_call=1,
    where="latents",
):
    node = GRAPH.nodes["ADL_SlidingContext"]
    return node.execute(
        context_length, context_overlap, schedule, fuse, closed_loop, windows_per_call, where
    ).result[0]


def run(context, frames=20, steps=2, **kwargs):
    model = GRAPH.apply(context=context)
    return host.sample(model, GRAPH.sigmas(model, steps), frames=frames, **kwargs)


def seen_batches(function):
    """Return the batch size of every UNet call that `function` makes."""
    calls = []
    hook = GRAPH.base.model.diffusion_model.out.register_forward_hook(
        lambda _module, inputs, _output: calls.append(inputs[0].shape[0])
    )
    try:
        function()
    finally:
        hook.remove()
    return calls


def check_one_window_is_the_plain_run():
    model = GRAPH.apply()
    plain = host.sample(model, GRAPH.sigmas(model, 2), frames=8)
    assert equal(run(sliding(), frames=8), plain)
    assert equal(run(sliding(where="features"), frames=8), plain)


def check_windows_per_call_do_not_change_the_clip():
    one = run(sliding())
    for count in (2, 3, 0):
        assert close(run(sliding(windows_per_call=count)), one) < 1e-6, count
    guided = run(sliding(), cfg=1.5)
    assert close(run(sliding(windows_per_call=2), cfg=1.5), guided) < 1e-6


def check_calls_have_the_size_that_was_asked_for():
    assert set(seen_batches(lambda: run(sliding(schedule="static"), steps=1))) == {8}
    calls = seen_batches(lambda: run(sliding(schedule="static", windows_per_call=2), steps=1))
    assert calls == [16, 8], calls
    assert seen_batches(lambda: run(sliding(where="features"), steps=1)) == [20]


def by_hand(settings=lambda _rows: {}, **kwargs):
    """Return the mean of the windows 0-7 and 6-13, each with `settings(its frames)`; one step."""
    model = GRAPH.apply()
    windows = (list(range(8)), list(range(6, 14)))
    values = GRAPH.sigmas(model, 1)
    return window_by_window(windows, lambda rows: (model, values, settings(rows)), **kwargs)


def check_windows_equal_a_plain_loop_around_the_model():
    """Static windows, flat weights, one step: the mean of what each window gives by itself."""
    frames = run(sliding(schedule="static", fuse="flat"), frames=14, steps=1)
    assert close(frames, by_hand()) < 1e-5


def check_every_schedule_and_fuse_runs():
    import torch

    for where in ("latents", "features"):
        for schedule in ("uniform", "static", "looped"):
            for fuse in ("pyramid", "relative", "flat", "overlap-linear"):
                context = sliding(schedule=schedule, fuse=fuse, where=where, closed_loop=True)
                assert torch.isfinite(run(context, frames=11, steps=1)).all()


def check_long_clips_pass_the_positions():
    assert run(sliding(16, 4), frames=40, steps=1).shape[0] == 40
    assert run(sliding(16, 4, where="features"), frames=40, steps=1).shape[0] == 40


def check_plain_model_stays_bit_equal():
    before = GRAPH.plain()
    run(sliding())
    run(sliding(where="features"))
    assert equal(GRAPH.plain(), before)


def check_window_longer_than_positions_is_refused():
    assert "context_length to 32" in refusal(GRAPH.apply, context=sliding(40, 4))


def check_overlap_as_long_as_the_window_is_refused():
    assert "context_overlap" in refusal(sliding, 8, 8)


def check_per_frame_prompts_reach_their_frames():
    """A conditioning of one row a frame equals the constant one where all rows are the same."""
    import torch

    constant = run(sliding(schedule="static"), steps=1)
    ((text, _),) = host.conditioning(1)
    per_frame = text.expand(20, -1, -1).clone()
    assert close(run(sliding(schedule="static"), steps=1, positive=per_frame), constant) < 1e-6
    per_frame[14:] = torch.randn(1, 77, 768, generator=torch.manual_seed(9))
    changed = run(sliding(schedule="static"), steps=1, positive=per_frame)
    assert close(changed[:6], constant[:6]) < 1e-6, "the first window saw a later prompt"
    assert close(changed[14:], constant[14:]) > 1e-3


class StubControl:
    """Stands for a core ControlNet: remembers the hints that each call saw."""

    def __init__(self, hint, previous=None):
        self.cond_hint_original, self.cond_hint = hint, None
        self.previous_controlnet, self.seen = previous, []

    def get_control(self, x_noisy, _t, _cond, batched_number, _options):
        if self.previous_controlnet is not None:
            self.previous_controlnet.get_control(x_noisy, _t, _cond, batched_number, _options)
        self.seen.append((x_noisy.shape[0], batched_number, self.cond_hint_original.flatten()))
        return None

    def __getattr__(self, name):
        if name in ("pre_run", "cleanup"):
            return lambda *_: None
        if name in ("get_models", "get_extra_hooks"):
            return list
        if name == "inference_memory_requirements":
            return lambda _dtype: 0
        if name == "multigpu_clones":
            return {}
        if name == "extra_hooks":
            return None
        raise AttributeError(name)


def check_each_window_sees_its_own_hints():
    """Chained controls, cond and uncond in one call, two windows a call."""
    import torch

    hints = torch.arange(20.0)[:, None, None, None]
    first = StubControl(hints * 10)
    second = StubControl(hints, previous=first)
    context = sliding(schedule="static", windows_per_call=2)
    run(context, steps=1, cfg=1.5, control=second)
    windows = [list(range(8)), list(range(6, 14)), list(range(12, 20))]
    wanted = [windows[0] + windows[1], windows[2]]
    for control, scale in ((second, 1), (first, 10)):
        assert [b for _, b, _ in control.seen] == [2, 2], "cond and uncond were not batched"
        got = [(h / scale).int().tolist() for _, _, h in control.seen]
        assert got == wanted, got
        assert control.cond_hint_original.shape[0] == 20


def check_core_controls_equal_each_window_by_hand():
    """A T2I-Adapter with fewer hints than frames, and two ControlNets in a chain, with guidance.

    Static windows, flat weights, one step: the mean of what each window gives by itself.
    """
    drawn, few = controls.hints(14), controls.hints(5, seed=1)
    every = list(range(14))

    def adapter(rows):  # five hints for 14 frames: they start anew
        return controls.control("t2i_adapter", few if rows is every else few[[i % 5 for i in rows]])

    def chain(rows):
        below = controls.control("other_controlnet", drawn[rows] ** 2)
        return controls.control("controlnet", drawn[rows], previous=below)

    without = by_hand(cfg=1.5)
    context = sliding(schedule="static", fuse="flat", windows_per_call=2)
    for make in (adapter, chain):
        wanted = by_hand(lambda rows, m=make: {"control": m(rows)}, cfg=1.5)
        assert close(wanted, without) > 1e-3, "the control did nothing"
        clip = run(context, frames=14, steps=1, cfg=1.5, control=make(every))
        assert close(clip, wanted) < 1e-5, (make, close(clip, wanted))
        # the hints of the first window for all frames are something else
        same = by_hand(lambda _rows, m=make: {"control": m(every[:8])}, cfg=1.5)
        assert close(same, wanted) > 1e-3


def check_scaled_hints_go_with_their_call():
    """They lie in the memory of the device: what a long clip needs must not grow with it."""
    import gc
    import weakref

    copies, counts = [], []

    class Noted(StubControl):
        def __copy__(self):
            copied = object.__new__(Noted)
            copied.__dict__ |= self.__dict__
            copies.append(weakref.ref(copied))
            return copied

        def get_control(self, *args):
            gc.collect()
            counts.append(sum(ref() is not None for ref in copies))
            return super().get_control(*args)

    control = Noted(controls.hints(20, size=8))
    run(sliding(), frames=20, steps=2, cfg=1.5, control=control)
    assert len(copies) == len(counts) >= 6, (len(copies), counts)
    assert set(counts) == {1}, counts
    gc.collect()
    assert all(ref() is None for ref in copies)


def check_masks_of_conditionings_follow_the_windows():
    """As many masks as frames, more, and fewer, which the host deals out in turn."""
    import torch

    drawn = torch.rand(20, 64, 64, generator=torch.manual_seed(3))

    def masked(masks):
        area = host.conditioning(6)
        area[0][1].update(mask=masks, mask_strength=1.0)
        return {"more": area}

    context = sliding(schedule="static", fuse="flat", windows_per_call=2)
    without = by_hand()
    for count in (20, 14, 5, 1):  # of 14 frames
        masks = drawn[:count]
        wanted = by_hand(lambda rows, m=masks: masked(m[[i % len(m) for i in rows]]))
        assert close(wanted, without) > 1e-3, "the mask did nothing"
        clip = run(context, frames=14, steps=1, **masked(masks))
        assert close(clip, wanted) < 1e-5, (count, close(clip, wanted))


def check_ad_params_name_the_frames():
    seen = []

    def note(executor, x, timesteps, context, y, control, transformer_options, **kwargs):
        seen.append(transformer_options["ad_params"])
        return executor(x, timesteps, context, y, control, transformer_options, **kwargs)

    model = GRAPH.apply(context=sliding(schedule="static"))
    model.add_wrapper_with_key("diffusion_model", "note", note)
    host.sample(model, GRAPH.sigmas(model, 1), frames=14)
    assert [p["sub_idxs"] for p in seen] == [list(range(8)), list(range(6, 14))]
    assert all(p["full_length"] == 14 and p["context_length"] == 8 for p in seen)


def check_cancelled_windows_leave_nothing():
    """Cancel is pressed in the first window of a step: no other one is begun."""
    import comfy.model_management as management

    before = GRAPH.plain()
    reference = run(sliding())

    def press_cancel(*_):
        management.interrupt_current_processing()

    hook = GRAPH.base.model.diffusion_model.out.register_forward_hook(press_cancel)
    try:
        calls = seen_batches(lambda: cancelled(run, sliding()))
    finally:
        hook.remove()
    assert calls == [8], calls
    assert equal(run(sliding()), reference)
    assert equal(GRAPH.plain(), before)


def cancelled(function, *args):
    """Call a function that the host must end by its own exception."""
    import comfy.model_management as management

    try:
        function(*args)
    except management.InterruptProcessingException:
        return
    raise AssertionError("the run was not cancelled")


def check_as_many_windows_as_memory_allows():
    """The host's own estimate decides: with room for two windows of cond and uncond, two run."""
    import comfy.model_management as management

    context = sliding(schedule="static", windows_per_call=0)
    reference = run(sliding(schedule="static"), steps=1, cfg=1.5)
    latents = [32, 4, 8, 8]  # two windows, cond and uncond
    room = GRAPH.base.model.memory_required(latents) * 1.5 + 1

    def free(_device=None, torch_free_too=False):
        return (room, room) if torch_free_too else room

    with mock.patch.object(management, "get_free_memory", free):
        clip = []
        sizes = seen_batches(lambda: clip.append(run(context, steps=1, cfg=1.5)))
    assert max(sizes) == 32, sizes
    assert sum(sizes) == 48, sizes
    assert close(clip[0], reference) < 1e-6


def check_plot_shows_weights():
    """Every cell of the picture is a window's weight for a frame, in the band of its step."""
    import torch

    plan = host.submodule("samplers.context").plan
    (image,) = GRAPH.nodes["ADL_PlotContext"].execute(sliding(), 20, 2).result[0]
    cell, gap, row = 1024 // 20, 8, 0
    for step in range(2):
        windows = plan(20, sliding().options, step)
        for indices, weights in zip(windows.indices, windows.weights, strict=True):
            shown = image[row + cell // 2, cell // 2 :: cell].amax(-1)
            wanted = torch.full((20,), 0.08).index_add(0, indices, 0.92 * weights.float())
            assert torch.allclose(shown, wanted, atol=1e-6), (step, indices)
            row += cell
        row += gap
    assert image.shape == (row - gap, 20 * cell, 3)


def check_a_picture_that_is_too_large_is_refused():
    node = GRAPH.nodes["ADL_PlotContext"]
    assert "lower num_frames or steps" in refusal(node.execute, sliding(16, 15), 4096, 100)
    assert node.execute(sliding(16, 4), 1024, 8).result[0].shape[2] == 1024


if __name__ == "__main__":
    main(GRAPH, globals())
