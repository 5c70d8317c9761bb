"""Where the weights go: the patcher class of the host, the device of the MODEL, several devices.

    PYTHON_OF_COMFYUI tests/host/device_checks.py COMFYUI_FOLDER MODELS_FOLDER [CHECK ...]

Two devices are "cpu" and "cpu:1", which torch takes for different ones although their tensors lie
in the same memory. So these checks see which weights, run states and hints each device is given;
that nothing is left on the wrong one, and that it gets faster, only two GPUs can show.
"""

import contextlib
from functools import cache
from unittest import mock

import controls
import host
from checking import CannotCheckError, Graph, close, main, outputs

GRAPH = Graph()
FRAMES, CFG = 14, 1.5
KEY = "animatediff_lightning"


def placement():
    return host.submodule("nodes.host.placement")


@contextlib.contextmanager
def two_devices():
    """Let the host see two devices; gives them."""
    import comfy.model_management
    import torch

    devices = [torch.device("cpu"), torch.device("cpu:1")]
    with mock.patch.object(comfy.model_management, "get_all_torch_devices", return_value=devices):
        yield devices


def node(name):
    """Return a node of the host for several devices."""
    try:
        import comfy_extras.nodes_multigpu as nodes
    except ImportError as error:
        raise CannotCheckError("this ComfyUI has no nodes for several devices") from error
    return getattr(nodes, name)


def split(model):
    """Put the core's MultiGPU CFG Split behind a MODEL."""
    cfg_split = node("MultiGPUCFGSplitNode")
    with two_devices():
        return outputs(cfg_split, model, 2)[0]


def sliding(where):
    context = GRAPH.nodes["ADL_SlidingContext"]
    return where and context.execute(8, 2, "static", "pyramid", False, 1, where).result[0]


@cache
def with_motion(where):
    return GRAPH.apply(context=sliding(where))


def sample(model, **kwargs):
    return host.sample(model, GRAPH.sigmas(model, 2), frames=FRAMES, cfg=CFG, **kwargs)


def used_weights(model):
    """Return by base model: the motion modules that ran in its UNet, while `model` samples."""
    inject = host.submodule("motion_module.inject")
    used, make = {}, inject._make_hook

    def make_noting_hook(site, run):
        hook = make(site, run)

        def note(module, inputs, output):
            used.setdefault(id(module), set()).add(id(site.transformer))
            return hook(module, inputs, output)

        return note

    with mock.patch.object(inject, "_make_hook", make_noting_hook):
        sample(model)
    return used


def check_weights_have_the_patcher_class_of_the_host():
    import comfy.model_patcher

    loaded = GRAPH.load()
    model = GRAPH.nodes["ADL_ApplyMotionModule"].execute(GRAPH.base, loaded).result[0]
    [motion] = model.get_additional_models_with_key(KEY)
    assert type(motion) is type(GRAPH.base), (type(motion), type(GRAPH.base))
    assert motion.load_device == GRAPH.base.load_device
    assert motion.offload_device == GRAPH.base.offload_device
    assert isinstance(loaded.patcher, comfy.model_patcher.ModelPatcher)
    assert loaded.get_models() == [loaded.patcher]


def check_clones_that_are_not_paged_have_motion_that_is_not():
    """The host makes them for torch.compile and for conditionings with hooks."""
    if not placement().is_dynamic(GRAPH.base):
        raise CannotCheckError("this ComfyUI pages no weights here")
    model = GRAPH.apply()
    clone = model.clone(disable_dynamic=True)
    for paged, patcher in ((True, model), (False, clone), (False, clone.clone())):
        [motion] = patcher.get_additional_models_with_key(KEY)
        assert (patcher.is_dynamic(), motion.is_dynamic()) == (paged, paged)
    assert close(sample(clone), sample(model)) < 1e-6


def check_the_caches_of_the_host_know_the_weights():
    import comfy.model_patcher

    if not hasattr(comfy.model_patcher, "is_model_patcher_output"):
        raise CannotCheckError("this ComfyUI has no cache that asks for patchers")
    loaded = GRAPH.load()
    assert not comfy.model_patcher.is_model_patcher_output(loaded)
    GRAPH.nodes["ADL_ApplyMotionModule"].execute(GRAPH.base, loaded)
    assert comfy.model_patcher.is_model_patcher_output(loaded)
    assert loaded.is_dynamic() == GRAPH.base.is_dynamic()
    assert loaded.get_ram_usage() == loaded.patcher.model_size() > 1e6
    tracker = comfy.model_patcher.PromptModelTracker()
    tracker.add([[loaded], [4]])
    assert len(tracker.models) == GRAPH.base.is_dynamic()
    tracker.end()


def check_weights_follow_the_device_of_the_model():
    import torch

    loaded = GRAPH.load()
    for device in (torch.device("cpu"), torch.device("cpu:1"), torch.device("cpu")):
        base = host.load_base(GRAPH.models / "thin.safetensors")
        base.load_device = device
        if hasattr(base, "register_load_device"):
            base.register_load_device(device)
        model = GRAPH.nodes["ADL_ApplyMotionModule"].execute(base, loaded).result[0]
        [motion] = model.get_additional_models_with_key(KEY)
        assert motion.load_device == device
        assert loaded.patcher.load_device == device
    assert len(loaded.get_models()) == 2


