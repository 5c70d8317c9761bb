"""Values that options of several commands take."""

from enum import Enum


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
