"""Checks that run inside a ComfyUI interpreter; each prints one JSON line.

    PYTHON_OF_COMFYUI tests/host/sampling_checks.py COMFYUI_FOLDER MODELS_FOLDER

tests/test_host_in_process.py starts it and turns each line into a test result.
"""

import gc
import tempfile
from pathlib import Path

import host
from checking import (
    MOTION_FILE,
    OTHER_FILE,
    Graph,
    close,
    compiled,
    equal,
    main,
    no_paging,
    outputs,
    refusal,
    sample_with,
    small_budget,
    told,
)

GRAPH = Graph()
apply, sigmas, core_sigmas = GRAPH.apply, GRAPH.sigmas, GRAPH.core_sigmas
plain, ours = GRAPH.plain, GRAPH.ours


def check_the_pack_adds_little_to_the_start():
    """In the quickest of up to three processes: what else runs on the machine only adds."""
    measured = [GRAPH.import_seconds]
    while min(measured) >= 0.1 and len(measured) < 3:
        measured.append(host.import_seconds_of_a_new_process())
    assert min(measured) < 0.1, measured


def check_steps_come_from_the_file_name():
    assert GRAPH.nodes["ADL_LoadMotionModule"].execute(MOTION_FILE).result[1] == 4


def check_simple_scheduler_gives_the_same_sigmas():
    model = apply()
    for steps in (1, 2, 4, 8):
        assert close(core_sigmas(model, steps), sigmas(model, steps)) < 1e-5


def check_frames_move_and_plain_model_stays_bit_equal():
    before = plain()
    clip = ours()
    assert close(clip[1:], clip[:-1]) > 0.01
    assert not equal(clip, before)
    assert equal(plain(), before)
    assert host.unet_hooks(GRAPH.base) == 0


def check_second_run_is_the_same_and_seed_matters():
    model = apply()
    first = ours(model)
    assert equal(ours(model), first)
    assert not equal(ours(model, seed=1), first)


def check_scale_one_is_a_no_op_and_others_are_not():
    reference = ours()
    assert equal(ours(apply(scale=1.0)), reference)
    assert close(ours(apply(scale=3.0)), reference) > 1e-4


def check_clones_and_plain_runs_between():
    before, model = plain(), apply()
    reference = ours(model)
    clone = model.clone()
    assert equal(ours(clone), reference)
    assert equal(plain(), before)
    assert equal(ours(model), reference)
    del clone
    gc.collect()
    assert equal(ours(model), reference)
    assert equal(plain(), before)


def check_clone_collected_during_sampling():
    model = apply()
    reference = ours(model)
    holder = {}

    def drop(step, *_):
        if step == 0:
            holder.clear()
            gc.collect()

    holder["clone"] = model.clone()  # copies is_injected: its __del__ ejects
    assert equal(ours(model, callback=drop), reference)


def check_cancelled_run_leaves_nothing():
    import comfy.model_management

    before, model = plain(), apply()
    reference = ours(model)

    def cancel(*_):
        raise comfy.model_management.InterruptProcessingException

    try:
        ours(model, callback=cancel)
    except comfy.model_management.InterruptProcessingException:
        pass
    else:
        raise AssertionError("the run was not cancelled")
    assert equal(plain(), before)
    assert equal(ours(model), reference)


def check_error_in_the_middle_of_the_unet_leaves_nothing():
    before, model = plain(), apply()
    reference = ours(model)

    def fail(*_):
        raise RuntimeError("on purpose")

    hook = GRAPH.base.model.diffusion_model.out.register_forward_hook(fail)
    try:
        ours(model)
    except RuntimeError:
        pass
    else:
        raise AssertionError("nothing failed")
    finally:
        hook.remove()
    assert equal(plain(), before)
    assert equal(ours(model), reference)


def check_two_modules_on_one_base_do_not_mix():
    first, second = apply(), apply(name=OTHER_FILE)
    a, b = ours(first), ours(second)
    assert close(a, b) > 1e-3
    assert equal(ours(first), a)
    assert equal(ours(second), b)


