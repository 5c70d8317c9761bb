"""How base models are loaded: the options that requests share, without anything heavy."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TypedDict


class Reading(TypedDict):
    """Those of load_base's arguments that tell how a checkpoint is read."""

    tokenizer: Path | None
    config: Path | None
    prediction_type: str | None


@dataclass(frozen=True, kw_only=True)
class LoadOptions:
    """Options of load_base as a user names them; device and dtype may be "auto"."""

    device: str = "auto"
    dtype: str = "auto"
    tokenizer: Path | None = None
    config: Path | None = None
    prediction_type: str | None = None

    def reading(self) -> Reading:
        """Return those of load_base's arguments that tell how a checkpoint is read."""
        return {
            "tokenizer": self.tokenizer,
            "config": self.config,
            "prediction_type": self.prediction_type,
        }

    def as_record(self) -> dict[str, object]:
        """Return all options of a request by name, its own before those of this class."""
        options = asdict(self)
        names = (*type(self).__annotations__, *LoadOptions.__annotations__)
        return {name: options[name] for name in names}
