"""What happens around a run of the host's sampler and around each of its model calls."""

from .. import checks
from . import preview
from .applied import AppliedMotion
from .execution import show_on_node
from .model_sampling import get_training_sigmas, make_core_sigmas
from .sliding import check_guidance_in_windows, plan_feature_windows


def wrap_outer_sample(applied: AppliedMotion):
    """Return the wrapper of a run: checks and warnings before it, contact sheets meanwhile."""

    def check_and_sample(
        executor,
        noise,
        latent_image,
        sampler,
        sigmas,
        denoise_mask=None,
        callback=None,
        *args,
        **kwargs,
    ):
        guider = executor.class_obj
        longest = None if applied.sliding is not None else applied.file.config.max_frames
        checks.check_latent(noise.shape, longest)
        base = applied.base_sampling
        low_start = checks.check_schedule(
            get_training_sigmas(guider.model_patcher),
            sigmas,
            base.sigmas,
            lambda steps: make_core_sigmas(base, steps),
        )
        frames = noise.shape[0]
        check_guidance_in_windows(guider.model_options, applied.sliding, frames)
        show_on_node(
            low_start,
            *checks.warnings(frames, _find_strongest_cfg(guider), sigmas, applied.file.steps),
            *checks.text_warnings(_read_prompt_lengths(guider), frames),
        )
        try:
            callback = preview.add_contact_sheets(callback)
            return executor(
                noise, latent_image, sampler, sigmas, denoise_mask, callback, *args, **kwargs
            )
        finally:
            applied.end_run()

    return check_and_sample


def _find_strongest_cfg(guider: object) -> float:
    """Return the largest guidance scale of a guider, 1 where it has none.

    DualCFGGuider has two, and an idle `cfg`; the guiders of some packs have one for each step.
    """
    scales = []
    for name in ("cfg", "cfg1", "cfg2"):
        scale = getattr(guider, name, 1.0)
        scales += scale if isinstance(scale, list | tuple) else [scale]
    return max((float(s) for s in scales if isinstance(s, int | float)), default=1.0)


def _read_prompt_lengths(guider) -> set[int]:
    """Return for how many frames each of the run's prompts has embeddings."""
    conds = [cond for part in getattr(guider, "conds", {}).values() for cond in part]
    return {cond["cross_attn"].shape[0] for cond in conds if cond.get("cross_attn") is not None}


def wrap_apply_model(applied: AppliedMotion):
    """Return the wrapper of a model call: it sets what the hooks in the UNet read."""

    # around what torch.compile traces: reading the step off the noise level would break its graph
    def set_run(executor, x, t, c_concat, c_crossattn, control, transformer_options, **kwargs):
        run = applied.get_run(executor.class_obj)
        run.num_frames = applied.count_frames(x, transformer_options)
        if applied.sliding is not None and applied.sliding.where == "features":
            windows = plan_feature_windows(applied.sliding, run.num_frames, x, transformer_options)
            run.windows = windows
        kwargs[applied.mark] = True
        return executor(x, t, c_concat, c_crossattn, control, transformer_options, **kwargs)

    return set_run


def wrap_diffusion_model(applied: AppliedMotion):
    """Return the wrapper of a call of the UNet, which does not know the argument of our mark."""

    def take_off_mark(executor, *args, **kwargs):
        del kwargs[applied.mark]
        return executor(*args, **kwargs)

    return take_off_mark
