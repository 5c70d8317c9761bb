"""From a prompt and a seed to frames: noise, few steps with an injected motion module, decoding.

The noise is ComfyUI's for the same seed, and "euler" starts from exactly that unit noise, so both
hosts make the same clip. Section 4 of AnimateDiff-Lightning (arXiv 2403.12706).
"""

import itertools
from collections.abc import Callable, Sequence

import torch
from diffusers import DPMSolverMultistepScheduler, LCMScheduler
from torch import Tensor

from ...motion_module.inject import inject
from ...motion_module.module import MotionModule
from ...samplers import context, euler, prediction, schedule
from ...samplers.euler import PredictEps
from ..models.base_model import BaseModel, encode_prompt, encode_prompts
from .request import ClipRequest

OnStep = Callable[[], None]
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
    prompt: str,
    request: ClipRequest,
    on_step: OnStep | None = None,
) -> Tensor:
    """Return the clean latents of one clip, shape (frames, channels, h, w), float32, on the device.

    `request` must be sized; None as motion module draws unrelated images. `on_step()` is called
    after each denoising step. Raises ValueError where the module does not fit the base model or has
    fewer positions than frames.
    """
    if motion_module is not None:
        check_positions(motion_module.config.max_frames, request)
    generator = torch.Generator().manual_seed(request.seed)
    x = initial_noise(base, request, generator).to(base.device)
    sample = SAMPLE[request.sampler]
    predict_eps = eps_predictor(base, prompt, request)
    if request.context is not None:
        predict_eps = in_windows(predict_eps, request.context)
    if motion_module is None:
        return sample(predict_eps, x, request.steps, generator, on_step or _nothing)
    injection = inject(
        base.unet, motion_module, num_frames=request.frames_a_call, scale=request.motion_scale
    )
    try:
        return sample(predict_eps, x, request.steps, generator, on_step or _nothing)
    finally:
        injection.eject()


@torch.inference_mode()
def generate_clips(
    base: BaseModel,
    motion_module: MotionModule,
    prompts: Sequence[str],
    seeds: Sequence[int],
    request: ClipRequest,
) -> Tensor:
    """Return clean latents (clips, frames, channels, h, w), float32, of clips that run together.

    Each has its own prompt and seed in place of the request's, which must be sized and have no
    windows.
    """
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    x = torch.cat([initial_noise(base, request, g) for g in generators]).to(base.device)
    predict_eps = clips_predictor(base, prompts, request.negative_prompt, request.cfg)
    injection = inject(
        base.unet, motion_module, num_frames=request.frames, scale=request.motion_scale
    )
    try:
        x0 = SAMPLE[request.sampler](predict_eps, x, request.steps, generators[0], _nothing)
    finally:
        injection.eject()
    return x0.unflatten(0, (len(prompts), request.frames))


@torch.inference_mode()
def decode(base: BaseModel, latents: Tensor, frames_at_once: int = 2) -> Tensor:
    """Decode latents (frames, channels, h, w) to uint8 RGB (frames, height, width, 3) on the CPU.

    `frames_at_once` bounds the memory.
    """
    frames = []
    for z in latents.split(frames_at_once):
        image = base.vae.decode(base.unscaled(z).to(base.vae.dtype)).sample
        image = ((image.float() / 2 + 0.5).clamp(0, 1) * 255).round().to(torch.uint8)
        frames.append(image.permute(0, 2, 3, 1).cpu())  # f h w c
    return torch.cat(frames)


def initial_noise(base: BaseModel, request: ClipRequest, generator: torch.Generator) -> Tensor:
    """Draw unit noise (frames, channels, h, w) on the CPU in float32, as ComfyUI does."""
    factor = base.latent_factor
    shape = (request.height // factor, request.width // factor)
    return torch.randn(request.frames, base.latent_channels, *shape, generator=generator)


def eps_predictor(base: BaseModel, prompt: str, request: ClipRequest) -> PredictEps:
    """Return predict_eps(x_t, t) of the base model for one clip, guided where cfg is not 1."""
    return clips_predictor(base, [prompt], request.negative_prompt, request.cfg)


def clips_predictor(
    base: BaseModel, prompts: Sequence[str], negative_prompt: str = "", cfg: float = 1.0
) -> PredictEps:
    """Return predict_eps(x_t, t) for one clip a prompt, x_t being (clips x frames, c, h, w).

    Guidance doubles the batch: eps = eps_negative + cfg (eps_prompt - eps_negative).
    """
    wanted = encode_prompts(base, prompts)
    text = wanted if cfg == 1 else _with_negative(base, wanted, negative_prompt)

    def predict_eps(x: Tensor, t: int) -> Tensor:
        guided = len(text) // len(prompts)
        frames = len(x) // len(prompts)
        batch = x.repeat(guided, 1, 1, 1).to(base.dtype)
        text_of_frames = text.repeat_interleave(frames, dim=0)  # (clips f) tokens width
        out = base.unet(batch, t, encoder_hidden_states=text_of_frames).sample.float()
        wanted, *unwanted = (
            prediction.as_eps(o, x, t, base.prediction_type) for o in out.chunk(guided)
        )
        return unwanted[0] + cfg * (wanted - unwanted[0]) if unwanted else wanted

    return predict_eps


def _with_negative(base: BaseModel, wanted: Tensor, negative_prompt: str) -> Tensor:
    unwanted = encode_prompt(base, negative_prompt).expand_as(wanted)
    return torch.cat([wanted, unwanted])


def in_windows(predict_eps: PredictEps, options: context.ContextOptions) -> PredictEps:
    """Return predict_eps for a clip of any length: window by window, fused where they overlap.

    The windows of a step depend on how often the result was called before, once a step.
    """
    steps = itertools.count()

    def predict_fused(x: Tensor, t: int) -> Tensor:
        plan = context.plan(len(x), options, next(steps)).to(x)
        fused = torch.zeros_like(x)
        for window, weight in zip(plan.indices, plan.weights, strict=True):
            fused[window] += predict_eps(x[window], t) * weight[:, None, None, None]
        return fused

    return predict_fused


def check_positions(max_frames: int, request: ClipRequest) -> None:
    """Raise ValueError where a motion module has too few positions for what it sees at once."""
    if request.frames_a_call > max_frames:
        raise ValueError(
            f"this motion module has positions for {max_frames} frames, "
            f"not {request.frames_a_call}; use --context-length {min(16, max_frames)}, or fewer "
            "--frames."
        )


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
        x = scheduler.step(predict_eps(x, int(t)), t, x, generator=generator).prev_sample
        on_step()
    return x


def _nothing() -> None:
    pass


SAMPLE = {"euler": _euler, "dpmpp": _dpmpp, "lcm": _lcm}
