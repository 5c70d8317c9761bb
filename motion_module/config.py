"""What a motion module is made of: addresses, channels, positions, heads and norm scope.

AnimateDiff v2 (arXiv 2307.04725, v2 release): 21 modules, 8 heads, 32 positions, GroupNorm(32).
"""

from dataclasses import dataclass
from typing import Literal

NormScope = Literal["frame", "clip"]
Channels = tuple[tuple[int, ...], ...]


@dataclass(frozen=True)
class MotionModuleConfig:
    """The shape of a motion module. Defaults are AnimateDiff v2's, and Lightning's.

    `down_blocks` and `up_blocks` give the channels of each motion module of each UNet block;
    `mid_block` those in the middle (empty: none, as in v3). `norm_scope` says over what the
    GroupNorm takes its statistics: each "frame" by itself, as the original code and every ComfyUI
    host do, or the whole "clip", as diffusers' UNetMotionModel does. Raises ValueError where
    channels do not divide into heads or norm groups.
    """

    down_blocks: Channels = ((320, 320), (640, 640), (1280, 1280), (1280, 1280))
    mid_block: tuple[int, ...] = (1280,)
    up_blocks: Channels = ((1280,) * 3, (1280,) * 3, (640,) * 3, (320,) * 3)
    max_frames: int = 32
    num_heads: int = 8
    norm_groups: int = 32
    norm_scope: NormScope = "frame"

    def __post_init__(self) -> None:
        if self.norm_scope not in ("frame", "clip"):
            raise ValueError(f'norm_scope must be "frame" or "clip", not {self.norm_scope!r}.')
        for name in ("max_frames", "num_heads", "norm_groups"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, not {getattr(self, name)}.")
        for address, channels in self.addresses().items():
            for unit, count in (("heads", self.num_heads), ("norm groups", self.norm_groups)):
                if channels % count:
                    raise ValueError(
                        f"{address} has {channels} channels, "
                        f"which do not divide into {count} {unit}; "
                        f"set {'num_heads' if unit == 'heads' else 'norm_groups'} to a divisor."
                    )

    def addresses(self) -> dict[str, int]:
        """Return the channels of every motion module by its address, in file order."""
        channels_by_address: dict[str, int] = {}
        for i, block in enumerate(self.down_blocks):
            channels_by_address |= {
                f"down_blocks.{i}.motion_modules.{j}": c for j, c in enumerate(block)
            }
        channels_by_address |= {
            f"mid_block.motion_modules.{j}": c for j, c in enumerate(self.mid_block)
        }
        for i, block in enumerate(self.up_blocks):
            channels_by_address |= {
                f"up_blocks.{i}.motion_modules.{j}": c for j, c in enumerate(block)
            }
        return channels_by_address
