"""What can go wrong in a graph, each in one sentence that says what to do; knows no host."""

from collections.abc import Iterator, Sequence

import torch

from ..samplers import advice, schedule

SD15_CONTEXT_DIM = 768
_ON_GRID = 1e-5  # neighbouring training sigmas differ by 1e-3 or more

ZSNR_BASE = (
    "this base model was set to zero terminal SNR, which AnimateDiff was not trained with; "
    "its schedule has been replaced, so expect washed-out contrast."
)


def other_base(context_dim: int | None) -> str:
    """Return the warning for a base model that has SD1.5's shape but another text encoder."""
    return (
        f"this base model reads text of width {context_dim}, not SD1.5's {SD15_CONTEXT_DIM}; "
        "the motion module was trained for SD1.5, so expect poor motion."
    )


def check_latent(shape: Sequence[int], max_frames: int) -> None:
    """Raise ValueError unless `shape` is (frames, channels, height, width) within the positions."""
    if len(shape) != 4:
        raise ValueError(
            f"a latent of {len(shape)} dimensions is not a batch of images; "
            "use Empty Latent Image with batch_size = number of frames."
        )
    if shape[0] > max_frames:
        raise ValueError(
            f"this motion module has positions for {max_frames} frames, but the latent has "
            f"{shape[0]}; lower batch_size of Empty Latent Image to {max_frames} or less."
        )


def check_schedule(
    model_sigmas: torch.Tensor, sigmas: torch.Tensor, base_sigmas: torch.Tensor
) -> None:
    """Raise ValueError unless a run's sigmas come from AnimateDiff's schedule.

    `model_sigmas` and `base_sigmas` are those of every training timestep, of the MODEL that is
    sampled and of the one that came into Apply; `sigmas` are the run's own.
    """
    trained = _trained_sigmas()
    model_sigmas = model_sigmas.double().cpu()
    if model_sigmas.shape != trained.shape or not torch.allclose(model_sigmas, trained, rtol=1e-4):
        cause = "zero terminal SNR" if model_sigmas.max() > 1000 else "another noise schedule"
        raise ValueError(
            f"a node after Apply Motion Module set {cause}, which the motion module was not "
            "trained with; remove that node or put it before Apply Motion Module."
        )
    if _on_grid(sigmas, base_sigmas) and not _on_grid(sigmas, trained):
        raise ValueError(
            "the SIGMAS were made from a MODEL without the motion module and start with too "
            "little noise; connect the scheduler's MODEL input to Apply Motion Module."
        )


def check_steps(steps: int, trained_steps: int) -> str | None:
    """Return a warning where the steps do not fit the module, None where they do.

    Raises ValueError for 0, which Load Motion Module gives for a file that does not tell.
    """
    if steps == 0:
        raise ValueError(
            "the motion module's file does not tell how many steps it was distilled for; "
            "set steps of Lightning Scheduler by hand (1, 2, 4 or 8; 20 or more if undistilled)."
        )
    if advice.steps_fit(steps, trained_steps):
        return None
    return (
        f"this motion module was distilled for {trained_steps} steps, not {steps}; "
        f"set steps to {trained_steps} or load the {steps}-step file."
    )


def warnings(num_frames: int, cfg: float, trained_steps: int) -> Iterator[str]:
    """Yield what is worth telling about a run that is possible but unlikely to be wanted."""
    if num_frames == 1:
        yield (
            "the latent has one frame, so the motion module is bypassed; "
            "set batch_size of Empty Latent Image to 16 for a clip."
        )
    if advice.cfg_is_too_high(cfg, trained_steps):
        yield (
            f"cfg {cfg:g} burns the colours of a distilled motion module; "
            f"set it to 1, at most {advice.MAX_DISTILLED_CFG:g}."
        )


def _trained_sigmas() -> torch.Tensor:
    alpha_bar = schedule.alphas_cumprod()
    return ((1 - alpha_bar) / alpha_bar).sqrt()


def _on_grid(sigmas: torch.Tensor, grid: torch.Tensor) -> bool:
    sigmas, grid = sigmas.double().cpu(), grid.double().cpu()
    sigmas = sigmas[sigmas > 0]
    distance = (sigmas[:, None] / grid[None, :] - 1).abs().amin(dim=1)
    return bool((distance < _ON_GRID).all())
