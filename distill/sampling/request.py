"""What a user asks of `generate`, checked before anything heavy is imported or read."""

from dataclasses import dataclass
from pathlib import Path

from ...samplers import advice
from ..files.output import check_writable
from ..models.embedding_files import check_folder
from ..models.prompt_checks import check_syntax
from .ranges import check_range
from .settings import SamplingOptions, SamplingSettings, check_fps, check_seed

CLIP_EXTENSIONS = (".mp4", ".gif", ".webp", ".png")
MAX_GIF_FPS = 50  # viewers slow down anything below two hundredths of a second a frame
LORA_STRENGTH = 0.8  # AnimateDiff-Lightning recommends 0.7 to 0.8
MAX_LORA_STRENGTH = 10


@dataclass(frozen=True)
class ClipRequest(SamplingOptions):
    """One clip for every prompt, all from the same seed. Holds the defaults of `generate`.

    Prompts have ComfyUI's syntax; `embeddings` is the folder of the textual inversions in them.
    `out` is the file of a single clip; several get -0, -1, ... before the extension. Raises
    ValueError, with one sentence, for anything out of range.
    """

    prompts: tuple[str, ...]
    embeddings: Path | None = None
    seed: int = 0
    fps: float = 8.0
    out: Path = Path("clip.mp4")

    def __post_init__(self) -> None:
        if not self.prompts:
            raise ValueError("there is no prompt; give --prompt or --prompts FILE.")
        super().__post_init__()
        check_seed(self.seed)
        check_fps(self.fps)
        self._check_out()
        check_folder(self.embeddings)
        for prompt in self.texts:
            check_syntax(prompt, self.embeddings)

    @property
    def texts(self) -> tuple[str, ...]:
        """The prompts and the negative prompt."""
        return (*self.prompts, self.negative_prompt)

    def _check_out(self) -> None:
        extension = self.out.suffix.lower()
        if extension not in CLIP_EXTENSIONS:
            raise ValueError(
                f"the extension of {self.out.name} is not supported; use one of "
                f"{', '.join(CLIP_EXTENSIONS)}."
            )
        if extension == ".gif" and self.fps > MAX_GIF_FPS:
            raise ValueError(f"a GIF plays at most {MAX_GIF_FPS} fps; lower --fps or write .mp4.")
        check_writable(self.out)

    def settled(self, steps: int, cfg: float) -> SamplingSettings:
        """Return how clips are sampled; steps, cfg: of the motion module, where none are named."""
        return SamplingSettings(
            frames=self.frames,
            width=self.width,
            height=self.height,
            negative_prompt=self.negative_prompt,
            steps=steps if self.steps is None else self.steps,
            cfg=cfg if self.cfg is None else self.cfg,
            sampler=self.sampler,
            motion_scale=self.motion_scale,
            context_length=self.context_length,
            context_overlap=self.context_overlap,
        )

    def outputs(self) -> list[Path]:
        """Return the file of each prompt's clip."""
        if len(self.prompts) == 1:
            return [self.out]
        stem, extension = self.out.stem, self.out.suffix
        return [self.out.with_name(f"{stem}-{i}{extension}") for i in range(len(self.prompts))]


def list_warnings(settings: SamplingSettings, module_steps: int) -> list[str]:
    """Return a sentence for each setting that a motion module of `module_steps` (0: unknown)
    was not made for."""
    out = []
    if not advice.steps_fit(settings.steps, module_steps):
        out.append(
            f"this motion module was distilled for {module_steps} "
            f"step{'s' * (module_steps > 1)}, not {settings.steps}; "
            f"expect a worse clip than with --steps {module_steps}."
        )
    if advice.cfg_is_too_high(settings.cfg, module_steps):
        out.append(
            f"cfg {settings.cfg:g} is high for a distilled motion module; "
            f"use 1, or at most {advice.MAX_DISTILLED_CFG:g}, to avoid burnt colours."
        )
    if settings.frames == 1:
        out.append(
            "a single frame has no motion, so the base model makes a still image without the "
            "motion module."
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
            f"{path.name} is not UTF-8 text; save the prompts as plain text."
        ) from error
    prompts = tuple(line.strip() for line in lines if line.strip())
    if not prompts:
        raise ValueError(f"{path.name} holds no prompts; write one on each line.")
    return prompts


def parse_motion_lora(text: str) -> tuple[Path, float]:
    """Return the file and the strength of FILE[:STRENGTH]; ValueError out of range."""
    file, _, number = text.rpartition(":")
    try:
        strength = float(number)
    except ValueError:  # no strength, or the colon is part of the path
        return Path(text), LORA_STRENGTH
    if not file:
        raise ValueError(f"--motion-lora {text} names no file; give FILE or FILE:STRENGTH.")
    check_range("motion LoRA strength", strength, -MAX_LORA_STRENGTH, MAX_LORA_STRENGTH)
    return Path(file), strength
