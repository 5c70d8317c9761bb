"""What clips are compared by: features of the miniature's probe, or of the Kinetics I3D."""

from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor

from ..miniature import metrics, probe
from ..models.latents import to_frames, to_images
from . import i3d, i3d_weights

Features = Callable[[Tensor], Tensor]
OTHER_SEEDS = 1_000_000  # how far the seeds of what is compared with are from a method's own


def network(i3d_file: Path | None, device: torch.device) -> Features:
    """Return what makes features (n, d) of clips, uint8 (n, frames, h, w, 3), both on the CPU.

    i3d_file: weights of the Kinetics I3D, None: the miniature's probe.
    """
    if i3d_file is None:
        return lambda clips: probe.features(to_images(clips))
    loaded = i3d.I3D().requires_grad_(False).eval()
    loaded.load_state_dict(i3d_weights.load_weights(i3d_file))
    loaded.to(device)
    return lambda clips: i3d.logits(loaded, clips).cpu()


def of_true_clips(
    features: Features, captions: Sequence[str], style: str, seed: int, at_once: int
) -> Tensor:
    """Return features (n, d) of clips as the miniature's world draws them, in a style."""
    clips = to_frames(metrics.other_true_clips(captions, style, seed))
    return torch.cat([features(few) for few in clips.split(at_once)])