def check_select_model_device_before_apply():
    select = node("SelectModelDeviceNode")
    with two_devices() as devices:
        base = outputs(select, host.load_base(GRAPH.models / "thin.safetensors"), "gpu:1")[0]
        model = GRAPH.apply(base)
    [motion] = model.get_additional_models_with_key(KEY)
    assert (base.load_device, motion.load_device) == (devices[1], devices[1])
    assert close(sample(model), sample(with_motion(None))) < 1e-6


def check_as_many_windows_as_the_patcher_has_memory_for():
    """Newer hosts also count what their patcher can page out."""
    patcher = type(GRAPH.base)
    if not hasattr(patcher, "get_free_memory"):
        raise CannotCheckError("the patchers of this ComfyUI tell no free memory")
    context = GRAPH.nodes["ADL_SlidingContext"]
    as_many_as_fit = context.execute(8, 2, "static", "pyramid", False, 0, "latents").result[0]
    model = GRAPH.apply(context=as_many_as_fit)
    calls = []
    hook = model.model.diffusion_model.out.register_forward_hook(
        lambda _module, inputs, _output: calls.append(inputs[0].shape[0])
    )
    try:
        for free, size in ((0, 8), (1e18, 16)):
            calls.clear()
            with mock.patch.object(patcher, "get_free_memory", return_value=free):
                host.sample(model, GRAPH.sigmas(model, 1), frames=FRAMES)
            assert set(calls) == {size}, (free, calls)
    finally:
        hook.remove()


def check_compute_dtype_that_a_node_has_set():
    import torch

    base = host.load_base(GRAPH.models / "thin.safetensors", {"dtype": torch.float16})
    if not hasattr(base, "set_model_compute_dtype"):
        raise CannotCheckError("this ComfyUI sets no compute dtype")
    base.set_model_compute_dtype(torch.bfloat16)
    assert placement().get_compute_dtype(base) == torch.bfloat16


def check_cfg_split_gives_the_same_clip():
    for where in (None, "latents", "features"):
        wanted = sample(with_motion(where))
        # the split before Apply, and after it
        before = GRAPH.apply(split(GRAPH.base), context=sliding(where))
        for model in (split(with_motion(where)), before):
            assert len(model.get_additional_models_with_key("multigpu")) == 1
            assert close(sample(model), wanted) < 1e-5, (where, close(sample(model), wanted))
        assert close(sample(with_motion(where)), wanted) == 0


def check_each_device_runs_its_own_weights():
    model = split(with_motion(None))
    used = used_weights(model)
    [other] = model.get_additional_models_with_key("multigpu")
    assert other.model is not model.model
    modules = [p.get_additional_models_with_key(KEY)[0].model for p in (model, other)]
    assert modules[0] is not modules[1]
    for base, motion in zip((model, other), modules, strict=True):
        ran = set().union(*(used.get(id(m), ()) for m in base.model.diffusion_model.modules()))
        assert ran == {id(part) for part in motion.temporal_transformers().values()}


def check_each_device_has_a_run_state_of_its_own():
    model = split(GRAPH.apply(context=sliding("features")))
    applied = host.submodule("nodes.host.applied").get_applied_motion(model)
    inject = host.submodule("motion_module.inject")
    handed, make = [], inject.inject
    with mock.patch.object(
        inject,
        "inject",
        lambda unet, module, run: handed.append(run) or make(unet, module, run=run),
    ):
        sample(model)
    bases = [model.model, model.get_additional_models_with_key("multigpu")[0].model]
    assert set(applied.runs) == set(bases)
    assert {id(run) for run in handed} == {id(applied.runs[base]) for base in bases}
    assert len({id(run) for run in handed}) == 2
    assert all(run.num_frames is None and run.windows is None for run in handed)


def check_a_lora_reaches_every_device():
    """Also where a split of the same weights without it, or with another one, was loaded before."""
    module = GRAPH.load()
    apply = GRAPH.nodes["ADL_ApplyMotionModule"].execute
    weights = GRAPH.weights(module)
    names = [name for name, _ in weights.named_parameters()][:40]
    kept = []  # or the host would have no split of before to take up again
    with_lora = host.submodule("nodes.host.motion_module").WithMotionLora
    for amount in (0.0, 0.02, 0.05):
        patches = {n: ("diff", (weights.get_parameter(n).detach() * 0 + amount,)) for n in names}
        lora = with_lora(module.file, None, below=module, patches=patches, strength=1.0)
        model = apply(GRAPH.base, lora).result[0]
        kept.append(split(model))
        assert close(sample(kept[-1]), sample(model)) < 1e-5, amount
    others = [m.get_additional_models_with_key("multigpu")[0].model for m in kept]
    assert others[0] is others[1] is others[2], "the host loaded every split anew"


def check_controls_are_sliced_for_every_device():
    def control():
        below = controls.control("other_controlnet", controls.hints(FRAMES) ** 2)
        return controls.control("controlnet", controls.hints(FRAMES), previous=below)

    wanted = sample(with_motion("latents"), control=control())
    assert close(wanted, sample(with_motion("latents"))) > 1e-3, "the control did nothing"
    clip = sample(split(with_motion("latents")), control=control())
    assert close(clip, wanted) < 1e-5, close(clip, wanted)


def check_the_plain_model_stays_after_a_split_run():
    before = GRAPH.plain()
    sample(split(with_motion(None)))
    assert close(GRAPH.plain(), before) == 0
    assert host.unet_hooks(GRAPH.base) == 0


if __name__ == "__main__":
    main(GRAPH, globals())
