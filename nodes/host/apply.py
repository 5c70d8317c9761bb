"""Applies a motion module to a MODEL of the host, through its official extension points only.

Motion weights are an additional model that the host's memory management owns; forward hooks come
and go by the host's injections; run state is set by its wrappers and cleared after every run.
"""

import weakref

from comfy.model_patcher import ModelPatcher
from comfy.patcher_extension import CallbacksMP, PatcherInjection, WrappersMP

from ...motion_module import inject, layout
from .. import checks
from .applied import KEY, AppliedMotion, get_applied_motion
from .execution import show_on_node
from .model_sampling import make_model_sampling
from .motion_module import LoadedMotionModule
from .placement import Placement, is_dynamic
from .run import wrap_apply_model, wrap_diffusion_model, wrap_outer_sample
from .sliding import add_windows
from .windows import WindowSettings


def apply_motion_module(
    model: ModelPatcher,
    motion_module: LoadedMotionModule,
    scale: float,
    sliding: WindowSettings | None = None,
) -> ModelPatcher:
    """Return a clone of `model` that samples with the motion module; `model` stays as it is.

    Raises ValueError where the base model is not of the motion module's shape or its sampling is
    not an SD1.5 one, and where it carries a motion module already.
    """
    if get_applied_motion(model) is not None:
        raise ValueError(
            "this MODEL already has a motion module; remove one of the two Apply Motion Module "
            "nodes, or connect the second one to the MODEL before the first one."
        )
    unet = model.get_model_object("diffusion_model")
    layout.check_fit(motion_module.file.config, layout.sites(unet))
    context_dim = model.model.model_config.unet_config.get("context_dim")
    base_sampling = model.get_model_object("model_sampling")
    zsnr = getattr(base_sampling, "zsnr", False)
    show_on_node(*checks.base_warnings(context_dim, zsnr))

    model = model.clone()
    model.add_object_patch("model_sampling", make_model_sampling(model))
    applied = AppliedMotion(motion_module.file, scale, base_sampling, sliding)
    model.set_attachments(KEY, applied)
    model.set_additional_models(KEY, [motion_module.weights(Placement.beside(model)).clone()])
    model.add_callback_with_key(CallbacksMP.ON_CLONE, KEY, _follow_clone)
    model.set_injections(KEY, [_make_injection(applied)])
    model.add_wrapper_with_key(WrappersMP.OUTER_SAMPLE, KEY, wrap_outer_sample(applied))
    model.add_wrapper_with_key(WrappersMP.APPLY_MODEL, KEY, wrap_apply_model(applied))
    model.add_wrapper_with_key(WrappersMP.DIFFUSION_MODEL, KEY, wrap_diffusion_model(applied))
    if sliding is not None:
        add_windows(model, applied, sliding)
    return model


def _follow_clone(_model: ModelPatcher, clone: ModelPatcher) -> None:
    """Give a clone whose base model is no longer paged motion weights that are not, either.

    The host makes such clones for torch.compile and for conditionings with hooks.
    """
    [motion] = clone.get_additional_models_with_key(KEY)
    if is_dynamic(motion) and not is_dynamic(clone):
        clone.set_additional_models(KEY, [motion.clone(disable_dynamic=True)])


def _make_injection(applied: AppliedMotion) -> PatcherInjection:
    def inject_hooks(patcher: ModelPatcher) -> None:
        unet = patcher.model.diffusion_model
        inject.eject(unet)  # one patcher of a UNet is in use at a time, whatever became of others
        # of this patcher: a clone on another device has weights of its own there
        [motion_patcher] = patcher.get_additional_models_with_key(KEY)
        run = applied.get_run(patcher.model)
        injection = inject.inject(unet, motion_patcher.model, run=run)
        # a patcher that dies in a reference cycle has lost its weak key before it can eject
        applied.ejectors[patcher] = weakref.finalize(patcher, injection.eject)

    def eject_hooks(patcher: ModelPatcher) -> None:
        # a clone copies is_injected without owning an ejector, and ejects when it is collected
        eject = applied.ejectors.pop(patcher, None)
        if eject is not None:
            eject()

    return PatcherInjection(inject=inject_hooks, eject=eject_hooks)
