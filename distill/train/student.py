"""The trainable motion module in several frozen base models, and a teacher that takes its place.

AnimateDiff-Lightning section 3.2: F_i = f_i o m. Student and teacher share one copy of each base;
only the motion module that is hooked into it differs. Torch's DDP averages gradients only when its
own forward runs, so the forward is the student's, and the bases are no submodules of it: a frozen
base is never broadcast.
"""

import contextlib
from collections.abc import Iterator, Mapping, Sequence

from einops import rearrange, repeat
from torch import Tensor, nn

from ...motion_module.inject import inject
from ...motion_module.module import MotionModule
from ...samplers import guidance, prediction
from ..models.base_model import BaseModel, encode_prompts


class MovingBase:
    """A frozen base model with the student's motion module in it."""

    def __init__(self, base: BaseModel, student: MotionModule) -> None:
        self.base = base
        self._module = student  # that is in the base now
        self._injection = inject(base.unet, student)

    def encode(self, captions: Sequence[str]) -> Tensor:
        """Return the base's own embedding of captions, (captions, tokens, width)."""
        return encode_prompts(self.base, captions)

    def predict_eps(self, x: Tensor, t: Tensor, text: Tensor) -> Tensor:
        """Return eps of clips (clips, frames, c, h, w) at timesteps (clips,), float32.

        text (clips, tokens, width). A clean clip (-1) is asked for at timestep 0.
        """
        frames = x.shape[1]
        self._injection.run.num_frames = frames
        x = rearrange(x, "b f c h w -> (b f) c h w")
        t = repeat(t.clamp(min=0), "b -> (b f)", f=frames)
        text = repeat(text, "b tokens c -> (b f) tokens c", f=frames)
        out = self.base.unet(x.to(self.base.dtype), t, encoder_hidden_states=text).sample.float()
        eps = prediction.as_eps(out, x, t, self.base.prediction_type)
        return rearrange(eps, "(b f) c h w -> b f c h w", f=frames)

    def predict_guided(
        self, x: Tensor, t: Tensor, text: Tensor, negative: Tensor, cfg: float
    ) -> Tensor:
        """Return eps under guidance, as `predict_eps`, see samplers/guidance.py.

        negative (clips, tokens, width): the embedding of the empty caption.
        """
        return guidance.predict_guided(self.predict_eps, x, t, text, negative, cfg)

    @contextlib.contextmanager
    def moved_by(self, module: MotionModule) -> Iterator[None]:
        """Let another motion module move the base for a while, such as a teacher."""
        before, self._module = self._module, module
        self._injection.replace(module)
        try:
            yield
        finally:
            self._module = before
            self._injection.replace(before)

    def close(self) -> None:
        """Leave the base model as it was."""
        self._injection.eject()


class Student(nn.Module):
    """A motion module that is trained; its forward runs whichever base a clip belongs to.

    The base must hold that motion module: the student at most times, the fake while it learns.
    """

    def __init__(self, motion_module: MotionModule, bases: Mapping[int, MovingBase]) -> None:
        super().__init__()
        self.motion_module = motion_module
        self._bases = bases  # by slot; not modules, so neither registered nor broadcast

    def forward(self, slot: int, x: Tensor, t: Tensor, text: Tensor) -> Tensor:
        """Return eps of the slot's base model, see MovingBase.predict_eps."""
        return self._bases[slot].predict_eps(x, t, text)
