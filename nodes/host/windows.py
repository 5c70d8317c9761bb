"""Windows around the model: a context handler for the host, which slices what is per frame.

Knows the host's shapes (conditionings, controls) but imports nothing of it; sliding.py hands
in what it needs. A handler object lives for one Apply, its slices for one model call.
"""

import copy
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

import torch
from einops import rearrange

from ...samplers import context

Where = Literal["latents", "features"]
ADVANCED = "sub_idxs"  # the field by which Advanced-ControlNet knows its own


@dataclass(frozen=True)
class WindowSettings:
    """The ADL_CONTEXT of the graph: how to make a clip longer than the motion module's positions.

    where: "latents" runs the whole model window by window; "features" runs it once on all frames
    and only the temporal attention in windows. windows_per_call (latents only): 0 = as many as
    memory allows.
    """

    options: context.ContextOptions = field(default_factory=context.ContextOptions)
    where: Where = "latents"
    windows_per_call: int = 1

    def call_length(self, num_frames: int) -> int:
        """Return the frames that one model call holds for certain, for the memory estimate."""
        if self.where == "features":
            return num_frames
        return min(num_frames, self.options.context_length * max(1, self.windows_per_call))


def find_step(sigma: torch.Tensor, sample_sigmas: torch.Tensor) -> int:
    """Return the step of the run whose sigma is nearest; samplers may evaluate between two."""
    return int((sample_sigmas.to(sigma) - sigma.flatten()[0]).abs().argmin())


