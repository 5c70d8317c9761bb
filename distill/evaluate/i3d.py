"""The Kinetics-400 I3D, whose logits FVD compares (arXiv 1705.07750, 1812.01717).

For inference only: batch normalisation is folded into the convolutions (i3d_weights.py). Layers
bear the names of the original TensorFlow checkpoint.
"""

import functools
from collections import OrderedDict
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - its usual name

SIZE = 224  # pixels, height and width
FEWEST_FRAMES = 9  # two moments are left of them at the end
CLASSES = 400
_CLIPS_AT_ONCE = 4
# output channels: 1x1; 1x1 then 3x3; 1x1 then 3x3; pool then 1x1
_MIXED = {
    "Mixed_3b": (192, (64, 96, 128, 16, 32, 32)),
    "Mixed_3c": (256, (128, 128, 192, 32, 96, 64)),
    "Mixed_4b": (480, (192, 96, 208, 16, 48, 64)),
    "Mixed_4c": (512, (160, 112, 224, 24, 64, 64)),
    "Mixed_4d": (512, (128, 128, 256, 24, 64, 64)),
    "Mixed_4e": (512, (112, 144, 288, 32, 64, 64)),
    "Mixed_4f": (528, (256, 160, 320, 32, 128, 128)),
    "Mixed_5b": (832, (256, 160, 320, 32, 128, 128)),
    "Mixed_5c": (832, (384, 192, 384, 48, 128, 128)),
}


def preprocess(frames: Tensor) -> Tensor:
    """Return (n, 3, f, 224, 224) in [-1, 1] from uint8 frames (n, f, h, w, 3).

    Resized as the published FVD code does (google-research frechet_video_distance): TensorFlow
    1's resize_bilinear, which aligns the top left corners of pixels and does not antialias.
    """
    if frames.dtype != torch.uint8 or frames.ndim != 5 or frames.shape[-1] != 3:
        raise ValueError(
            f"frames for the I3D must be uint8 of shape (n, f, h, w, 3), not {frames.dtype} of "
            f"{tuple(frames.shape)}; pass them as decoded, RGB last."
        )
    down, across = (_resizer(s).to(frames.device) for s in frames.shape[2:4])
    small = down @ frames.permute(0, 4, 1, 2, 3).float() @ across.T  # n 3 f h w
    return small * (2 / 255) - 1


@torch.inference_mode()
def logits(model: "I3D", clips: Tensor) -> Tensor:
    """Return the logits (n, 400) of uint8 clips (n, f, h, w, 3), a few clips at a time."""
    device = next(model.parameters()).device
    outputs = [model(preprocess(c.to(device))).cpu() for c in clips.split(_CLIPS_AT_ONCE)]
    return torch.cat(outputs)


class SamePad(nn.Module):
    """Pads as TensorFlow's SAME does: by need, and the odd one at the end."""

    def __init__(self, kernel: Sequence[int], stride: Sequence[int], value: float = 0.0) -> None:
        super().__init__()
        self.kernel, self.stride, self.value = tuple(kernel), tuple(stride), value

    def forward(self, x: Tensor) -> Tensor:
        """Return x (n, c, f, h, w), padded along its last three axes."""
        sides = map(same_padding, x.shape[2:], self.kernel, self.stride)
        return F.pad(x, [p for side in reversed(list(sides)) for p in side], value=self.value)