def check_weights_are_freed_with_the_graph():
    import weakref

    model = apply()
    ours(model)
    module = weakref.ref(model.get_additional_models()[0].model)
    plain()
    del model
    gc.collect()
    assert module() is None, "motion weights outlive their graph"


def check_patcher_that_dies_in_a_reference_cycle_leaves_nothing():
    import weakref

    model = apply()
    ours(model, frames=2)
    module = weakref.ref(model.get_additional_models()[0].model)
    model.cycle = model  # as a traceback that somebody keeps
    del model
    gc.collect()
    assert host.unet_hooks(GRAPH.base) == 0
    assert module() is None, "motion weights outlive their graph"


def check_cond_and_uncond_in_one_call_equal_two_calls():
    model = apply()
    calls = []
    hook = model.model.diffusion_model.out.register_forward_hook(
        lambda _module, inputs, _output: calls.append(inputs[0].shape[0])
    )
    together = host.sample(model, sigmas(model, 2), cfg=1.5)
    model.model.memory_required = lambda *_, **__: 1e18  # the host then splits the batch
    try:
        apart = host.sample(model, sigmas(model, 2), cfg=1.5)
    finally:
        del model.model.memory_required
        hook.remove()
    assert calls == [32, 32, 16, 16, 16, 16], calls
    assert close(apart, together) < 1e-5


def check_one_frame_is_bypassed():
    model = apply()
    one = host.sample(model, sigmas(model, 2), frames=1)
    base = GRAPH.base.clone()
    base.add_object_patch("model_sampling", model.get_model_object("model_sampling"))
    assert equal(host.sample(base, sigmas(model, 2), frames=1), one)


def check_start_step_keeps_the_grid():
    import torch

    model = apply()
    full = sigmas(model, 4)
    assert equal(sigmas(model, 4, 2), full[2:])
    video = torch.ones(16, 4, 8, 8)
    late = host.sample(model, sigmas(model, 4, 3), start=video)
    assert torch.isfinite(late).all()


def check_lora_before_and_after_are_the_same():
    import comfy.sd
    import torch

    torch.manual_seed(0)
    base = GRAPH.base
    name = "input_blocks_1_1_transformer_blocks_0_attn1_to_q"
    lora = {
        f"lora_unet_{name}.lora_up.weight": torch.randn(320, 4) * 0.1,
        f"lora_unet_{name}.lora_down.weight": torch.randn(4, 320) * 0.1,
    }
    before = apply(comfy.sd.load_lora_for_models(base, None, lora, 1.0, 0)[0])
    after = comfy.sd.load_lora_for_models(apply(base), None, lora, 1.0, 0)[0]
    a, b, none = ours(before), ours(after), ours()
    assert equal(a, b)
    assert close(a, none) > 1e-5, "the LoRA did nothing"
    assert equal(ours(), none)


def check_v_prediction_is_kept():
    import comfy.model_sampling
    from comfy_extras.nodes_model_advanced import ModelSamplingDiscrete

    v_base = ModelSamplingDiscrete().patch(GRAPH.base, "v_prediction", False)[0]
    sampling = apply(v_base).get_model_object("model_sampling")
    assert isinstance(sampling, comfy.model_sampling.V_PREDICTION)
    assert abs(float(sampling.sigma_max) - 25.1461) < 1e-3
    assert close(ours(apply(v_base)), ours()) > 1e-3


def check_zsnr_after_apply_is_refused():
    from comfy_extras.nodes_model_advanced import ModelSamplingDiscrete

    model = ModelSamplingDiscrete().patch(apply(), "eps", True)[0]
    assert "zero terminal SNR" in refusal(host.sample, model, core_sigmas(model, 2))


def check_another_schedule_after_apply_is_refused():
    from comfy_extras.nodes_model_advanced import ModelSamplingDiscrete

    model = ModelSamplingDiscrete().patch(apply(), "eps", False)[0]
    assert "another noise schedule" in refusal(host.sample, model, core_sigmas(model, 2))


