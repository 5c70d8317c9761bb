"""The `generate` command: loads the models once and writes a clip for every prompt."""

import logging
import time
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from tqdm import tqdm

from ..motion_module import checkpoint, lora
from ..motion_module.module import MotionModule
from .files import clip_writer
from .miniature import shipped, styles, world
from .miniature.names import PREFIX, is_miniature
from .models import prompt, prompt_weights
from .models.base_model import BaseModel, load_base, quiet_libraries
from .models.devices import choose_device, choose_dtype
from .models.embeddings import load_embeddings
from .models.latents import decode_frames
from .models.prompt_checks import list_syntax_warnings
from .sampling.model_choice import ModelChoice
from .sampling.request import ClipRequest, list_warnings
from .sampling.sample import Encode, check_positions, generate_latents
from .sampling.settings import SamplingSettings

MINIATURE_NOTICE = (
    "this is the miniature, a bundled toy world of 16 x 16 pixels; for a real clip, pass "
    "--base (an SD1.5 checkpoint) and --motion-module "
    "(animatediff_lightning_4step_comfyui.safetensors)."
)
_SMALLEST_SIDE = 256  # the miniature draws thumbnails, too small to look at
logger = logging.getLogger(__name__)


def make_clips(request: ClipRequest, models: ModelChoice) -> list[Path]:
    """Write every clip of a request and return the files; notes and warnings are logged.

    Raises ValueError, with one sentence, for models that cannot be used or do not fit together.
    """
    quiet_libraries()
    device = choose_device(models.device)
    dtype = choose_dtype(models.dtype, device)
    miniature = is_miniature(models.base)
    if miniature:
        logger.info(MINIATURE_NOTICE)
        for text in request.texts:
            world.check_prompt(prompt_weights.words(text))
        models = with_miniature(models, request)
    base_name, module_file = models.base, models.motion_module
    if base_name is None or module_file is None:
        raise ValueError("--motion-module is missing; give both, or neither to use the miniature.")
    motion_checkpoint = checkpoint.load(module_file)
    logger.debug("the motion module is %s", motion_checkpoint.path)
    settings = request.settled(
        motion_checkpoint.steps or (shipped.STEPS if miniature else SamplingSettings.steps),
        float(motion_checkpoint.metadata.get("cfg", SamplingSettings.cfg)),
    )
    loras = _load_loras(models.motion_loras, motion_checkpoint)
    check_positions(motion_checkpoint.config.max_frames, settings)
    warnings = list_warnings(settings, motion_checkpoint.steps)
    for warning in (*warnings, *list_syntax_warnings(request.texts)):
        logger.warning(warning)
    base = load_base(base_name, **models.reading(), device=device, dtype=dtype)
    settings = settings.sized(base.default_size, base.latent_factor)
    encode = _prompt_encoder(base, request)
    module = motion_checkpoint.build(dtype=dtype).to(device)
    lora.merge(module, loras)
    return [
        _make_clip(base, module, text, encode, request, settings, out, miniature)
        for text, out in zip(request.prompts, request.outputs(), strict=True)
    ]


def with_miniature(models: ModelChoice, request: ClipRequest) -> ModelChoice:
    """Return the choice with the miniature's files; ValueError for a style that it lacks.

    Its undistilled motion module stands in for step counts that none was distilled for, and where
    guidance is asked for.
    """
    style = (models.base or PREFIX + styles.F0).removeprefix(PREFIX)
    default = shipped.motion_module_for(request.steps, request.sampler, request.cfg)
    base = str(shipped.base(style))
    return replace(models, base=base, motion_module=models.motion_module or default)


def _load_loras(
    choices: Sequence[tuple[Path, float]], motion_checkpoint: checkpoint.MotionCheckpoint
) -> list[tuple[lora.MotionLora, float]]:
    loras = [(lora.load(path), strength) for path, strength in choices]
    config = motion_checkpoint.config
    for motion_lora, _ in loras:
        used = lora.weight_patches(motion_lora, config)  # refuses before the base model is read
        left_out = len(motion_lora.beyond(config))
        if left_out:
            logger.warning(
                "%s has %d weights for a mid block, but this motion module has no mid block; the "
                "other %d weights are used.",
                motion_lora.path.name,
                left_out,
                len(used),
            )
        if motion_lora.for_image_model:
            logger.warning(
                "%s also changes %d layers of the image model, which is not done here; only its "
                "%d weights for the motion module are used.",
                motion_lora.path.name,
                motion_lora.for_image_model,
                len(used),
            )
    return loras


def _make_clip(
    base: BaseModel,
    module: MotionModule,
    text: str,
    encode: Encode,
    request: ClipRequest,
    settings: SamplingSettings,
    out: Path,
    miniature: bool,
) -> Path:
    start = time.perf_counter()
    # one frame: the bare image model, as the warning said
    motion = module if settings.frames > 1 else None
    with tqdm(total=settings.steps, desc=out.stem, unit="step", disable=None) as bar:
        (latents,) = generate_latents(
            base, motion, [text], [request.seed], settings, bar.update, encode=encode
        )
    frames = decode_frames(base, latents).numpy()
    frames = clip_writer.enlarge(frames, _SMALLEST_SIDE if miniature else 1)
    clip_writer.write_clip(out, frames, request.fps)
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


def _prompt_encoder(base: BaseModel, request: ClipRequest) -> Encode:
    """Return what reads the request's prompts, its textual inversions being read already."""
    names = [name for text in request.texts for name in prompt_weights.embedding_names(text)]
    vectors = load_embeddings(request.embeddings, names, base.text_encoder.config.hidden_size)
    for text in request.texts:
        chunks = len(prompt.prompt_chunks(base, text, vectors))
        if chunks > 1:
            logger.debug("a prompt is read in %d chunks: %r...", chunks, text[:40])
    return partial(prompt.encode_weighted, embeddings=vectors)
