"""What can go wrong in a graph, each in one sentence that says what to do; knows no host."""

from collections.abc import Callable, Iterable, Iterator, Sequence

import torch

from ..samplers import advice, schedule, sigma_origin

SD15_CONTEXT_DIM = 768
_ON_GRID = 1e-5  # neighbouring training sigmas differ by 1e-3 or more
_NEAR_GRID = 0.01  # the core's schedulers simple and sgm_uniform are off by up to a timestep


def base_warnings(context_dim: int | None, zsnr: bool) -> Iterator[str]:
    """Yield a warning for what is unlikely to work well in a base model of SD1.5's shape.

    context_dim: the width of its text embeddings; zsnr: it was set to zero terminal SNR.
    """
    if context_dim != SD15_CONTEXT_DIM:
        yield (
            f"this base model uses text embeddings of width {context_dim}, not SD1.5's "
            f"{SD15_CONTEXT_DIM}; the motion module was trained for SD1.5, so the motion may be "
            "poor."
        )
    if zsnr:
        yield (
            "this base model was set to zero terminal SNR, which AnimateDiff was not trained with; "
            "its schedule has been replaced, so the contrast may be low."
        )


def lora_beyond(name: str, left_out: int, used: int) -> str:
    """Return the warning for a motion LoRA with a mid block on a motion module without one."""
    return (
        f"{name} has {left_out} weights for a mid block, but this motion module has no mid block, "
        f"so only the other {used} are used; load a v2 or Lightning module to use all of them."
    )


def lora_for_image_model(name: str, layers: int) -> str:
    """Return the warning for a motion LoRA whose file also changes the image model."""
    return (
        f"{name} also changes {layers} layer{'s' * (layers > 1)} of the image model, which this "
        "node leaves as they are; load the same file with Load LoRA, too, to change them."
    )


def check_latent(shape: Sequence[int], max_frames: int | None) -> None:
    """Raise ValueError unless `shape` is (frames <= max_frames, channels, height, width)."""
    if len(shape) != 4:
        raise ValueError(
            f"this latent has {len(shape)} dimensions and is not a batch of images; use Empty "
            "Latent Image, and set batch_size to the number of frames."
        )
    if max_frames is not None and shape[0] > max_frames:
        raise ValueError(
            f"this motion module has positions for {max_frames} frames, but the latent has "
            f"{shape[0]}; lower batch_size of Empty Latent Image, or connect Sliding Context to "
            "context of Apply Motion Module."
        )


def check_window(context_length: int, max_frames: int) -> None:
    """Raise ValueError where a window holds more frames than the module has positions."""
    if context_length > max_frames:
        raise ValueError(
            f"this motion module has positions for {max_frames} frames, but context_length is "
            f"{context_length}; set context_length to {max_frames} or less (16 is best)."
        )


def check_schedule(
    model_sigmas: torch.Tensor,
    sigmas: torch.Tensor,
    base_sigmas: torch.Tensor,
    from_base: Callable[[int], Iterable[torch.Tensor]] = lambda _steps: (),
) -> str | None:
    """Return a warning where a run's sigmas start too low and no input of a node can change that.

    `model_sigmas` and `base_sigmas` are those of every training timestep, of the MODEL that is
    sampled and of the one that came into Apply; `sigmas` are the run's own; `from_base(steps)`
    gives what schedulers make of the latter MODEL. Raises ValueError where they come from another
    schedule than AnimateDiff's and the user can change it.
    """
    trained = _trained_sigmas()
    model_sigmas = _float64(model_sigmas)
    if model_sigmas.shape != trained.shape or not torch.allclose(model_sigmas, trained, rtol=1e-4):
        cause = "zero terminal SNR" if model_sigmas.max() > 1000 else "another noise schedule"
        raise ValueError(
            f"a node after Apply Motion Module set {cause}, which the motion module was not "
            "trained with; remove that node or put it before Apply Motion Module."
        )
    sigmas, base_sigmas = _float64(sigmas), _float64(base_sigmas)
    first, last = sigmas[:1], base_sigmas[-1:]
    # most schedulers interpolate between the training sigmas, but all start at the largest
    starts_low = _on_grid(first, last) and not _on_grid(first, trained)
    if not starts_low and (_on_grid(sigmas, trained) or not _on_grid(sigmas, base_sigmas)):
        return None
    examples = from_base(len(sigmas) - 1) if starts_low else ()
    if sigma_origin.are_from_model(sigmas, base_sigmas, examples):
        raise ValueError(
            "the SIGMAS were made from a MODEL without the motion module and start with too "
            "little noise; connect the scheduler's MODEL input to Apply Motion Module, or use "
            "Lightning Scheduler."
        )
    if not starts_low:
        return None
    begin = (
        f"the SIGMAS start at a noise level of {first.item():.2f}, but AnimateDiff starts at "
        f"{trained[-1].item():.2f}"
    )
    if sigma_origin.are_between_ends(sigmas):
        raise ValueError(
            f"{begin}; set sigma_max of the scheduler to {trained[-1].item():.2f}, or, if it has a "
            "MODEL input, connect that to Apply Motion Module."
        )
    return (
        f"{begin}, so the clip may lack contrast; use Lightning Scheduler, or a scheduler with a "
        "MODEL input, to start at the right level."
    )


