"""What a distillation is: its bases, pools, stages and optimisers, read from a small TOML file.

Every default is the paper's where it prints one (AnimateDiff-Lightning section 3 and table 1,
SDXL-Lightning, arXiv 2402.13929, section 3); what the papers leave open is marked [open].
"""

import difflib
import hashlib
import json
import sys
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

BUNDLED = Path(__file__).parent / "configs"
# these change where a run lies and what it tells, never what comes out
_NOT_IN_FINGERPRINT = {"out", "save_every", "keep", "sheet_every", "sheet_prompts"}
Count = Annotated[int, Field(ge=1)]
Rate = Annotated[float, Field(gt=0, lt=1)]
Share = Annotated[float, Field(ge=0, le=1)]
Decay = Annotated[float, Field(ge=0, lt=1)]
Steps = Annotated[int, Field(ge=1, le=1000)]


class ConfigError(ValueError):
    """All that is wrong with a config, one sentence each in `problems`."""

    def __init__(self, problems: list[str]) -> None:
        super().__init__(" ".join(problems))
        self.problems = problems


class _Table(BaseModel):
    """A table of the file: no key but the known ones, and no change once it is read."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Pool(_Table):
    """Clips that base models draw from: shards as ClipPool takes them, and whether to flip."""

    shards: str
    flip: bool = True


class Slot(_Table):
    """A line of table 1: a rank's base model and the pool that it draws from.

    base: a file, a diffusers folder or "miniature:STYLE"; tokenizer, config, prediction_type: as
    load_base takes them.
    """

    base: str
    pool: str
    tokenizer: str | None = None
    config: str | None = None
    prediction_type: Literal["epsilon", "v_prediction"] | None = None


class DiscriminatorTable(_Table):
    """What D starts from: SD1.5 and the v2 module (section 3.3); None: slot 0's, the teacher.

    head_channels, head_blocks: width and depth of the 3D-conv head [open].
    """

    base: str | None = None
    motion_module: str | None = None
    head_channels: Count = 256
    head_blocks: Count = 3


class Phase(_Table):
    """Part of a stage with one discriminator and one pair of optimisers, both fresh.

    loss: "mse" before the phases with D, None: the stage's [open: None]; conditional: D sees x_t
    too, else it is D'; teacher_steps: of a teacher that skips a level, None: the stage's;
    discriminator_steps: updates of D for one of the student [open: 1];
    discriminator_head_start: the first iterations, in which D alone learns [open: 0];
    renoise_weights: relative frequency of each t*.
    """

    iterations: Count
    loss: Literal["mse"] | None = None
    conditional: bool = True
    learning_rate: Rate = 5e-7
    discriminator_learning_rate: Rate | None = None
    teacher_steps: Steps | None = None
    discriminator_steps: Count = 1
    discriminator_head_start: Annotated[int, Field(ge=0)] = 0
    renoise_weights: tuple[Annotated[float, Field(gt=0)], ...] = ()

    @property
    def rate_of_discriminator(self) -> float:
        return self.discriminator_learning_rate or self.learning_rate


class Stage(_Table):
    """teacher_steps -> student_steps by one loss; the student is the next stage's teacher.

    cfg: guidance of the teacher; timesteps: 1 .. 1000 that the student trains on, None: its own
    grid; renoise: t* that teacher's and student's results are noised to before D sees them;
    betas: of Adam, None: (0.9, 0.999) for mse and (0, 0.99) for adversarial; ema: decay of the
    averaged weights that are the result, 0: none [open]; clip: largest norm of a gradient, 0: any
    [open]; no_caption: share of samples without their caption.
    """

    teacher_steps: Steps
    student_steps: Steps
    loss: Literal["mse", "adversarial", "consistency"]
    phases: Annotated[tuple[Phase, ...], Field(min_length=1)]
    cfg: Annotated[float, Field(ge=0, le=30)] = 1.0
    timesteps: Annotated[tuple[Steps, ...], Field(min_length=1)] | None = None
    renoise: tuple[Steps, ...] = ()
    betas: tuple[Decay, Decay] | None = None
    weight_decay: Share = 0.0
    warmup: Annotated[int, Field(ge=0)] = 0
    ema: Decay = 0.0
    clip: Annotated[float, Field(ge=0)] = 0.0
    no_caption: Share = 0.0

    def loss_of(self, phase: Phase) -> str:
        return phase.loss or self.loss

    def adam_betas(self, phase: Phase) -> tuple[float, float]:
        """Return the betas of a phase's optimisers."""
        return self.betas or ((0.0, 0.99) if self.loss_of(phase) == "adversarial" else (0.9, 0.999))

    @property
    def name(self) -> str:
        """How the stage's student is called: 4step, or consistency."""
        return self.loss if self.loss == "consistency" else f"{self.student_steps}step"