@dataclass
class LatentWindows:
    """ComfyUI's context handler, by its methods `should_use_context` and `execute`.

    `on_length(n)` tells the motion modules the frames of a window; `fits(shape, model)` asks the
    host whether a call has memory; `check_cancelled()` raises when the user pressed Cancel.
    """

    context: WindowSettings
    on_length: Callable[[int | None], None]
    fits: Callable[[list[int], object], bool]
    check_cancelled: Callable[[], None]
    _controls: dict[int, object] = field(default_factory=dict)
    _links: list[tuple[object, object]] = field(default_factory=list)

    def should_use_context(self, model, conds, x_in, timestep, model_options) -> bool:  # noqa: ARG002
        """Tell whether the clip is longer than a window."""
        return x_in.shape[0] > self.context.options.context_length

    def execute(self, calc_cond_batch, model, conds, x_in, timestep, model_options):
        """Evaluate all windows, several a call; returns a fused prediction per conditioning."""
        shared = model_options["transformer_options"]
        step = find_step(timestep, shared["sample_sigmas"])
        plan = context.plan(len(x_in), self.context.options, step)
        length, placed = plan.indices.shape[1], plan.to(x_in)
        fused = [torch.zeros_like(x_in) for _ in conds]
        self.on_length(length)
        try:
            per_call = self._count_windows_per_call(model, conds, x_in)
            for rows in torch.arange(len(plan)).split(per_call):
                self.check_cancelled()
                index = plan.indices[rows].flatten()
                # IPAdapter_plus and Advanced-ControlNet slice their own inputs by exactly this
                shared["ad_params"] = {
                    "sub_idxs": index.tolist(),
                    "full_length": len(x_in),
                    "context_length": len(index),
                }
                predictions = calc_cond_batch(
                    model,
                    [self._slice_conds(c, index, len(x_in)) for c in conds],
                    x_in[index],
                    timestep[index],
                    model_options,
                )
                weights = rearrange(placed.weights[rows], "n f -> n f 1 1 1")
                for total, prediction in zip(fused, predictions, strict=True):
                    windows = rearrange(prediction, "(n f) c h w -> n f c h w", f=length) * weights
                    # one by one: windows of a call overlap
                    for window, frames in zip(windows, placed.indices[rows], strict=True):
                        total[frames] += window
                self._release_controls()
        finally:
            shared.pop("ad_params", None)
            self._release_controls()
            self.on_length(None)
        return fused

    def _count_windows_per_call(self, model, conds, x_in) -> int:
        length = self.context.options.context_length
        if any(slices_itself(c.get("control")) for cond in conds for c in cond or ()):
            return 1  # it looks frames up by number, and a call of several windows repeats some
        if self.context.windows_per_call:
            return self.context.windows_per_call
        chunks = sum(len(c) for c in conds if c is not None)
        count = -(-len(x_in) // (length - self.context.options.context_overlap))
        while count > 1 and not self.fits([chunks * count * length, *x_in.shape[1:]], model):
            count -= 1
        return count

    def _slice_conds(self, conds, index: torch.Tensor, num_frames: int):
        if conds is None:
            return None
        return [
            {k: self._slice(k, v, index, num_frames) for k, v in cond.items()} for cond in conds
        ]

    def _slice(self, key: str, value, index: torch.Tensor, num_frames: int):
        if key == "control":
            return self._slice_control(value, index)
        if key == "mask":
            return select_rows(value, index)
        if key == "model_conds":
            return {k: slice_model_cond(v, index) for k, v in value.items()}
        return slice_frames(value, index, num_frames)

    def _slice_control(self, control, index: torch.Tensor):
        """Return a shallow copy of a ControlNet, and of those before it, with the windows' hints.

        One copy for all conditionings of a call, or the host could not batch them. It goes with
        the call: the hints that it scales lie in the memory of the device. Where the host has a
        copy of a ControlNet for each device, each is sliced.
        """
        if control is None:
            return None
        if hasattr(control, ADVANCED):
            self._link(control, index)
            return control
        if id(control) not in self._controls:
            sliced = copy.copy(control)
            hint = control.cond_hint_original
            if hint is not None:
                sliced.cond_hint_original = select_rows(hint, index)
            sliced.cond_hint = None
            if hasattr(sliced, "control_input"):  # T2I-Adapter's cache
                sliced.control_input = None
            if getattr(control, "multigpu_clones", None):
                sliced.multigpu_clones = {
                    device: self._slice_control(other, index)
                    for device, other in control.multigpu_clones.items()
                }
            self._controls[id(control)] = sliced
        sliced = self._controls[id(control)]
        sliced.previous_controlnet = self._slice_control(control.previous_controlnet, index)
        return sliced

    def _link(self, control, index: torch.Tensor) -> None:
        """Put sliced ones before a control that slices itself alone, until the call is over."""
        if all(linked is not control for linked, _ in self._links):
            self._links.append((control, control.previous_controlnet))
            control.previous_controlnet = self._slice_control(control.previous_controlnet, index)
            for other in (getattr(control, "multigpu_clones", None) or {}).values():
                self._link(other, index)

    def _release_controls(self) -> None:
        self._controls.clear()
        while self._links:
            control, previous = self._links.pop()
            control.previous_controlnet = previous


def slices_itself(control) -> bool:
    """Tell whether Advanced-ControlNet is in a chain: it slices its own hints by ad_params."""
    while control is not None and not hasattr(control, ADVANCED):
        control = control.previous_controlnet
    return control is not None


def slice_frames(value, index: torch.Tensor, num_frames: int):
    """Return the frames of a tensor that has one row a frame; anything else as it is."""
    if isinstance(value, torch.Tensor) and value.ndim and len(value) == num_frames:
        return value[index.to(value.device)]
    return value


def slice_model_cond(value, index: torch.Tensor):
    """Return a host COND object for the frames of `index`."""
    tensor = getattr(value, "cond", None)
    if not isinstance(tensor, torch.Tensor) or tensor.ndim == 0 or len(tensor) == 1:
        return value
    return value._copy_with(select_rows(tensor, index))


def select_rows(batch: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
    """Return the rows of a batch that belong to the frames of `index`, as the host deals them out.

    One row is for all frames; more than the clip has frames: the first ones; fewer: they start
    anew, in turn.
    """
    return batch if len(batch) == 1 else batch[(index % len(batch)).to(batch.device)]
