"""What Apply Motion Module leaves on a MODEL."""

import uuid
import weakref
from dataclasses import dataclass, field

import torch
from comfy.model_patcher import ModelPatcher

from ...motion_module import checkpoint, inject
from .windows import WindowSettings

KEY = "animatediff_lightning"


@dataclass
class AppliedMotion:
    """What one Apply leaves on a MODEL: which module, and the state of the run in progress.

    All clones of the MODEL share it, those on other devices too; `runs` has a state for each of
    their base models, since two devices may run at the same time.
    """

    file: checkpoint.MotionCheckpoint
    scale: float
    base_sampling: torch.nn.Module  # the host's model sampling of the MODEL that came into Apply
    sliding: WindowSettings | None = None
    window_length: int | None = None  # frames of a clip in a call; None: all that the call holds
    # Goes with each call of the UNet as the name of an argument. torch.compile guards neither hooks
    # nor, as the host sets it up, options, so a graph without motion would serve for one with it.
    mark: str = field(default_factory=lambda: f"{KEY}_{uuid.uuid4().hex}")
    runs: "weakref.WeakKeyDictionary[torch.nn.Module, inject.MotionRun]" = field(
        default_factory=weakref.WeakKeyDictionary
    )
    ejectors: "weakref.WeakKeyDictionary[ModelPatcher, weakref.finalize]" = field(
        default_factory=weakref.WeakKeyDictionary
    )

    def get_run(self, base_model: torch.nn.Module) -> inject.MotionRun:
        """Return the state that the hooks in the UNet of a base model read."""
        if base_model not in self.runs:
            self.runs[base_model] = inject.MotionRun(scale=self.scale)
        return self.runs[base_model]

    def count_frames(self, x: torch.Tensor, transformer_options: dict) -> int:
        """Return the frames of a clip (or window) in the batch of a model call."""
        return self.window_length or x.shape[0] // len(transformer_options["cond_or_uncond"])

    def end_run(self) -> None:
        """Let go of what the last call has set; hooks that outlive the run then do nothing."""
        for run in self.runs.values():
            run.num_frames = run.windows = None


def get_applied_motion(model: ModelPatcher) -> AppliedMotion | None:
    """Return what Apply Motion Module left on this MODEL, None if it never passed one."""
    return model.get_attachment(KEY)
