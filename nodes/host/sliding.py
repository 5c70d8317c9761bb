"""Sliding windows in the graph: how a MODEL samples clips longer than the module's positions.

The windows lie around the whole model, or inside the temporal attention alone.
"""

import comfy.model_management
import torch
from comfy.model_patcher import ModelPatcher
from comfy.patcher_extension import WrappersMP

from ...samplers import context
from .. import checks
from .applied import KEY, AppliedMotion
from .execution import raise_if_cancelled
from .windows import LatentWindows, WindowSettings, find_step


def add_windows(model: ModelPatcher, applied: AppliedMotion, sliding: WindowSettings) -> None:
    """Let a MODEL with motion sample in windows; raises ValueError where they are too long."""
    checks.check_window(sliding.options.context_length, applied.file.config.max_frames)
    model.add_wrapper_with_key(WrappersMP.PREPARE_SAMPLING, KEY, _wrap_prepare_sampling(sliding))
    if sliding.where == "latents":
        model.model_options["context_handler"] = LatentWindows(
            sliding,
            on_length=lambda length: setattr(applied, "window_length", length),
            fits=_fits_in_memory,
            check_cancelled=raise_if_cancelled,
        )


def check_guidance_in_windows(
    model_options: dict, sliding: WindowSettings | None, num_frames: int
) -> None:
    """Raise ValueError where Self-Attention Guidance would meet windows around the model.

    It compares the clip with the attention of the model's last call, which is that of one window.
    """
    if sliding is None or sliding.where != "latents":
        return
    if num_frames <= sliding.options.context_length:
        return
    functions = model_options.get("sampler_post_cfg_function", [])
    if any(f.__module__.endswith("nodes_sag") for f in functions):
        checks.refuse_self_attention_guidance()


def _fits_in_memory(shape: list[int], model) -> bool:
    # newer hosts also count what their patcher can page out
    own = getattr(model.current_patcher, "get_free_memory", None)
    free = (own or comfy.model_management.get_free_memory)(model.device)
    return model.memory_required(shape) * 1.5 < free  # the host's own margin


def _wrap_prepare_sampling(sliding: WindowSettings):
    def estimate_one_call(executor, model, noise_shape, *args, **kwargs):
        shape = [sliding.call_length(noise_shape[0]), *noise_shape[1:]]
        return executor(model, shape, *args, **kwargs)

    return estimate_one_call


def plan_feature_windows(
    sliding: WindowSettings, num_frames: int, x: torch.Tensor, transformer_options: dict
) -> context.ContextWindows | None:
    """Return the windows inside the temporal attention, None where all frames see each other."""
    if num_frames <= sliding.options.context_length:
        return None
    step = find_step(transformer_options["sigmas"], transformer_options["sample_sigmas"])
    return context.plan(num_frames, sliding.options, step).to(x)