def same_padding(size: int, kernel: int, stride: int) -> tuple[int, int]:
    """Return the padding before and after an axis that makes ceil(size / stride) outputs."""
    outputs = -(-size // stride)
    total = max((outputs - 1) * stride + kernel - size, 0)
    return total // 2, total - total // 2


class Unit(nn.Sequential):
    """A convolution with SAME padding, and a ReLU."""

    def __init__(self, channels: int, out: int, kernel: int, stride: int = 1) -> None:
        super().__init__(
            OrderedDict(
                pad=SamePad((kernel,) * 3, (stride,) * 3),
                conv=nn.Conv3d(channels, out, kernel, stride),
                relu=nn.ReLU(),
            )
        )


class Pool(SamePad):
    """A max pool with SAME padding, an axis after the other.

    Bit-equal to nn.MaxPool3d, which on a CPU takes as long as all the convolutions together.
    """

    def __init__(self, kernel: Sequence[int], stride: Sequence[int]) -> None:
        super().__init__(kernel, stride, float("-inf"))

    def forward(self, x: Tensor) -> Tensor:
        """Return x (n, c, f, h, w) with its last three axes pooled to ceil(size / stride)."""
        x = super().forward(x)
        for axis, kernel, stride in zip((2, 3, 4), self.kernel, self.stride, strict=True):
            x = functools.reduce(torch.maximum, x.unfold(axis, kernel, stride).unbind(-1))
        return x


class Mixed(nn.ModuleDict):
    """An inception block: four branches side by side, joined along the channels."""

    def __init__(self, channels: int, out: Sequence[int]) -> None:
        super().__init__(
            {
                "Branch_0": _chain(Conv3d_0a_1x1=Unit(channels, out[0], 1)),
                "Branch_1": _chain(
                    Conv3d_0a_1x1=Unit(channels, out[1], 1), Conv3d_0b_3x3=Unit(out[1], out[2], 3)
                ),
                "Branch_2": _chain(
                    Conv3d_0a_1x1=Unit(channels, out[3], 1), Conv3d_0b_3x3=Unit(out[3], out[4], 3)
                ),
                "Branch_3": _chain(
                    MaxPool3d_0a_3x3=Pool((3, 3, 3), (1, 1, 1)),
                    Conv3d_0b_1x1=Unit(channels, out[5], 1),
                ),
            }
        )

    def forward(self, x: Tensor) -> Tensor:
        """Return (n, sum of branches, f, h, w) of x (n, channels, f, h, w)."""
        return torch.cat([branch(x) for branch in self.values()], dim=1)


class I3D(nn.Module):
    """The whole network; random until i3d_weights.load's tensors are loaded into it."""

    def __init__(self) -> None:
        super().__init__()
        mixed = {name: Mixed(*widths) for name, widths in _MIXED.items()}
        third, fourth, fifth = ({k: m for k, m in mixed.items() if k[6] == at} for at in "345")
        self.body = _chain(
            Conv3d_1a_7x7=Unit(3, 64, 7, 2),
            MaxPool3d_2a_3x3=Pool((1, 3, 3), (1, 2, 2)),
            Conv3d_2b_1x1=Unit(64, 64, 1),
            Conv3d_2c_3x3=Unit(64, 192, 3),
            MaxPool3d_3a_3x3=Pool((1, 3, 3), (1, 2, 2)),
            **third,
            MaxPool3d_4a_3x3=Pool((3, 3, 3), (2, 2, 2)),
            **fourth,
            MaxPool3d_5a_2x2=Pool((2, 2, 2), (2, 2, 2)),
            **fifth,
        )
        self.Logits = _chain(Conv3d_0c_1x1=_chain(conv=nn.Conv3d(1024, CLASSES, 1)))

    def forward(self, video: Tensor) -> Tensor:
        """Return logits (n, 400) of a video (n, 3, f, 224, 224) in [-1, 1], f at least 9."""
        _check(video)
        x = F.avg_pool3d(self.body(video), (2, SIZE // 32, SIZE // 32), stride=1)  # n 1024 f 1 1
        return self.Logits(x).mean((2, 3, 4))


def _chain(**layers: nn.Module) -> nn.Sequential:
    return nn.Sequential(OrderedDict(layers))


def _resizer(size: int) -> Tensor:
    """Return the matrix (224, size) that resizes an axis as TensorFlow 1 does."""
    at = torch.arange(SIZE, dtype=torch.float64) * size / SIZE
    low = at.floor().long()
    high = (low + 1).clamp(max=size - 1)
    weight = at - low
    one = torch.eye(size, dtype=torch.float64)
    return (one[low] * (1 - weight)[:, None] + one[high] * weight[:, None]).float()


def _check(video: Tensor) -> None:
    if video.ndim != 5 or video.shape[1] != 3 or tuple(video.shape[3:]) != (SIZE, SIZE):
        raise ValueError(
            f"the I3D needs a video of shape (n, 3, f, {SIZE}, {SIZE}), not "
            f"{tuple(video.shape)}; pass frames through preprocess."
        )
    if video.shape[2] < FEWEST_FRAMES:
        raise ValueError(
            f"the I3D needs clips of at least {FEWEST_FRAMES} frames, not {video.shape[2]}; "
            "generate longer clips."
        )
