"""The `generate` command: loads the models once and writes a clip for every prompt."""

import sys
import time
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from tqdm import tqdm

from ..motion_module import checkpoint, lora
from . import random_models, video
from .base_models import BaseModel, load_base, quiet_libraries
from .generate import check_positions, decode, generate_latents
from .request import ClipRequest

RANDOM_NOTICE = (
    "note: no models were given, so small ones with RANDOM weights show that the pipeline works "
    "and the clip is coloured noise; for a real clip pass --base (an SD1.5 checkpoint) and "
    "--motion-module (animatediff_lightning_4step_comfyui.safetensors)."
)
_SMALLEST_SIDE = 256  # the random models draw thumbnails, too small to look at


@dataclass(frozen=True)
class ModelChoice:
    """Which files to load and how; without files, the random models. See load_base."""

    base: Path | None = None
    motion_module: Path | None = None
    motion_loras: tuple[tuple[Path, float], ...] = ()  # (file, strength)
    tokenizer: Path | None = None
    config: Path | None = None
    prediction_type: str | None = None
    device: str = "auto"
    dtype: str = "auto"


def make_clips(request: ClipRequest, models: ModelChoice) -> list[Path]:
    """Write every clip of a request and return the files; notes and warnings go to stderr.

    Raises ValueError, with one sentence, for models that cannot be used or do not fit together.
    """
    quiet_libraries()
    device = choose_device(models.device)
    dtype = choose_dtype(models.dtype, device)
    random = models.base is None
    if random:
        _say(RANDOM_NOTICE)
        made = random_models.ensure()
        models = ModelChoice(made.base, made.motion_module, prediction_type=models.prediction_type)
    known = checkpoint.load(models.motion_module)
    loras = _load_loras(models.motion_loras, known)
    check_positions(known.config.max_frames, request)
    for doubt in request.doubts(known.steps):
        _say(f"warning: {doubt}")
    base = load_base(
        models.base, config=models.config, tokenizer=models.tokenizer,
        prediction_type=models.prediction_type, device=device, dtype=dtype,
    )  # fmt: skip
    request = request.sized(base.default_size, base.default_size, base.latent_factor)
    _warn_of_long_prompts(base, request)
    module = known.build(dtype=dtype).to(device)
    lora.merge(module, loras)
    side = _SMALLEST_SIDE if random else 1
    return [
        _make_clip(base, module, prompt, request, out, side)
        for prompt, out in zip(request.prompts, request.outputs(), strict=True)
    ]


def _load_loras(
    choices: Sequence[tuple[Path, float]], known: checkpoint.MotionCheckpoint
) -> list[tuple[lora.MotionLora, float]]:
    loras = [(lora.load(path), strength) for path, strength in choices]
    for found, _ in loras:
        used = lora.weight_patches(found, known.config)  # refuses before the base model is read
        left_out = len(found.beyond(known.config))
        if left_out:
            _say(
                f"warning: {found.path.name} changes {left_out} weights of a mid block, which this "
                f"motion module lacks; only the other {len(used)} are used."
            )
    return loras


def choose_device(name: str) -> torch.device:
    """Return the device of that name, for "auto" the best one here; ValueError for one not here."""
    if name == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise ValueError(f"device {name!r} is not available here; use auto or cpu.") from error
    if device.type == "meta":
        raise ValueError("device 'meta' computes nothing; use auto or cpu.")
    return device


def choose_dtype(name: str, device: torch.device) -> torch.dtype:
    """Return the dtype of that name, for "auto" float16 on a GPU and float32 on the CPU."""
    if name == "auto":
        return torch.float32 if device.type == "cpu" else torch.float16
    return {
        "float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16
    }[name]  # fmt: skip


def _make_clip(
    base: BaseModel,
    module: torch.nn.Module,
    prompt: str,
    request: ClipRequest,
    out: Path,
    smallest_side: int,
) -> Path:
    start = time.perf_counter()
    # one frame: the bare image model, as the warning said
    motion = module if request.frames > 1 else None
    with tqdm(total=request.steps, desc=out.stem, unit="step", disable=None) as bar:
        latents = generate_latents(base, motion, prompt, request, on_step=bar.update)
    frames = video.enlarge(decode(base, latents).numpy(), smallest_side)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        video.write_clip(out, frames, request.fps)
    for warning in caught:
        _say(f"warning: {warning.message}")
    count, height, width, _ = frames.shape
    print(
        f"wrote {out}: {count} frame{'s' * (count > 1)} of {width}x{height}, {request.fps:g} fps, "
        f"in {time.perf_counter() - start:.1f} s."
    )
    return out


def _warn_of_long_prompts(base: BaseModel, request: ClipRequest) -> None:
    for prompt in (*request.prompts, request.negative_prompt):
        count = base.num_tokens(prompt)
        if count > base.max_tokens:
            _say(
                f"warning: a prompt has {count} tokens and the text encoder reads "
                f"{base.max_tokens}, so its end is ignored: {prompt[:40]!r}..."
            )


def _say(sentence: str) -> None:
    print(sentence, file=sys.stderr)
