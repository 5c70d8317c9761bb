"""The `train-motion` command: AnimateDiff's own training on real videos, or a motion LoRA's.

AnimateDiff (arXiv 2307.04725) section 4: linear betas, mean squared error in what the base model
predicts, captions dropped now and then, the base frozen. Unlike there: a cosine decay of the
learning rate and a moving average of the weights (see LoopOptions), and no random flips, which
would make captions such as "to the left" wrong. The base's activations are all kept (no gradient
checkpointing).
"""

import logging

import torch
from torch import nn

from ...motion_module import checkpoint, layout
from ...motion_module.config import MotionModuleConfig
from ...motion_module.inject import inject
from ...motion_module.module import MotionModule
from ...video.reader import ClipShape
from ..data import video_folder
from ..engine import distributed, loop
from ..engine.loop import LoopOptions
from ..engine.read_ahead import ReadAhead
from ..models.base_model import load_base, quiet_libraries
from ..models.devices import my_device
from ..models.latent_size import check_size
from . import clips, lora, results
from .loss import Training, motion_loss
from .request import MotionRequest

logger = logging.getLogger(__name__)


def train_motion(request: MotionRequest) -> None:
    """Train what is asked for and write it; goes on from the checkpoint where there is one.

    Works in each of torchrun's processes. Raises ValueError, with one sentence and before any
    training, for files that cannot be used or do not fit together.
    """
    device = my_device(request.device)
    distributed.start(device)
    try:
        results.check_not_done(request)
        training = prepare(request, device)
        bad_before = len(training.videos.bad)
        results.claim_work_folder(training)
        train_weights(training)
        if len(training.videos.bad) > bad_before:
            _warn(video_folder.list_skipped(training.videos.bad))
        if distributed.rank() == 0:
            results.finish(training)
        distributed.barrier()
    finally:
        distributed.stop()


def prepare(request: MotionRequest, device: torch.device) -> Training:
    """Load and check videos and models, and return them with the weights to train."""
    quiet_libraries()
    request.share(distributed.rank(), distributed.world_size())
    start = checkpoint.load(request.motion_module) if request.motion_module else None
    if start is not None:
        _check_start(start, request)
    videos = clips.open_videos(request.data, request.frames, request.fps)
    if videos.bad:
        _warn(video_folder.list_skipped(videos.bad))
    base = load_base(request.base, **request.reading(), device=device)
    width, height = (side or base.default_size for side in (request.width, request.height))
    check_size(width, height, base.latent_factor)
    module = start.build(dtype=torch.float32) if start else fresh_module(base.unet, request)
    layout.check_fit(module.config, layout.sites(base.unet))
    module.to(device)
    attached, weights = _trainable(module, request)
    shape = ClipShape(request.frames, request.fps, width, height)
    return Training(request, base, module, videos, shape, attached, weights)


def fresh_module(unet: nn.Module, request: MotionRequest) -> MotionModule:
    """Return a new motion module, as AnimateDiff v2 has it, for every place of a UNet."""
    positions = max(request.frames, MotionModuleConfig.max_frames)
    config = layout.config_for(unet, max_frames=positions)
    return MotionModule(config).initialise(torch.Generator().manual_seed(request.seed))


def train_weights(training: Training) -> None:
    """Train the weights in place, and leave the base model without the motion module."""
    request = training.request
    options = LoopOptions(
        request.iterations,
        request.learning_rate,
        warmup=request.warmup,
        ema=request.ema,
        clip=request.clip,
        save_every=request.save_every,
    )
    share = request.share(distributed.rank(), distributed.world_size())
    ahead = ReadAhead(
        lambda step, i: clips.draw_clip(
            training.videos, training.shape, request.no_caption, request.seed, step, i
        ),
        share,
        request.iterations,
        request.workers,
    )
    injection = inject(training.base.unet, training.module, num_frames=request.frames)
    loss = motion_loss(training, ahead)
    try:
        loop.train_weights(request.what, training.weights, loss, options, request.work_folder)
    finally:
        injection.eject()
        ahead.close()


def _trainable(
    module: MotionModule, request: MotionRequest
) -> tuple[lora.AttachedLora | None, dict[str, nn.Parameter]]:
    if request.lora is None:
        module.requires_grad_(True)
        return None, dict(module.named_parameters())
    module.requires_grad_(False)
    generator = torch.Generator().manual_seed(request.seed)
    attached = lora.attach(module, request.lora, generator, request.alpha)
    return attached, attached.weights


def _check_start(start: checkpoint.MotionCheckpoint, request: MotionRequest) -> None:
    if request.frames > start.config.max_frames:
        raise ValueError(
            f"{start.path.name} has positions for {start.config.max_frames} frames; lower "
            f"--frames from {request.frames}."
        )
    if start.steps and request.lora is None:
        _warn(
            f"{start.path.name} was distilled for {start.steps} "
            f"step{'s' * (start.steps > 1)}, and training on videos undoes the distillation; "
            "start from an undistilled motion module, such as AnimateDiff v2."
        )


def _warn(sentence: str) -> None:
    if distributed.rank() == 0:
        logger.warning(sentence)