def refuse_self_attention_guidance() -> None:
    """Raise ValueError for a guidance that wants to see the whole clip at once."""
    raise ValueError(
        "Self-Attention Guidance needs the whole clip in one call of the model; set where of "
        "Sliding Context to features, or remove the Self-Attention Guidance node."
    )


def check_steps(steps: int, trained_steps: int) -> str | None:
    """Return a warning where the steps do not fit the module, None where they do.

    Raises ValueError for 0, which Load Motion Module gives for a file that does not say.
    """
    if steps == 0:
        raise ValueError(
            "the file of the motion module does not say how many steps it was distilled for; set "
            "steps of Lightning Scheduler yourself (1, 2, 4 or 8; 20 or more if undistilled)."
        )
    if advice.steps_fit(steps, trained_steps):
        return None
    return (
        f"this motion module was distilled for {_steps(trained_steps)}, not {steps}; set steps to "
        f"{trained_steps}, or load a file that was distilled for {_steps(steps)}."
    )


def warnings(
    num_frames: int, cfg: float, sigmas: torch.Tensor, trained_steps: int
) -> Iterator[str]:
    """Yield a warning for each setting of a run that works but is unlikely to be wanted."""
    if num_frames == 1:
        yield (
            "the latent has one frame, so the motion module is bypassed; "
            "set batch_size of Empty Latent Image to 16 for a clip."
        )
        return
    if not _distilled_at(sigmas, trained_steps):
        yield (
            f"this motion module was distilled for {_steps(trained_steps)}, but these noise levels "
            f"are different; use Lightning Scheduler, or {_steps(trained_steps)} with scheduler "
            "simple and denoise 1."
        )
    if advice.cfg_is_too_high(cfg, trained_steps):
        yield (
            f"a guidance of cfg {cfg:g} is too high for a distilled motion module and burns the "
            f"colours; set cfg to 1, or at most {advice.MAX_DISTILLED_CFG:g}."
        )


def text_warnings(prompt_lengths: Iterable[int], num_frames: int) -> Iterator[str]:
    """Yield a warning for prompts that were made for a different number of frames."""
    for length in sorted(set(prompt_lengths) - {1, num_frames}):
        yield (
            f"a prompt was made for {length} frames, but the clip has {num_frames}; "
            f"set num_frames of Prompt Travel to {num_frames}."
        )


def _steps(count: int) -> str:
    return f"{count} step{'s' * (count != 1)}"


def _trained_sigmas() -> torch.Tensor:
    """Return the sigma of every training timestep, increasing, float64."""
    return schedule.sigmas(schedule.NUM_TRAIN_TIMESTEPS)[:-1].flip(0).double()


def _distilled_at(sigmas: torch.Tensor, trained_steps: int) -> bool:
    """Tell whether a run keeps to the levels of a number of steps that suits the module."""
    if not 0 < trained_steps <= schedule.NUM_TRAIN_TIMESTEPS:  # unknown, or nonsense in a file
        return True
    counts = [n for n in (trained_steps, trained_steps + 1) if advice.steps_fit(n, trained_steps)]
    return any(_on_grid(sigmas, schedule.sigmas(n)[:-1], _NEAR_GRID) for n in counts)


def _float64(x: torch.Tensor) -> torch.Tensor:
    return x.cpu().double()  # in this order: Apple's GPUs have no float64


def _on_grid(sigmas: torch.Tensor, grid: torch.Tensor, tolerance: float = _ON_GRID) -> bool:
    sigmas, grid = _float64(sigmas), _float64(grid)
    sigmas = sigmas[sigmas > 0]
    distance = (sigmas[:, None] / grid[None, :] - 1).abs().amin(dim=1)
    return bool((distance < tolerance).all())
