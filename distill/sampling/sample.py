"""From a prompt and a seed to frames: noise, few steps with an injected motion module, decoding.

The noise is ComfyUI's for the same seed, and "euler" starts from exactly that unit noise, so both
hosts make the same clip. Section 4 of AnimateDiff-Lightning (arXiv 2403.12706).
"""

import contextlib
import itertools
from collections.abc import Callable, Iterator, Sequence

import torch
from diffusers.schedulers.scheduling_dpmsolver_multistep import DPMSolverMultistepScheduler
from diffusers.schedulers.scheduling_lcm import LCMScheduler
from torch import Tensor

from ...motion_module.inject import inject
from ...motion_module.module import MotionModule
from ...samplers import context, euler, guidance, prediction, schedule
from ...samplers.euler import PredictEps
from ...samplers.text_length import to_common_length
from ..models.base_model import BaseModel, encode_prompts
from .settings import ClipSize, SamplingSettings

OnStep = Callable[[], None]
Encode = Callable[[BaseModel, Sequence[str]], Tensor]  # (prompts, tokens, width)
_BETAS = {
    "num_train_timesteps": schedule.NUM_TRAIN_TIMESTEPS,
    "beta_start": schedule.BETA_START,
    "beta_end": schedule.BETA_END,
    "beta_schedule": "linear",
}
# AnimateLCM's authors: 100; more steps need a finer grid that still begins at T
_LCM_ORIGINAL_STEPS = (100, 125, 200, 250, 500, 1000)


@torch.inference_mode()
def generate_latents(
    base: BaseModel,
    motion_module: MotionModule | None,
    prompts: Sequence[str],
    seeds: Sequence[int],
    settings: SamplingSettings,
    on_step: OnStep | None = None,
    lcm_noise: torch.Generator | None = None,
    encode: Encode = encode_prompts,
) -> Tensor:
    """Return clean latents (clips, frames, channels, h, w), float32, of clips that run together.

    Each clip has its own prompt and seed; `settings` must be sized. None as motion module draws
    unrelated images. `on_step()` is called after each denoising step. `lcm_noise` draws what "lcm"
    adds between its steps, by default the generator of the first clip's noise does. `encode` reads
    the prompts, by default as plain text. Raises ValueError where the module does not fit the base
    model or has fewer positions than frames.
    """
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    noise = [initial_noise(base, settings, generator) for generator in generators]
    x = torch.cat(noise).to(base.device)  # (clips f) c h w
    predict_eps = eps_predictor(base, prompts, settings, encode)
    if settings.context is not None:
        predict_eps = in_windows(predict_eps, settings.context, len(prompts))
    sample = SAMPLE[settings.sampler]
    with _moving(base, motion_module, settings):
        generator = lcm_noise or generators[0]
        x0 = sample(predict_eps, x, settings.steps, generator, on_step or _nothing)
    return x0.unflatten(0, (len(prompts), settings.frames))


