"""Values that options of several commands take."""

import re
from enum import Enum

_SIZE = re.compile(r"(\d+)x(\d+)")


class Sampler(str, Enum):
    euler = "euler"
    dpmpp = "dpmpp"
    lcm = "lcm"


class Dtype(str, Enum):
    auto = "auto"
    float32 = "float32"
    float16 = "float16"
    bfloat16 = "bfloat16"


class SaveDtype(str, Enum):
    float16 = "float16"
    bfloat16 = "bfloat16"
    float32 = "float32"


class PredictionType(str, Enum):
    auto = "auto"
    epsilon = "epsilon"
    v_prediction = "v_prediction"

    @property
    def known(self) -> str | None:
        """The prediction type, None for auto."""
        return None if self is PredictionType.auto else self.value


def parse_size(text: str) -> tuple[int, int]:
    """Return width and height of WxH; ValueError for anything else."""
    found = _SIZE.fullmatch(text)
    if found is None:
        raise ValueError(f"--size {text} is no size; write it as 512x512.")
    return int(found[1]), int(found[2])
