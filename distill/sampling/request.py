"""What a user asks of `generate`, checked before anything heavy is imported or read."""

import math
from dataclasses import dataclass, replace
from pathlib import Path

from ...samplers import advice
from ..files.output import check_writable
from ..models.latent_size import check_size

SAMPLERS = ("euler", "dpmpp", "lcm")
CLIP_EXTENSIONS = (".mp4", ".gif", ".webp", ".png")
DEFAULT_STEPS = 4  # of a motion module that does not tell
MAX_STEPS = 1000  # training timesteps
MAX_FPS = 240
MAX_GIF_FPS = 50  # viewers slow down anything below two hundredths of a second a frame
MAX_SEED = 2**64 - 1  # as in ComfyUI
LORA_STRENGTH = 0.8  # AnimateDiff-Lightning recommends 0.7 to 0.8
MAX_LORA_STRENGTH = 10


@dataclass(frozen=True)
class ClipRequest:
    """One clip for every prompt, all from the same seed. Holds the defaults of `generate`.

    `steps` and `cfg` None: the motion module's own, see `settled`. `width` and `height` are in
    pixels, None: the size that the base model was trained for. `out` is
    the file of a single clip; several get -0, -1, ... before the extension. `context_length` cuts
    longer clips into windows (samplers/context.py). Raises ValueError, with
    one sentence, for anything out of range.
    """

    prompts: tuple[str, ...]
    negative_prompt: str = ""
    steps: int | None = DEFAULT_STEPS
    seed: int = 0
    frames: int = 16
    width: int | None = None
    height: int | None = None
    cfg: float | None = 1.0
    sampler: str = "euler"
    motion_scale: float = 1.0
    fps: float = 8.0
    context_length: int | None = None
    context_overlap: int = 4
    out: Path = Path("clip.mp4")

    def __post_init__(self) -> None:
        if not self.prompts:
            raise ValueError("there is nothing to draw; give --prompt or --prompts FILE.")
        if self.sampler not in SAMPLERS:
            raise ValueError(f"sampler must be one of {', '.join(SAMPLERS)}, not {self.sampler!r}.")
        for name, low, high in (
            ("steps", 1, MAX_STEPS),
            ("seed", 0, MAX_SEED),
            ("frames", 1, 4096),
            ("width", 8, 8192),
            ("height", 8, 8192),
            ("cfg", 0, 100),
            ("motion_scale", 0, 10),
            ("fps", 0.1, MAX_FPS),
        ):
            _check_range(name, getattr(self, name), low, high)
        _ = self.context  # raises where the windows are impossible
        self._check_out()

    @property
    def context(self) -> "context.ContextOptions | None":
        """Sliding windows, None where the whole clip is seen at once."""
        from ...samplers import context

        if self.context_length is None or self.frames <= self.context_length:
            return None
        return context.ContextOptions(self.context_length, self.context_overlap)

    @property
    def frames_a_call(self) -> int:
        """Frames that the motion module sees at once."""
        return self.frames if self.context is None else self.context.context_length

    def _check_out(self) -> None:
        kind = self.out.suffix.lower()
        if kind not in CLIP_EXTENSIONS:
            raise ValueError(
                f"{self.out.name} has no known extension; end it in {', '.join(CLIP_EXTENSIONS)}."
            )
        if kind == ".gif" and self.fps > MAX_GIF_FPS:
            raise ValueError(f"a GIF plays at most {MAX_GIF_FPS} fps; lower --fps or write .mp4.")
        check_writable(self.out)

    def settled(self, steps: int, cfg: float) -> "ClipRequest":
        """Return the request with the motion module's steps and cfg where it names none."""
        return replace(
            self,
            steps=steps if self.steps is None else self.steps,
            cfg=cfg if self.cfg is None else self.cfg,
        )

    def sized(self, width: int, height: int, factor: int) -> "ClipRequest":
        """Return the request with its size filled in from the base model's.

        `factor` is the base model's pixels per latent. Raises ValueError for a size that is no
        multiple of it.
        """
        sized = replace(self, width=self.width or width, height=self.height or height)
        check_size(sized.width, sized.height, factor)
        return sized

    def outputs(self) -> list[Path]:
        """Return the file of each prompt's clip."""
        if len(self.prompts) == 1:
            return [self.out]
        stem, kind = self.out.stem, self.out.suffix
        return [self.out.with_name(f"{stem}-{i}{kind}") for i in range(len(self.prompts))]

    def doubts(self, module_steps: int) -> list[str]:
        """Return a sentence for each setting that a motion module of `module_steps` (0: unknown)
        was not made for."""
        out = []
        if not advice.steps_fit(self.steps, module_steps):
            out.append(
                f"this motion module was distilled for {module_steps} "
                f"step{'s' * (module_steps > 1)}, not {self.steps}; "
                f"expect a worse clip than with --steps {module_steps}."
            )
        if advice.cfg_is_too_high(self.cfg, module_steps):
            out.append(
                f"cfg {self.cfg:g} is high for a distilled motion module; "
                f"use 1, or at most {advice.MAX_DISTILLED_CFG:g}, to avoid burnt colours."
            )
        if self.frames == 1:
            out.append(
                "one frame has no motion, so the base model draws a still without the module."
            )
        return out


def read_prompts(path: Path) -> tuple[str, ...]:
    """Return the lines of a UTF-8 text file that are not blank; ValueError where there are none."""
    if not path.is_file():
        raise ValueError(f"the prompts file {path} was not found.")
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{path.name} is no UTF-8 text; save the prompts as plain text."
        ) from error
    prompts = tuple(line.strip() for line in lines if line.strip())
    if not prompts:
        raise ValueError(f"{path.name} holds no prompts; write one on each line.")
    return prompts


def parse_motion_lora(text: str) -> tuple[Path, float]:
    """Return the file and the strength of FILE[:STRENGTH]; ValueError out of range."""
    file, _, strength = text.rpartition(":")
    try:
        strength = float(strength)
    except ValueError:  # no strength, or the colon is part of the path
        return Path(text), LORA_STRENGTH
    if not file:
        raise ValueError(f"--motion-lora {text} names no file; give FILE or FILE:STRENGTH.")
    _check_range("motion LoRA strength", strength, -MAX_LORA_STRENGTH, MAX_LORA_STRENGTH)
    return Path(file), strength


def _check_range(name: str, value: float | None, low: float, high: float) -> None:
    if value is None:
        return
    if not math.isfinite(value) or not low <= value <= high:
        raise ValueError(f"{name.replace('_', '-')} must be between {low} and {high}, not {value}.")