def initial_noise(base: BaseModel, size: ClipSize, generator: torch.Generator) -> Tensor:
    """Draw unit noise (frames, channels, h, w) on the CPU in float32, as ComfyUI does."""
    w, h = (side // base.latent_factor for side in size.pixels)
    return torch.randn(size.frames, base.latent_channels, h, w, generator=generator)


def eps_predictor(
    base: BaseModel,
    prompts: Sequence[str],
    settings: SamplingSettings,
    encode: Encode = encode_prompts,
) -> PredictEps:
    """Return predict_eps(x_t, t) of one clip a prompt, x_t being (clips x frames, c, h, w).

    It is guided where cfg is not 1, see samplers/guidance.py.
    """
    text = encode(base, prompts)
    cfg, negative = settings.cfg, text
    if cfg != 1:
        text, negative = to_common_length([text, encode(base, [settings.negative_prompt])])
        negative = negative.expand_as(text)

    def predict_plain(x: Tensor, t: int, text: Tensor) -> Tensor:
        frames = len(x) // len(text)
        text_of_frames = text.repeat_interleave(frames, dim=0)  # (clips f) tokens width
        # not the number itself, for whose copy a GPU would wait
        at = torch.full((), t, device=x.device)
        out = base.unet(x.to(base.dtype), at, encoder_hidden_states=text_of_frames).sample.float()
        return prediction.as_eps(out, x, t, base.prediction_type)

    def predict_eps(x: Tensor, t: int) -> Tensor:
        return guidance.predict_guided(predict_plain, x, t, text, negative, cfg)

    return predict_eps


def in_windows(
    predict_eps: PredictEps, options: context.ContextOptions, clips: int = 1
) -> PredictEps:
    """Return predict_eps for clips of any length: window by window, fused where they overlap.

    The windows of a step depend on how often the result was called before, once a step.
    """
    steps = itertools.count()

    def predict_fused(x: Tensor, t: int) -> Tensor:
        x = x.unflatten(0, (clips, -1))  # clips f c h w
        plan = context.plan(x.shape[1], options, next(steps)).to(x)
        fused = torch.zeros_like(x)
        for window, weight in zip(plan.indices, plan.weights, strict=True):
            eps = predict_eps(x[:, window].flatten(0, 1), t).unflatten(0, (clips, -1))
            fused[:, window] += eps * weight[:, None, None, None]
        return fused.flatten(0, 1)

    return predict_fused


def check_positions(max_frames: int, settings: SamplingSettings) -> None:
    """Raise ValueError where a motion module has too few positions for what it sees at once."""
    if settings.frames_a_call > max_frames:
        raise ValueError(
            f"this motion module has positions for {max_frames} frames, "
            f"not {settings.frames_a_call}; use --context-length {min(16, max_frames)}, or fewer "
            "--frames."
        )


@contextlib.contextmanager
def _moving(
    base: BaseModel, motion_module: MotionModule | None, settings: SamplingSettings
) -> Iterator[None]:
    """Put a motion module into a base model for a while; with None the base model stays bare."""
    if motion_module is None:
        yield
        return
    check_positions(motion_module.config.max_frames, settings)
    frames, scale = settings.frames_a_call, settings.motion_scale
    injection = inject(base.unet, motion_module, num_frames=frames, scale=scale)
    try:
        yield
    finally:
        injection.eject()


def _euler(
    predict_eps: PredictEps, x: Tensor, steps: int, _generator: torch.Generator, on_step: OnStep
) -> Tensor:
    timesteps = schedule.trailing_timesteps(steps)
    return euler.sample(predict_eps, x, timesteps, lambda _i, _x0: on_step())


def _dpmpp(
    predict_eps: PredictEps, x: Tensor, steps: int, generator: torch.Generator, on_step: OnStep
) -> Tensor:
    scheduler = DPMSolverMultistepScheduler(**_BETAS, timestep_spacing="trailing")
    return _with_scheduler(scheduler, predict_eps, x, steps, generator, on_step)


def _lcm(
    predict_eps: PredictEps, x: Tensor, steps: int, generator: torch.Generator, on_step: OnStep
) -> Tensor:
    original = next(n for n in _LCM_ORIGINAL_STEPS if n >= steps)
    scheduler = LCMScheduler(**_BETAS, original_inference_steps=original)
    return _with_scheduler(scheduler, predict_eps, x, steps, generator, on_step)


def _with_scheduler(
    scheduler: DPMSolverMultistepScheduler | LCMScheduler,
    predict_eps: PredictEps,
    x: Tensor,
    steps: int,
    generator: torch.Generator,
    on_step: OnStep,
) -> Tensor:
    scheduler.set_timesteps(steps)
    for t in scheduler.timesteps:
        # both schedulers are told eps, whatever the base model predicts
        x = scheduler.step(predict_eps(x, int(t)), t, x, generator, return_dict=False)[0]
        on_step()
    return x


def _nothing() -> None:
    pass


SAMPLE = {"euler": _euler, "dpmpp": _dpmpp, "lcm": _lcm}
