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
