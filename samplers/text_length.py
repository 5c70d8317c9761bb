"""Brings embeddings of prompts to one length, so that they fit into one batch."""

import math
from collections.abc import Sequence

from torch import Tensor

_MOST_REPEATS = 64  # of the longest embedding


def to_common_length(embeddings: Sequence[Tensor]) -> list[Tensor]:
    """Return embeddings (n, tokens, width), each repeated to the common multiple of all tokens.

    That leaves what attention reads from each of them as it was; ComfyUI does the same. Raises
    ValueError where the multiple is so large that memory would end.
    """
    lengths = sorted({e.shape[1] for e in embeddings})
    tokens = math.lcm(*lengths)
    if tokens > _MOST_REPEATS * lengths[-1]:
        raise ValueError(
            f"prompts of {', '.join(map(str, lengths))} tokens have no common multiple below "
            f"{tokens}; shorten the longest, or make them equally long."
        )
    return [e.repeat(1, tokens // e.shape[1], 1) for e in embeddings]
