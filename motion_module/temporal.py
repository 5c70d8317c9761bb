"""The temporal transformer: self-attention over the frames at each spatial position.

AnimateDiff (arXiv 2307.04725) section 4.2. GroupNorm, proj_in, two blocks of self-attention with
sinusoidal positions, a GEGLU feed-forward, proj_out, residual. Submodules are named as in the
released files, so that their keys load as they are.
"""

import math
from types import ModuleType
from typing import Protocol

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional

from .config import MotionModuleConfig

# CUDA's attention kernels take batches below 2^16 only; ComfyUI splits its own at 2^15, too
MAX_ATTENTION_BATCH = 2**15
# a long clip goes through in chunks of about this many tokens: on a CPU what the caches hold; on
# any other device enough to keep it busy, without the feed-forward's eightfold copy of the clip
CHUNK_TOKENS = {"cpu": 2**11}
CHUNK_TOKENS_ELSEWHERE = 2**16


def sinusoidal_positions(num_positions: int, channels: int) -> Tensor:
    """Return the fixed encoding, shape (1, num_positions, channels): sin even, cos odd."""
    position = torch.arange(num_positions).unsqueeze(1)
    frequency = torch.exp(torch.arange(0, channels, 2) * (-math.log(10000.0) / channels))
    table = torch.zeros(1, num_positions, channels)
    table[0, :, 0::2] = torch.sin(position * frequency)
    table[0, :, 1::2] = torch.cos(position * frequency)
    return table


class FrameWindows(Protocol):
    """Windows over a long clip: frame indices and fuse weights, shape (windows, length) each.

    The weights of a frame add up to 1 over all windows. samplers/context.py makes them.
    """

    indices: Tensor
    weights: Tensor


class PositionalEncoding(nn.Module):
    """Adds each frame's position; the table is a buffer because released files carry it."""

    pe: Tensor

    def __init__(self, num_positions: int, channels: int) -> None:
        super().__init__()
        self.register_buffer("pe", sinusoidal_positions(num_positions, channels))

    def positions(self, num_frames: int, like: Tensor) -> Tensor:
        """Return the table of the first frames, shape (1, num_frames, c), placed like `like`."""
        # .to(): a host that offloads weights moves layers, never bare buffers
        return self.pe[:, :num_frames].to(like)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.positions(x.shape[1], x)  # (b h w) f c


class TemporalAttention(nn.Module):
    """Multi-head self-attention over frames, with positions added to its input."""

    def __init__(self, channels: int, config: MotionModuleConfig, layers: ModuleType) -> None:
        super().__init__()
        self.num_heads = config.num_heads
        self.to_q = layers.Linear(channels, channels, bias=False)
        self.to_k = layers.Linear(channels, channels, bias=False)
        self.to_v = layers.Linear(channels, channels, bias=False)
        self.to_out = nn.ModuleList([layers.Linear(channels, channels)])
        self.pos_encoder = PositionalEncoding(config.max_frames, channels)

    def forward(self, x: Tensor, scale: float = 1.0, windows: FrameWindows | None = None) -> Tensor:
        if windows is not None:
            return self.forward_windows(x, scale, windows)
        x = self.pos_encoder(x)
        q, k, v = (self.split_heads(f(x)) for f in (self.to_q, self.to_k, self.to_v))
        return self.to_out[0](join_heads(attend(q, k, v, scale)))  # (b h w) f c

    def forward_windows(self, x: Tensor, scale: float, windows: FrameWindows) -> Tensor:
        """Attend within each window at positions 0..length-1 and fuse what they give each frame.

        The projections have no bias, so that to_q(x + pe) = to_q(x) + to_q(pe): every frame is
        projected once, however many windows hold it.
        """
        positions = self.pos_encoder.positions(windows.indices.shape[1], x)
        projections = [(f(x), f(positions)) for f in (self.to_q, self.to_k, self.to_v)]
        fused = torch.zeros_like(x)
        for window, weight in zip(windows.indices, windows.weights, strict=True):
            q, k, v = (self.split_heads(y[:, window] + p) for y, p in projections)
            out = join_heads(attend(q, k, v, scale))  # (b h w) length c
            # a host may hand in float32 weights with half features
            fused.index_add_(1, window, (out * weight[:, None]).to(fused))
        return self.to_out[0](fused)  # (b h w) f c

    def split_heads(self, x: Tensor) -> Tensor:
        """Give each head its share of the channels."""
        # not rearrange: torch.compile traces into it, and this runs eight times a transformer
        return x.unflatten(2, (self.num_heads, -1)).transpose(1, 2)  # n heads f d


def join_heads(x: Tensor) -> Tensor:
    """Lay the heads' channels side by side again."""
    return x.transpose(1, 2).flatten(2)  # n f (heads d)


