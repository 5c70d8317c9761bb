"""Brings embeddings of prompts to one length, so that they fit into one batch."""

import math
from collections.abc import Sequence

from torch import Tensor


def to_common_length(embeddings: Sequence[Tensor]) -> list[Tensor]:
    """Return embeddings (n, tokens, width), each repeated to the common multiple of all tokens.

    That leaves what attention reads from each of them as it was; ComfyUI does the same.
    """
    tokens = math.lcm(*(e.shape[1] for e in embeddings))
    return [e.repeat(1, tokens // e.shape[1], 1) for e in embeddings]
