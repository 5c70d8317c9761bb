"""Checks that run inside a ComfyUI interpreter; each prints one JSON line.

    PYTHON_OF_COMFYUI tests/host/sampling_checks.py COMFYUI_FOLDER MODELS_FOLDER

tests/test_host_in_process.py starts it and turns each line into a test result.
"""

import gc
import json
import os
import sys
import tempfile
import traceback
from pathlib import Path

import host

NODES = {}
STATE = {}
MOTION_FILE = "animatediff_lightning_4step_thin.safetensors"
OTHER_FILE = "other_2step.safetensors"


def close(a, b):
    """Return the relative difference of two tensors."""
    return float((a - b).norm() / b.norm())


def refusal(function, *args, **kwargs):
    """Return the sentence of the ValueError that a call must raise."""
    try:
        function(*args, **kwargs)
    except ValueError as error:
        sentence = str(error)
        assert "\n" not in sentence, sentence
        assert sentence.endswith("."), sentence
        return sentence
    raise AssertionError("nothing was refused")


def load(name=MOTION_FILE):
    return NODES["ADL_LoadMotionModule"].execute(name).result[0]


def apply(model=None, name=MOTION_FILE, **kwargs):
    model = STATE["base"] if model is None else model
    return NODES["ADL_ApplyMotionModule"].execute(model, load(name), **kwargs).result[0]


def sigmas(model, steps=4, start_step=0):
    return NODES["ADL_LightningScheduler"].execute(model, steps, start_step).result[0]


def core_sigmas(model, steps=4, scheduler="simple"):
    import comfy.samplers

    sampling = model.get_model_object("model_sampling")
    return comfy.samplers.calculate_sigmas(sampling, scheduler, steps)


def plain(**kwargs):
    return host.sample(STATE["base"], core_sigmas(STATE["base"], 2), **kwargs)


def ours(model=None, **kwargs):
    model = apply() if model is None else model
    return host.sample(model, sigmas(model, 2), **kwargs)


def equal(a, b):
    import torch

    return torch.equal(a, b)


def check_steps_come_from_the_file_name():
    assert NODES["ADL_LoadMotionModule"].execute(MOTION_FILE).result[1] == 4


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
    assert host.unet_hooks(STATE["base"]) == 0


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

    hook = STATE["base"].model.diffusion_model.out.register_forward_hook(fail)
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
    base = STATE["base"].clone()
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
    base = STATE["base"]
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

    v_base = ModelSamplingDiscrete().patch(STATE["base"], "v_prediction", False)[0]
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
    assert "without the motion module" in refusal(
        host.sample, apply(), core_sigmas(STATE["base"], 4)
    )


def check_scheduler_wants_the_applied_model():
    assert "Apply Motion Module" in refusal(sigmas, STATE["base"])


def check_zero_steps_asks_for_steps():
    assert "by hand" in refusal(sigmas, apply(), 0)


def check_start_step_out_of_range():
    assert "start_step" in refusal(sigmas, apply(), 4, 4)


def check_two_applies_are_refused():
    assert "already carries" in refusal(apply, apply())


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
    unet = STATE["base"].model.diffusion_model
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
    import logging

    messages = []
    handler = logging.Handler()
    handler.emit = lambda record: messages.append(record.getMessage())
    logging.getLogger().addHandler(handler)
    try:
        sigmas(apply(), 8)
        sigmas(apply(name=OTHER_FILE), 3)
        model = apply()
        host.sample(model, sigmas(model, 4), cfg=7.0)
    finally:
        logging.getLogger().removeHandler(handler)
    ours_only = [m for m in messages if m.startswith("[AnimateDiff-Lightning]")]
    assert len(ours_only) == 2, ours_only
    assert "distilled for 4 steps, not 8" in ours_only[0]
    assert "cfg 7" in ours_only[1]


def check_ksampler_gives_the_same_clip():
    import torch

    import nodes as core

    model = apply()
    (latent,) = core.KSampler().sample(
        model, 0, 4, 1.0, "euler", "simple", host.conditioning(1), host.conditioning(2),
        {"samples": torch.zeros(16, 4, 8, 8)},
    )  # fmt: skip
    assert close(latent["samples"], host.sample(model, sigmas(model, 4))) < 1e-5


