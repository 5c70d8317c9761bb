"""Which settings a distilled motion module was made for; each host words its own warnings."""

MAX_DISTILLED_CFG = 2.0  # AnimateDiff-Lightning model card: 1, for some base models 1.5 to 2


def steps_fit(steps: int, trained_steps: int) -> bool:
    """Tell whether a module distilled for `trained_steps` (0: unknown) does well at `steps`."""
    # the authors recommend 3 steps on the 2-step module
    return trained_steps in (0, steps) or (trained_steps, steps) == (2, 3)


def cfg_is_too_high(cfg: float, trained_steps: int) -> bool:
    """Tell whether classifier-free guidance would burn the colours of a distilled module."""
    return trained_steps > 0 and cfg > MAX_DISTILLED_CFG
