"""The `generate` command: loads the models once and writes a clip for every prompt."""

import sys
import time
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from tqdm import tqdm

from ..motion_module import checkpoint, lora
from .files import clip_writer
from .miniature import shipped, styles, world
from .miniature.names import is_miniature
from .models.base_model import BaseModel, load_base, quiet_libraries
from .models.devices import choose_device, choose_dtype
from .sampling.request import DEFAULT_STEPS, ClipRequest
from .sampling.sample import check_positions, decode, generate_latents

MINIATURE_NOTICE = (
    "note: this is the miniature, a toy world of 16 x 16 pixels that comes with the package; for a "
    "real clip pass --base (an SD1.5 checkpoint) and --motion-module "
    "(animatediff_lightning_4step_comfyui.safetensors)."
)
_SMALLEST_SIDE = 256  # the miniature draws thumbnails, too small to look at


@dataclass(frozen=True)
class ModelChoice:
    """Which files to load and how; without files, the bundled miniature. See load_base.

    `base` may also be "miniature:STYLE", one of the miniature's base models.
    """

    base: Path | str | None = None
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
    miniature = is_miniature(models.base)
    if miniature:
        _say(MINIATURE_NOTICE)
        for prompt in (*request.prompts, request.negative_prompt):
            world.check_prompt(prompt)
        models = with_miniature(models, request)
    known = checkpoint.load(models.motion_module)
    request = request.settled(
        known.steps or (shipped.STEPS if miniature else DEFAULT_STEPS),
        float(known.metadata.get("cfg", 1)),
    )
    loras = _load_loras(models.motion_loras, known)
    check_positions(known.config.max_frames, request)
    for doubt in request.doubts(known.steps):
        _say(f"warning: {doubt}")
    base = load_base(
        models.base,
        config=models.config,
        tokenizer=models.tokenizer,
        prediction_type=models.prediction_type,
        device=device,
        dtype=dtype,
    )
    request = request.sized(base.default_size, base.default_size, base.latent_factor)
    _warn_of_long_prompts(base, request)
    module = known.build(dtype=dtype).to(device)
    lora.merge(module, loras)
    return [
        _make_clip(base, module, prompt, request, out, miniature)
        for prompt, out in zip(request.prompts, request.outputs(), strict=True)
    ]


def with_miniature(models: ModelChoice, request: ClipRequest) -> ModelChoice:
    """Return the choice with the miniature's files; ValueError for a style that it lacks.

    Its undistilled motion module stands in for step counts that none was distilled for, and where
    guidance is asked for.
    """
    style = str(models.base or shipped.PREFIX + styles.F0).removeprefix(shipped.PREFIX)
    default = shipped.motion_module_for(request.steps, request.sampler, request.cfg)
    return replace(models, base=shipped.base(style), motion_module=models.motion_module or default)


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


def _make_clip(
    base: BaseModel,
    module: torch.nn.Module,
    prompt: str,
    request: ClipRequest,
    out: Path,
    miniature: bool,
) -> Path:
    start = time.perf_counter()
    # one frame: the bare image model, as the warning said
    motion = module if request.frames > 1 else None
    with tqdm(total=request.steps, desc=out.stem, unit="step", disable=None) as bar:
        latents = generate_latents(base, motion, prompt, request, on_step=bar.update)
    frames = clip_writer.enlarge(decode(base, latents).numpy(), _SMALLEST_SIDE if miniature else 1)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        clip_writer.write_clip(out, frames, request.fps)
    for warning in caught:
        _say(f"warning: {warning.message}")
    if miniature and out.suffix.lower() != ".png":
        clip_writer.write_clip(out.with_suffix(".png"), frames, request.fps)
    count, height, width, _ = frames.shape
    sheet = f" and {out.with_suffix('.png').name}" if miniature else ""
    print(
        f"wrote {out}{sheet}: {count} frame{'s' * (count > 1)} of {width}x{height}, "
        f"{request.fps:g} fps, "
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
