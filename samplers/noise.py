"""Which frame's noise each frame of a clip starts from.

FreeNoise (arXiv 2310.15169, section 3.2): every stretch after the first window reuses the noise of
the stretch one window earlier, shuffled, so that all windows see the same noise in another order.
"""

import torch

FREENOISE, REPEATED, CONSTANT, INDEPENDENT = MODES = (
    "freenoise",
    "repeated",
    "constant",
    "independent",
)


def noise_sources(
    num_frames: int,
    mode: str = FREENOISE,
    context_length: int = 16,
    context_overlap: int = 4,
    seed: int = 0,
) -> torch.Tensor:
    """Return for each frame the frame whose independent noise it takes, shape (num_frames,).

    The first `context_length` frames keep their own noise, except for "constant", where all
    frames share that of the first. Raises ValueError for another mode and for windows that do
    not advance.
    """
    frames = torch.arange(num_frames)
    if mode == INDEPENDENT:
        return frames
    if mode == CONSTANT:
        return torch.zeros_like(frames)
    if mode == REPEATED:
        return frames % context_length
    if mode == FREENOISE:
        return _shuffled_windows(frames, context_length, context_overlap, seed)
    raise ValueError(f"noise mode {mode!r} is unknown; use one of {', '.join(MODES)}.")


def _shuffled_windows(
    frames: torch.Tensor, context_length: int, context_overlap: int, seed: int
) -> torch.Tensor:
    stride = context_length - context_overlap
    if stride <= 0:
        raise ValueError(
            f"context_overlap {context_overlap} is too large for windows of {context_length} "
            "frames; set it below context_length (4 of 16 is usual)."
        )
    sources = frames.clone()
    generator = torch.Generator().manual_seed(seed)
    for start in range(context_length, len(frames), stride):
        count = min(stride, len(frames) - start)
        order = torch.randperm(count, generator=generator)
        sources[start : start + count] = sources[start - context_length + order]
    return sources