def check_sigmas_of_the_unpatched_model_are_refused():
    assert "without the motion module" in refusal(host.sample, apply(), core_sigmas(GRAPH.base, 4))


def check_sigmas_of_the_unpatched_model_are_refused_whatever_made_them():
    """Most schedulers give sigmas between the training ones; all start at the largest."""
    import comfy.samplers

    model = apply()
    for scheduler in comfy.samplers.SCHEDULER_NAMES:
        advice = "without the motion module"
        if scheduler in ("karras", "exponential"):  # a node of their own makes the same
            advice = "or, if it has a MODEL input, connect that to Apply Motion Module"
        for steps in (4, 10):
            wrong = core_sigmas(GRAPH.base, steps, scheduler)
            assert advice in refusal(host.sample, model, wrong), (scheduler, steps)
        right = core_sigmas(model, 2, scheduler)
        assert host.sample(model, right, frames=2).isfinite().all(), scheduler


def check_schedulers_with_ends_are_told_to_raise_sigma_max():
    from comfy_extras import nodes_custom_sampler as schedulers

    model = apply()
    for name in ("Karras", "Exponential", "Polyexponential", "Laplace"):
        node = getattr(schedulers, f"{name}Scheduler")
        others = [0.0, 0.5] if name == "Laplace" else [2.5] * (name == "Polyexponential")
        others = [7.0] if name == "Karras" else others
        for steps in (5, 10):
            low = outputs(node, steps, 14.614642, 0.0291675, *others)[0]
            message = refusal(host.sample, model, low, 2)
            assert "start at a noise level of 14.61, but AnimateDiff starts at 25.15" in message
            assert "set sigma_max of the scheduler to 25.15, or" in message, (name, message)
        right = outputs(node, 3, 25.15, 0.0291675, *others)[0]
        assert host.sample(model, right, frames=2).isfinite().all(), name


def check_schedulers_with_tables_run_with_a_warning():
    from comfy_extras.nodes_align_your_steps import AlignYourStepsScheduler
    from comfy_extras.nodes_gits import GITSScheduler

    model = apply(name=OTHER_FILE)
    low = "the SIGMAS start at a noise level of 14.61, but AnimateDiff starts at 25.15, so"
    for node, first in ((AlignYourStepsScheduler, "SD1"), (GITSScheduler, 1.2)):
        for steps in (4, 10):
            with told() as warnings:
                clip = host.sample(model, outputs(node, first, steps, 1.0)[0], frames=2)
            assert clip.isfinite().all()
            assert any(low in w.replace("The SIGMAS", "the SIGMAS") for w in warnings), warnings
        with told() as warnings:
            host.sample(model, outputs(node, first, 10, 0.3)[0], frames=2)
        assert not any("SIGMAS" in w for w in warnings), warnings


def check_scheduler_wants_the_applied_model():
    assert "Apply Motion Module" in refusal(sigmas, GRAPH.base)


def check_zero_steps_asks_for_steps():
    assert "yourself (1, 2, 4 or 8" in refusal(sigmas, apply(), 0)


def check_start_step_out_of_range():
    assert "start_step" in refusal(sigmas, apply(), 4, 4)


def check_two_applies_are_refused():
    assert "already has a motion module" in refusal(apply, apply())


def check_too_many_frames_are_refused_and_leave_nothing():
    before, model = plain(), apply()
    assert "32 frames" in refusal(host.sample, model, sigmas(model, 2), frames=33)
    assert equal(plain(), before)


def check_video_latent_is_refused():
    import torch

    model = apply()
    assert "batch of images" in refusal(
        host.sample, model, sigmas(model, 2), start=torch.zeros(1, 4, 4, 8, 8)
    )


def check_full_width_module_on_thin_base_is_refused():
    module = host.submodule("motion_module.config").MotionModuleConfig()
    layout = host.submodule("motion_module.layout")
    unet = GRAPH.base.model.diffusion_model
    assert "does not fit this base model" in refusal(layout.check_fit, module, layout.sites(unet))


