"""Prompt travel: lines such as `24: the same meadow in snow`, and how frames blend them."""

import re
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch

from .text_length import to_common_length

LINEAR, STEP = INTERPOLATIONS = ("linear", "step")
_EXAMPLE = "write for example 0: a spring meadow"


@dataclass(frozen=True)
class Keyframe:
    """A prompt that one frame shows in full."""

    frame: int
    text: str


def parse(script: str, num_frames: int) -> list[Keyframe]:
    """Return the keyframes of a script, by frame; one `frame: prompt` a line, blank lines skipped.

    Raises ValueError that names the line where a keyframe is malformed, out of range or double.
    """
    lines: dict[int, tuple[int, Keyframe]] = {}  # by frame: the line's number and its keyframe
    for number, keyframe in _keyframes(script, num_frames):
        if keyframe.frame in lines:
            raise ValueError(
                f"line {number}: frame {keyframe.frame} has a prompt already, in line "
                f"{lines[keyframe.frame][0]}; keep one of the two."
            )
        lines[keyframe.frame] = number, keyframe
    if not lines:
        raise ValueError(f"there is no prompt; {_EXAMPLE}.")
    return [lines[frame][1] for frame in sorted(lines)]


def _keyframes(script: str, num_frames: int) -> Iterator[tuple[int, Keyframe]]:
    for number, line in enumerate(script.splitlines(), start=1):
        if line.strip():
            yield number, _keyframe(line, number, num_frames)


def _keyframe(line: str, number: int, num_frames: int) -> Keyframe:
    head, colon, text = (field.strip() for field in line.partition(":"))
    if not colon:
        raise ValueError(
            f"line {number}: no colon between frame and prompt; {_EXAMPLE}, a prompt on one line."
        )
    if not re.fullmatch(r"-?\d+", head):
        raise ValueError(f"line {number}: {head!r} is not a frame number; {_EXAMPLE}.")
    if not 0 <= int(head) < num_frames:
        raise ValueError(
            f"line {number}: frame {head} is outside the clip of {num_frames} frames; "
            f"use 0 to {num_frames - 1} or raise num_frames."
        )
    if not text:
        raise ValueError(f"line {number}: no prompt after the colon; {_EXAMPLE}.")
    return Keyframe(int(head), text)


def keyframe_weights(
    frames: Sequence[int], num_frames: int, interpolation: str = LINEAR
) -> torch.Tensor:
    """Return how much each frame takes of each keyframe, shape (num_frames, len(frames)).

    `frames` ascend. Rows sum to 1; before the first and after the last keyframe its prompt holds.
    """
    weights = torch.zeros(num_frames, len(frames))
    for frame in range(num_frames):
        reached = bisect_right(frames, frame)
        before, after = max(reached - 1, 0), min(reached, len(frames) - 1)
        share = 0.0
        if interpolation == LINEAR and 0 < reached < len(frames):
            share = (frame - frames[before]) / (frames[after] - frames[before])
        weights[frame, before] += 1 - share
        weights[frame, after] += share
    return weights


def blend(embeddings: Sequence[torch.Tensor], weights: torch.Tensor) -> torch.Tensor:
    """Mix embeddings (1, tokens, width), one a keyframe, into (num_frames, tokens, width).

    Prompts of different lengths are repeated to their common multiple.
    """
    stacked = torch.cat(to_common_length(embeddings))
    return torch.einsum("fk,ktw->ftw", weights.to(stacked), stacked)
