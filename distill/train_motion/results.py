"""What a training of a motion module leaves: its work folder, the weights, a sample of them."""

from pathlib import Path

import torch

from ...motion_module import checkpoint, lora_scale
from ..data import video_folder
from ..engine import distributed
from ..engine.loop import CHECKPOINT
from ..files import claim, clip_writer
from ..models.latents import decode_frames
from ..sampling.sample import generate_latents
from ..sampling.settings import SamplingSettings
from . import lora
from .loss import Training
from .request import MotionRequest

RUN = "run.json"
_REMEDY = "delete that folder to begin anew"
_SAMPLE_STEPS, _SAMPLE_CFG = 25, 7.5
_SMALLEST_SIDE = 64  # pixels of a frame in the contact sheet


def check_not_done(request: MotionRequest) -> None:
    """Raise ValueError where the output is there and no checkpoint tells that it is ours."""
    if request.out.exists() and not (request.work_folder / CHECKPOINT).is_file():
        raise ValueError(f"{request.out} exists; choose another --out, or delete it first.")


def claim_work_folder(training: Training) -> None:
    """Write down what is trained, or refuse the checkpoint of something else."""
    file, videos = training.request.work_folder / RUN, training.videos
    record = training.request.fingerprint()
    record["videos"] = video_folder.digest_videos(videos.names, videos.captions)
    distributed.barrier()  # or a slow process could meet a fast one's file
    claim.check_claim(file, record, "a training", _REMEDY)
    distributed.barrier()
    if distributed.rank() == 0:
        claim.claim(file, record, "a training", remedy=_REMEDY)


def finish(training: Training) -> None:
    """Write the trained weights and what else was asked for, and clear the work folder."""
    request = training.request
    if request.sample is not None:
        print(f"wrote {_draw_sample(training, request.sample)}: {request.sample!r}.")
    _save(training)
    print(f"wrote {request.out} ({request.what}, {request.iterations} iterations).")
    _remove_work(training)


def _draw_sample(training: Training, caption: str) -> Path:
    """Write a contact sheet of a caption, by the weights as trained."""
    request, shape = training.request, training.shape
    file = request.out.with_suffix(".png")
    settings = SamplingSettings(
        frames=shape.frames,
        width=shape.width,
        height=shape.height,
        steps=_SAMPLE_STEPS,
        cfg=_SAMPLE_CFG,
    )
    base, seeds = training.base, [request.seed]
    (latents,) = generate_latents(base, training.module, [caption], seeds, settings)
    frames = decode_frames(base, latents).numpy()
    return clip_writer.write_clip(file, clip_writer.enlarge(frames, _SMALLEST_SIDE), shape.fps)


def _save(training: Training) -> None:
    request = training.request
    dtype = getattr(torch, request.save_dtype)
    biggest = max(w.abs().max().item() for w in training.weights.values())
    if biggest > torch.finfo(dtype).max:
        raise ValueError(
            f"a weight of {biggest:g} does not fit into {request.save_dtype}; run the same "
            "command with --save-dtype float32."
        )
    metadata = metadata_of(training)
    if training.lora is None:
        checkpoint.save(training.module.to(dtype), request.out, metadata=metadata)
    else:
        lora.save_lora(training.weights, request.out, dtype, metadata)


def metadata_of(training: Training) -> dict[str, object]:
    """Return what the header of the trained file tells of how it was made."""
    request, shape = training.request, training.shape
    started = request.motion_module.name if request.motion_module else "fresh weights"
    return (
        {
            "family": f"AnimateDiff {request.what} by animatediff-lightning train-motion",
            "base": training.base.name,
            "prediction_type": training.base.prediction_type,
            "started_from": started,
            "videos": len(training.videos.names),
            "data": request.data,
            "frames": shape.frames,
            "fps": shape.fps,
            "width": shape.width,
            "height": shape.height,
        }
        | {
            k: getattr(request, k)
            for k in (
                "iterations",
                "batch",
                "learning_rate",
                "no_caption",
                "high_noise",
                "ema",
                "seed",
            )
        }
        | _tell_strength(request)
    )


def _tell_strength(request: MotionRequest) -> dict[str, object]:
    """Return what tells rank and alpha of a motion LoRA, nothing for a motion module.

    Not as alpha tensors, which other programs that read motion LoRAs take for weights.
    """
    if request.lora is None:
        return {}
    return {"rank": request.lora, **lora_scale.metadata_of(request.lora, request.alpha)}


def _remove_work(training: Training) -> None:
    """Remove the checkpoint, and its folder where nothing else lies in it."""
    folder = training.request.work_folder
    # a killed process leaves the temporary file that it was writing
    for file in (folder / CHECKPOINT, folder / RUN, *folder.glob(".checkpoint-*.pt")):
        file.unlink(missing_ok=True)
    if folder.is_dir() and not any(folder.iterdir()):
        folder.rmdir()