def check_custom_samplers_give_the_same_clip():
    import torch
    from comfy_extras import nodes_custom_sampler as core

    model = apply()
    values = sigmas(model, 4)
    (sampler,) = first(core.KSamplerSelect, "euler")
    (guider,) = first(core.BasicGuider, model, host.conditioning(1))
    (noise,) = first(core.RandomNoise, 0)
    latent = {"samples": torch.zeros(16, 4, 8, 8)}
    advanced = first(core.SamplerCustomAdvanced, noise, guider, sampler, values, latent)[0]
    custom = first(
        core.SamplerCustom, model, True, 0, 1.0, host.conditioning(1), host.conditioning(2),
        sampler, values, latent,
    )[0]  # fmt: skip
    reference = host.sample(model, values)
    assert equal(advanced["samples"], reference)
    assert equal(custom["samples"], reference)


def first(node, *args):
    """Run a core node of the old or the new node interface."""
    if hasattr(node, "execute") and hasattr(node, "define_schema"):
        return node.execute(*args).result
    return getattr(node(), node.FUNCTION)(*args)


def check_dtype_matrix():
    import torch

    reference = ours()
    for dtype, bar in ((torch.float16, 0.03), (torch.bfloat16, 0.2)):
        base = host.load_base(STATE["models"] / "thin.safetensors", {"dtype": dtype})
        model = apply(base)
        motion = model.get_additional_models()[0].model
        compute = base.model.manual_cast_dtype or base.model.get_dtype()
        assert {p.dtype for p in motion.parameters()} == {compute}
        clip = ours(model)
        assert torch.isfinite(clip).all()
        assert close(clip, reference) < bar, (dtype, close(clip, reference))


def check_lowvram_with_a_small_budget():
    """Load base and motion with room for a tenth of their weights; the host casts the rest."""
    import torch

    model = apply()
    reference = ours(model)
    motion = model.get_additional_models()[0]
    plain_before = plain()
    cpu = torch.device("cpu")
    for patcher in (model, motion):
        patcher.detach()
        patcher.load(cpu, lowvram_model_memory=patcher.model_size() // 10)
        assert patcher.model.model_lowvram
    clip = ours(model)
    for patcher in (model, motion):
        patcher.detach()
    assert equal(clip, reference)
    assert equal(plain(), plain_before)


def check_compiled_runs_equal_eager_in_every_order():
    """Plain, ours, another module, plain, with one compiled UNet: each equals its eager result."""
    import torch._dynamo
    from comfy_api.torch_helpers import set_torch_compile_wrapper

    # past the limit Dynamo runs eagerly, which would hide a missing guard
    torch._dynamo.config.recompile_limit = 256
    torch._dynamo.config.accumulated_recompile_limit = 4096
    eager = {"plain": plain(), "ours": ours(), "other": ours(apply(name=OTHER_FILE))}
    base = STATE["base"].clone()
    # a UNet compiled once and reached by all clones, as TorchCompileModel before Apply gives it
    # what could go wrong are Dynamo's guards; ADL_COMPILE_BACKEND=inductor also compiles (minutes)
    set_torch_compile_wrapper(model=base, backend=os.environ.get("ADL_COMPILE_BACKEND", "eager"))
    runs = [
        ("plain", base), ("ours", apply(base)), ("other", apply(base, OTHER_FILE)),
        ("plain", base), ("ours", apply(base)),
    ]  # fmt: skip
    for name, model in runs:
        values = core_sigmas(model, 2) if name == "plain" else sigmas(model, 2)
        assert close(host.sample(model, values), eager[name]) < 1e-4, name


def main(comfyui, models, only=()):
    models = Path(models)
    host.start(comfyui)
    NODES.update(host.our_nodes())
    with tempfile.TemporaryDirectory() as folder:
        host.random_motion_module(Path(folder) / MOTION_FILE, seed=0)
        host.random_motion_module(Path(folder) / OTHER_FILE, seed=1)
        renamed = Path(folder) / "x_lightning_2step.safetensors"
        (Path(folder) / OTHER_FILE).rename(renamed)
        globals()["OTHER_FILE"] = renamed.name
        host.add_model_folder(folder)
        STATE.update(models=models, base=host.load_base(models / "thin.safetensors"))
        for name, function in list(globals().items()):
            if name.startswith("check_") and (not only or name in only):
                try:
                    function()
                    result = "ok"
                except Exception:
                    result = traceback.format_exc()
                print(json.dumps({"check": name, "result": result}), flush=True)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], sys.argv[3:])
