"""Sliding windows inside a ComfyUI interpreter; each check prints one JSON line.

PYTHON_OF_COMFYUI tests/host/context_checks.py COMFYUI_FOLDER MODELS_FOLDER [CHECK ...]
"""

import controls
import host
from checking import Graph, close, equal, main, refusal

GRAPH = Graph()


def sliding(context_length=8, context_overlap=2, schedule="uniform", fuse="pyramid",
            closed_loop=False, windows_per_call=1, where="latents"):  # fmt: skip
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


def check_windows_equal_a_plain_loop_around_the_model():
    """Static windows, flat weights, one step: the mean of what each window gives by itself."""
    import torch

    steps = 1
    frames = run(sliding(schedule="static", fuse="flat"), frames=14, steps=steps)
    model = GRAPH.apply()
    sigmas = GRAPH.sigmas(model, steps)
    noise = torch.randn(14, 4, 8, 8, generator=torch.manual_seed(0))
    total, count = torch.zeros(14, 4, 8, 8), torch.zeros(14, 1, 1, 1)
    for window in (range(8), range(6, 14)):
        window = list(window)
        total[window] += host.sample(model, sigmas, frames=8, noise=noise[window])
        count[window] += 1
    assert close(frames, total / count) < 1e-5


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
    (text, _), = host.conditioning(1)  # fmt: skip
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
        if name in ("multigpu_clones", "extra_hooks"):
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

    without = window_by_window(lambda _rows: None)
    context = sliding(schedule="static", fuse="flat", windows_per_call=2)
    for make in (adapter, chain):
        wanted = window_by_window(make)
        assert close(wanted, without) > 1e-3, "the control did nothing"
        clip = run(context, frames=14, steps=1, cfg=1.5, control=make(every))
        assert close(clip, wanted) < 1e-5, (make, close(clip, wanted))
        # the hints of the first window for all frames are something else
        assert close(window_by_window(lambda _rows, m=make: m(every[:8])), wanted) > 1e-3


def window_by_window(control):
    """Return the mean of the windows 0-7 and 6-13, each with `control(its frames)`."""
    import torch

    model = GRAPH.apply()
    noise = torch.randn(14, 4, 8, 8, generator=torch.manual_seed(0))
    total, count = torch.zeros(14, 4, 8, 8), torch.zeros(14, 1, 1, 1)
    for window in (list(range(8)), list(range(6, 14))):
        total[window] += host.sample(
            model, GRAPH.sigmas(model, 1), frames=8, noise=noise[window], cfg=1.5,
            control=control(window),
        )  # fmt: skip
        count[window] += 1
    return total / count


def check_moving_windows_do_not_pile_up_hints():
    import gc
    import weakref

    copies, counts = [], []

    class Noted(StubControl):
        def __copy__(self):
            copied = object.__new__(Noted)
            copied.__dict__ |= self.__dict__
            copies.append(weakref.ref(copied))
            return copied

    def alive(*_):
        gc.collect()
        counts.append(sum(ref() is not None for ref in copies))

    run(sliding(), frames=14, steps=3, control=Noted(controls.hints(14, size=8)), callback=alive)
    assert len(copies) > 6, "the windows did not move"
    assert max(counts) <= 4, counts  # the windows of one step
    alive()
    assert counts[-1] == 0, "hints outlive the run"


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
    import comfy.model_management

    before = GRAPH.plain()
    reference = run(sliding())

    def cancel(*_):
        raise comfy.model_management.InterruptProcessingException

    try:
        run(sliding(), callback=cancel)
    except comfy.model_management.InterruptProcessingException:
        pass
    else:
        raise AssertionError("the run was not cancelled")
    assert equal(run(sliding()), reference)
    assert equal(GRAPH.plain(), before)


def check_plot_shows_weights():
    image = GRAPH.nodes["ADL_PlotContext"].execute(sliding(), 20, 2).result[0]
    assert image.ndim == 4
    assert image.shape[3] == 3
    assert 0 <= float(image.min()) < float(image.max()) <= 1


if __name__ == "__main__":
    main(GRAPH, globals())