def attend(q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
    """Return softmax(scale q k^T / sqrt(d)) v, shapes (batch, heads, frames, d).

    Multiplying the keys by `scale` is the same as multiplying the logits, without a copy of k.
    """
    logit_scale = None if scale == 1.0 else scale / math.sqrt(q.shape[-1])
    if q.shape[0] <= MAX_ATTENTION_BATCH:
        return functional.scaled_dot_product_attention(q, k, v, scale=logit_scale)
    batches = zip(*(x.split(MAX_ATTENTION_BATCH) for x in (q, k, v)), strict=True)
    return torch.cat(
        [functional.scaled_dot_product_attention(q, k, v, scale=logit_scale) for q, k, v in batches]
    )


class GEGLU(nn.Module):
    """Projection to twice the width, one half gated by the GELU of the other."""

    def __init__(self, channels: int, width: int, layers: ModuleType) -> None:
        super().__init__()
        self.proj = layers.Linear(channels, 2 * width)

    def forward(self, x: Tensor) -> Tensor:
        x, gate = self.proj(x).chunk(2, dim=-1)
        return x * functional.gelu(gate)


class FeedForward(nn.Module):
    """GEGLU of four times the width and a projection back."""

    def __init__(self, channels: int, layers: ModuleType) -> None:
        super().__init__()
        # the released files count a dropout in the middle
        self.net = nn.Sequential(
            GEGLU(channels, 4 * channels, layers),
            nn.Identity(),
            layers.Linear(4 * channels, channels),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)


class TemporalTransformerBlock(nn.Module):
    """Two self-attentions over frames and a feed-forward, each behind a LayerNorm."""

    def __init__(self, channels: int, config: MotionModuleConfig, layers: ModuleType) -> None:
        super().__init__()
        self.attention_blocks = nn.ModuleList(
            TemporalAttention(channels, config, layers) for _ in range(2)
        )
        self.norms = nn.ModuleList(layers.LayerNorm(channels) for _ in range(2))
        self.ff = FeedForward(channels, layers)
        self.ff_norm = layers.LayerNorm(channels)

    def forward(self, x: Tensor, scale: float = 1.0, windows: FrameWindows | None = None) -> Tensor:
        for norm, attention in zip(self.norms, self.attention_blocks, strict=True):
            x = attention(norm(x), scale, windows) + x
        return self.ff(self.ff_norm(x)) + x  # (b h w) f c


class TemporalTransformer(nn.Module):
    """One motion module: what runs after one block of the image UNet."""

    def __init__(self, channels: int, config: MotionModuleConfig, layers: ModuleType) -> None:
        super().__init__()
        self.max_frames = config.max_frames
        self.norm_scope = config.norm_scope
        self.norm = layers.GroupNorm(config.norm_groups, channels, eps=1e-6)
        self.proj_in = layers.Linear(channels, channels)
        self.transformer_blocks = nn.ModuleList(
            [TemporalTransformerBlock(channels, config, layers)]
        )
        self.proj_out = layers.Linear(channels, channels)

    def forward(
        self, x: Tensor, num_frames: int, scale: float = 1.0, windows: FrameWindows | None = None
    ) -> Tensor:
        """Mix the frames of x, shape (batch * num_frames, channels, height, width).

        `scale` multiplies the keys of both attentions. With `windows` (on the device of x) the
        attentions run within each window and everything else once a frame. Raises ValueError when
        the frames of a window exceed the module's positions or do not divide the batch.
        """
        longest = num_frames if windows is None else windows.indices.shape[1]
        check_num_frames(x.shape[0], num_frames, longest, self.max_frames)
        clips = rearrange(x, "(b f) c h w -> b f c h w", f=num_frames)
        hidden = self.mix_in_chunks(self.normalise(x, num_frames), scale, windows)
        height, width = x.shape[2:]
        # added before the frames join the batch, so that the permuted tensor is never copied
        clips = clips + rearrange(hidden, "(b h w) f c -> b f c h w", h=height, w=width)
        return rearrange(clips, "b f c h w -> (b f) c h w")

    def mix_in_chunks(self, x: Tensor, scale: float, windows: FrameWindows | None) -> Tensor:
        """Mix the frames of each position, for a long clip some positions at a time."""
        if windows is None:
            return self.mix(x, scale, None)
        tokens = CHUNK_TOKENS.get(x.device.type, CHUNK_TOKENS_ELSEWHERE)
        chunks = x.split(max(1, tokens // x.shape[1]))
        return torch.cat([self.mix(chunk, scale, windows) for chunk in chunks])

    def mix(self, x: Tensor, scale: float, windows: FrameWindows | None) -> Tensor:
        """Mix the frames of each position, shape (positions, frames, channels)."""
        x = self.proj_in(x)
        for block in self.transformer_blocks:
            x = block(x, scale, windows)
        return self.proj_out(x)  # (b h w) f c

    def normalise(self, x: Tensor, num_frames: int) -> Tensor:
        """Apply the GroupNorm in its scope; returns the frames of each position, (b h w) f c."""
        if self.norm_scope == "frame":
            return rearrange(self.norm(x), "(b f) c h w -> (b h w) f c", f=num_frames)
        clips = self.norm(rearrange(x, "(b f) c h w -> b c f h w", f=num_frames))
        return rearrange(clips, "b c f h w -> (b h w) f c")


def check_num_frames(batch: int, num_frames: int, longest: int, max_frames: int) -> None:
    """Raise ValueError where a batch is not a whole number of clips that the positions cover.

    `longest` is the number of frames that attend to each other.
    """
    if longest > max_frames:
        raise ValueError(
            f"this motion module has positions for {max_frames} frames, not {longest}; "
            f"make at most {max_frames} frames, or use sliding context windows of that length."
        )
    if num_frames < 1 or batch % num_frames:
        raise ValueError(
            f"a batch of {batch} images is not a whole number of clips of {num_frames} frames; "
            "every clip of a batch must have the same number of frames."
        )