def check_model_that_is_no_unet_is_refused():
    import torch

    class Base(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.diffusion_model = torch.nn.Linear(1, 1)

    import comfy.model_patcher

    other = comfy.model_patcher.ModelPatcher(Base(), torch.device("cpu"), torch.device("cpu"))
    assert "not an SD1.5-shaped UNet" in refusal(apply, other)


def check_steps_that_do_not_fit_warn():
    with told() as sentences:
        sigmas(apply(), 8)
        sigmas(apply(name=OTHER_FILE), 3)
        model = apply()
        host.sample(model, sigmas(model, 4), cfg=7.0, frames=2)
    assert len(sentences) == 2, sentences
    assert "distilled for 4 steps, not 8" in sentences[0]
    assert "cfg 7" in sentences[1]


def check_steps_of_a_plain_sampler_that_do_not_fit_warn():
    four, two = apply(), apply(name=OTHER_FILE)
    with told() as sentences:
        for scheduler in ("simple", "sgm_uniform"):
            host.sample(four, core_sigmas(four, 4, scheduler), frames=2)
            host.sample(two, core_sigmas(two, 3, scheduler), frames=2)
        host.sample(four, sigmas(four, 4, 2), frames=2)
    assert not sentences, sentences
    with told() as sentences:
        host.sample(four, core_sigmas(four, 6), frames=2)
        host.sample(four, core_sigmas(four, 4, "karras"), frames=2)
    assert len(sentences) == 2, sentences
    assert all("distilled for 4 steps" in s for s in sentences)


def check_both_scales_of_dual_cfg_are_watched():
    from comfy_extras.nodes_custom_sampler import DualCFGGuider

    model = apply()
    conds = (host.conditioning(i) for i in (1, 2, 3))
    (guider,) = outputs(DualCFGGuider, model, *conds, 1.0, 8.0, "regular")
    with told() as sentences:
        clip = sample_with(guider, sigmas(model))
    assert "cfg 8" in sentences[0]
    assert clip.isfinite().all()


def check_guiders_with_a_scale_for_each_step():
    """Some packs have a list in `cfg`; the largest one counts for the warning."""
    import comfy.samplers

    class Scheduled(comfy.samplers.CFGGuider):
        def predict_noise(self, *args, **kwargs):
            scales, self.cfg = self.cfg, 1.0
            try:
                return super().predict_noise(*args, **kwargs)
            finally:
                self.cfg = scales

    model = apply()
    guider = Scheduled(model)
    guider.set_conds(host.conditioning(1), host.conditioning(2))
    for scales, warnings in (([1.0, 1.0], 0), ([9.0, 1.0], 1)):
        guider.cfg = scales
        with told() as sentences:
            clip = sample_with(guider, sigmas(model))
        assert len(sentences) == warnings, sentences
        assert equal(clip, host.sample(model, sigmas(model), frames=4))
    assert "cfg 9" in sentences[0]


def check_ksampler_gives_the_same_clip():
    import torch

    import nodes as core

    model = apply()
    (latent,) = core.KSampler().sample(
        model,
        0,
        4,
        1.0,
        "euler",
        "simple",
        host.conditioning(1),
        host.conditioning(2),
        {"samples": torch.zeros(16, 4, 8, 8)},
    )
    assert close(latent["samples"], host.sample(model, sigmas(model, 4))) < 1e-5


def check_custom_samplers_give_the_same_clip():
    import torch
    from comfy_extras import nodes_custom_sampler as core

    model = apply()
    values = sigmas(model, 4)
    (sampler,) = outputs(core.KSamplerSelect, "euler")
    (guider,) = outputs(core.BasicGuider, model, host.conditioning(1))
    (noise,) = outputs(core.RandomNoise, 0)
    latent = {"samples": torch.zeros(16, 4, 8, 8)}
    advanced = outputs(core.SamplerCustomAdvanced, noise, guider, sampler, values, latent)[0]
    custom = outputs(
        core.SamplerCustom,
        model,
        True,
        0,
        1.0,
        host.conditioning(1),
        host.conditioning(2),
        sampler,
        values,
        latent,
    )[0]
    reference = host.sample(model, values)
    assert equal(advanced["samples"], reference)
    assert equal(custom["samples"], reference)


def check_start_at_step_is_our_start_step():
    import torch

    import nodes as core

    model, video = apply(), torch.randn(4, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    (latent,) = core.KSamplerAdvanced().sample(
        model,
        "enable",
        0,
        4,
        1.0,
        "euler",
        "simple",
        host.conditioning(1),
        host.conditioning(2),
        {"samples": video},
        2,
        10000,
        "disable",
    )
    reference = host.sample(model, sigmas(model, 4, 2), start=video)
    assert close(latent["samples"], reference) < 1e-5


def check_areas_and_masks_of_conditionings():
    import comfy.samplers
    import torch

    model = apply()
    area, mask = host.conditioning(5), host.conditioning(6)
    area[0][1].update(area=(4, 4, 0, 0), strength=1.0)
    mask[0][1].update(mask=torch.ones(1, 64, 64) / 2, mask_strength=1.0)
    guider = comfy.samplers.CFGGuider(model)
    guider.set_conds(host.conditioning(1) + area + mask, host.conditioning(2))
    guider.set_cfg(1.5)
    together = sample_with(guider, sigmas(model, 2))
    model.model.memory_required = lambda *_, **__: 1e18  # the host then splits the batch
    try:
        apart = sample_with(guider, sigmas(model, 2))
    finally:
        del model.model.memory_required
    assert close(apart, together) < 1e-4


def check_noise_mask_keeps_what_it_covers():
    import torch

    import nodes as core

    video, mask = torch.randn(4, 4, 8, 8), torch.zeros(1, 1, 64, 64)
    mask[..., :32] = 1
    (latent,) = core.KSampler().sample(
        apply(),
        0,
        4,
        1.0,
        "euler",
        "simple",
        host.conditioning(1),
        host.conditioning(2),
        {"samples": video, "noise_mask": mask},
    )
    change = (latent["samples"] - video).abs()
    assert change[..., 4:].max() < 1e-4
    assert change[..., :4].mean() > 0.1


def check_inpainting_base():
    """Its UNet reads nine channels, its latents have four."""
    import safetensors.torch
    import torch

    tensors = safetensors.torch.load_file(GRAPH.models / "thin.safetensors")
    tensors = {k: t for k, t in tensors.items() if k.startswith("model.")}
    key = "model.diffusion_model.input_blocks.0.0.weight"
    tensors[key] = torch.cat([tensors[key], torch.full((320, 5, 3, 3), 0.01).half()], dim=1)
    with tempfile.TemporaryDirectory() as folder:
        safetensors.torch.save_file(tensors, Path(folder) / "inpainting.safetensors")
        base = host.load_base(Path(folder) / "inpainting.safetensors")
    model = apply(base)
    assert model.model.diffusion_model.input_blocks[0][0].in_channels == 9
    clip = host.sample(model, sigmas(model), frames=4)
    assert clip.shape == (4, 4, 8, 8)
    assert clip.isfinite().all()
    plain_clip = host.sample(base, sigmas(model), frames=4)
    assert close(clip, plain_clip) > 0.01, "the motion module did nothing"


def check_dtype_matrix():
    """Weights of each dtype, computed with as the host would here (float32) and as on a GPU."""
    import torch

    node = GRAPH.nodes["ADL_SlidingContext"]
    contexts = [None] + [
        node.execute(8, 2, "static", "pyramid", False, 1, where).result[0]
        for where in ("latents", "features")
    ]
    references = [ours(apply(context=context)) for context in contexts]
    for base, compute, bar in GRAPH.bases_of_every_dtype():
        for context, reference in zip(contexts, references, strict=True):
            model = apply(base, context=context)
            motion = model.get_additional_models()[0].model
            assert {p.dtype for p in motion.parameters()} == {compute}
            seen = set()
            out = base.model.diffusion_model.out
            hook = out.register_forward_hook(lambda _m, x, _y, s=seen: s.add(x[0].dtype))
            clip = ours(model)
            hook.remove()
            assert seen == {compute}, seen
            assert torch.isfinite(clip).all()
            assert close(clip, reference) < bar, (compute, close(clip, reference))


def check_known_extensions_are_the_hosts():
    """But for those of programs and of whole pickled models, which are not opened for safety."""
    import folder_paths

    known = set(host.submodule("motion_module.content").EXTENSIONS)
    assert folder_paths.supported_pt_extensions - known == {".pkl", ".pt2"}
    assert known < folder_paths.supported_pt_extensions


def check_levels_are_read_where_there_is_no_float64():
    """As on Apple's GPUs: a tensor must leave the device before it becomes float64."""
    import torch

    class OnDevice(torch.Tensor):
        def double(self):
            raise TypeError("Cannot convert a MPS Tensor to float64 dtype")

        def cpu(self):
            return self.as_subclass(torch.Tensor)

    model = apply()
    grid = [s.as_subclass(OnDevice) for s in (levels(model), sigmas(model), levels(GRAPH.base))]
    checks = host.submodule("nodes.checks")
    checks.check_schedule(*grid)
    assert not list(checks.warnings(16, 1.0, grid[1], 4))
    low = core_sigmas(GRAPH.base, 4).as_subclass(OnDevice)
    assert "too little" in refusal(checks.check_schedule, grid[0], low, grid[2])


def levels(model):
    """Return the sigma of every training timestep of a MODEL."""
    return model.get_model_object("model_sampling").sigmas


def check_a_file_name_from_a_link_is_not_read_anew():
    """The host asks with None where an input is linked; an error would sample every time."""
    nodes = GRAPH.nodes
    assert nodes["ADL_LoadMotionModule"].fingerprint_inputs(motion_module=None) is None
    lora = nodes["ADL_LoadMotionLoRA"]
    assert lora.fingerprint_inputs(motion_module=None, motion_lora=None, strength=1.0) is None
    assert nodes["ADL_LoadVideo"].fingerprint_inputs(video=None) is None


def check_lowvram_with_a_small_budget():
    """Load base and motion with room for a tenth of their weights; the host casts the rest."""
    no_paging()
    model = apply()
    reference, plain_before = ours(model), plain()
    motion = model.get_additional_models()[0]
    seen = set()

    def look(*_):
        parts = (model.model, motion.model)
        seen.update((m.model_lowvram, m.model_loaded_weight_memory > 0) for m in parts)

    with small_budget():
        clip = ours(model, callback=look)
    assert seen == {(True, True)}, seen
    assert equal(clip, reference)
    assert equal(plain(), plain_before)


def check_compiled_runs_equal_eager_in_every_order():
    """Plain, ours, another module, plain, with one compiled UNet: each equals its eager result."""
    import torch._dynamo

    eager = {"plain": plain(), "ours": ours(), "other": ours(apply(name=OTHER_FILE))}
    # TorchCompileModel before Apply: compiled once and reached by all clones; and after it
    torch._dynamo.utils.counters.clear()
    base = compiled(GRAPH.base)
    runs = [
        ("plain", base),
        ("ours", apply(base)),
        ("other", apply(base, OTHER_FILE)),
        ("plain", base),
        ("ours", apply(base)),
        ("ours", compiled(apply())),
    ]
    for name, model in runs:
        values = core_sigmas(model, 2) if name == "plain" else sigmas(model, 2)
        assert close(host.sample(model, values), eager[name]) < 1e-4, name
    # broken graphs, of which there are dozens, would run the hooks in any case
    graphs = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    assert len(runs) - 1 <= graphs <= 2 * len(runs), graphs


if __name__ == "__main__":
    main(GRAPH, globals())