class TrainConfig(_Table):
    """A whole distillation.

    teacher: the undistilled motion module's file, or "miniature"; global_batch: clips a step on
    all processes; clips_per_rank: clips in one forward; dtype: of autocast and of frozen weights,
    what is trained stays float32; save_every: seconds between checkpoints, of which `keep` are
    kept; sheet_every: iterations between contact sheets of `sheet_prompts`, 0: none;
    collapse_after: iterations that D may tell a learning student from its teacher without any
    doubt.
    """

    out: Path
    teacher: str
    pools: dict[str, Pool]
    slots: Annotated[tuple[Slot, ...], Field(min_length=1)]
    stages: Annotated[tuple[Stage, ...], Field(min_length=1)]
    discriminator: DiscriminatorTable = DiscriminatorTable()
    global_batch: Count = 256
    clips_per_rank: Count = 1
    frames: Annotated[int, Field(ge=2)] = 16
    width: Count = 512
    height: Count = 512
    dtype: Literal["float32", "bfloat16"] = "bfloat16"
    gradient_checkpointing: bool = True
    seed: Annotated[int, Field(ge=0, lt=2**40)] = 0
    save_every: Annotated[float, Field(ge=0)] = 600.0
    keep: Count = 3
    sheet_every: Annotated[int, Field(ge=0)] = 500
    sheet_prompts: tuple[str, ...] = ()
    collapse_after: Count = 1000

    @field_validator("out", mode="before")
    @classmethod
    def _no_empty_path(cls, value: object) -> object:
        if value == "":
            raise ValueError("must name a folder")
        return value

    @property
    def bases(self) -> list[str]:
        """The distinct base models in their order: what D's base index counts."""
        return list(dict.fromkeys(slot.base for slot in self.slots))

    def base_index(self, slot: int) -> int:
        return self.bases.index(self.slots[slot].base)

    def fingerprint(self) -> dict[str, object]:
        """Return what the trained weights depend on, as JSON has it.

        Without keys that are newer than the first runs where they change nothing, and with
        collapse_after, which changes nothing either, as the first runs had it, so that those runs
        are known again.
        """
        told = self.model_dump(mode="json", exclude=_NOT_IN_FINGERPRINT)
        told["collapse_after"] = type(self).model_fields["collapse_after"].default
        for part in (p for stage in told["stages"] for p in stage["phases"]):
            for newer in ("discriminator_head_start", "loss"):
                if not part[newer]:
                    del part[newer]
        return told

    def digest(self) -> str:
        """Return a short hash of the fingerprint."""
        text = json.dumps(self.fingerprint(), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:12]

    @property
    def clips_per_slot(self) -> int:
        return self.global_batch // len(self.slots)

    @property
    def discriminator_base(self) -> str:
        return self.discriminator.base or self.slots[0].base

    @property
    def discriminator_motion_module(self) -> str:
        return self.discriminator.motion_module or self.teacher


def find(name: str) -> Path:
    """Return the file of a config: a path, or the name of a bundled one; ValueError if neither."""
    if Path(name).is_file():
        return Path(name)
    bundled = BUNDLED / f"{name}.toml"
    if bundled.is_file():
        return bundled
    known = ", ".join(sorted(p.stem for p in BUNDLED.glob("*.toml")))
    raise ValueError(f"the config {name} was not found; give a .toml file, or one of: {known}.")


def read(file: Path) -> TrainConfig:
    """Read and validate a config; ConfigError holds every problem, each with what to do."""
    try:
        table = tomllib.loads(file.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError([f"{file.name} is no TOML: {error}; mend that line."]) from error
    try:
        return TrainConfig.model_validate(table)
    except ValidationError as error:
        raise ConfigError([_sentence(e) for e in _innermost(error.errors())]) from error


def _innermost(errors: list[dict]) -> list[dict]:
    """Return the errors without those that only repeat what is wrong deeper inside."""
    places = [e["loc"] for e in errors]
    return [
        e
        for e in errors
        if not any(p != e["loc"] and p[: len(e["loc"])] == e["loc"] for p in places)
    ]


def _sentence(error: dict) -> str:
    where = ".".join(str(part) for part in error["loc"])
    if error["type"] == "extra_forbidden":
        known = _known_keys(error["loc"][:-1])
        near = difflib.get_close_matches(str(error["loc"][-1]), known, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"known are {', '.join(known)}."
        return f"{where} is no known key; {hint}"
    if error["type"] == "missing":
        return f"{where} is missing; give it."
    return f"{where} is {error['input']!r}: {error['msg']}."


def _known_keys(location: tuple) -> list[str]:
    """Return the keys of the table at a place of the file; indices and pool names lead nowhere."""
    tables = {
        "pools": Pool,
        "slots": Slot,
        "stages": Stage,
        "phases": Phase,
        "discriminator": DiscriminatorTable,
    }
    found: type[BaseModel] = TrainConfig
    for part in location:
        found = tables.get(part, found)
    return list(found.model_fields)
