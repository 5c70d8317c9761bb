"""What a training of a motion module leaves: its work folder, the weights, a sample of them."""

import json
from pathlib import Path

import torch

from ...motion_module import checkpoint
from ...motion_module.files import atomic_path
from ..data import video_folder
from ..engine import distributed
from ..engine.loop import CHECKPOINT
from ..files import clip_writer
from ..sampling.request import ClipRequest
from ..sampling.sample import decode, generate_latents
from . import lora
from .loss import Training
from .request import MotionRequest

RUN = "run.json"
_SAMPLE_STEPS, _SAMPLE_CFG = 25, 7.5
_SMALLEST_SIDE = 64  # pixels of a frame in the contact sheet


def check_not_done(request: MotionRequest) -> None:
    """Raise ValueError where the output is there and no checkpoint tells that it is ours."""
    if request.out.exists() and not (request.work_folder / CHECKPOINT).is_file():
        raise ValueError(f"{request.out} exists; choose another --out, or delete it first.")


def claim_work_folder(training: Training) -> None:
    """Write down what is trained, or refuse the checkpoint of something else."""
    file = training.request.work_folder / RUN
    videos = training.videos
    wanted = training.request.fingerprint()
    wanted["videos"] = video_folder.digest(videos.names, videos.captions)
    distributed.barrier()  # or a slow process could meet a fast one's file
    if file.is_file():
        found = json.loads(file.read_text())
        other = [k for k in wanted if found.get(k) != wanted[k]]
        if other:
            raise ValueError(
                f"{file.parent} holds a training with another {other[0].replace('_', '-')} "
                f"({found.get(other[0])}, now {wanted[other[0]]}); go on with the same, or delete "
                "that folder to begin anew."
            )
    distributed.barrier()
    if distributed.rank() == 0 and not file.is_file():
        with atomic_path(file) as temporary:
            temporary.write_text(json.dumps(wanted, indent=2))


def finish(training: Training) -> None:
    """Write the trained weights and what else was asked for, and clear the work folder."""
    request = training.request
    if request.sample is not None:
        print(f"wrote {_draw_sample(training)}: {request.sample!r}.")
    _save(training)
    print(f"wrote {request.out} ({request.what}, {request.iterations} iterations).")
    _remove_work(training)


def _draw_sample(training: Training) -> Path:
    """Write a contact sheet of the sample's caption, by the weights as trained."""
    shape, prompt = training.shape, training.request.sample
    file = training.request.out.with_suffix(".png")
    request = ClipRequest(
        (prompt,),
        steps=_SAMPLE_STEPS,
        seed=training.request.seed,
        frames=shape.frames,
        width=shape.width,
        height=shape.height,
        cfg=_SAMPLE_CFG,
        fps=shape.fps,
        out=file,
    )
    latents = generate_latents(training.base, training.module, prompt, request)
    frames = decode(training.base, latents).numpy()
    return clip_writer.write_clip(file, clip_writer.enlarge(frames, _SMALLEST_SIDE), shape.fps)


def _save(training: Training) -> None:
    request = training.request
    dtype = getattr(torch, request.save_dtype)
    biggest = max(w.abs().max().item() for w in training.weights.values())
    if biggest > torch.finfo(dtype).max:
        raise ValueError(
            f"a weight of {biggest:g} does not fit into {request.save_dtype}; give the same "
            "command with --save-dtype float32."
        )
    metadata = _metadata(training)
    if training.lora is None:
        checkpoint.save(training.module.to(dtype), request.out, metadata=metadata)
    else:
        lora.save(training.weights, request.out, dtype, metadata)


def _metadata(training: Training) -> dict[str, object]:
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
        | ({"rank": request.lora} if request.lora else {})
    )


def _remove_work(training: Training) -> None:
    """Remove the checkpoint, and its folder where nothing else lies in it."""
    folder = training.request.work_folder
    # a killed process leaves the temporary file that it was writing
    for file in (folder / CHECKPOINT, folder / RUN, *folder.glob(".checkpoint-*.pt")):
        file.unlink(missing_ok=True)
    if folder.is_dir() and not any(folder.iterdir()):
        folder.rmdir()
