"""What a distillation is: its bases, pools, stages and optimisers, read from a small TOML file.

Every default is the paper's where it prints one (AnimateDiff-Lightning section 3 and table 1,
SDXL-Lightning, arXiv 2402.13929, section 3); what the papers leave open is marked [open].
"""

import difflib
import hashlib
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Literal, NamedTuple

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    field_validator,
    model_validator,
)
from pydantic_core import ErrorDetails, PydanticCustomError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

from ..miniature.names import is_miniature

BUNDLED = Path(__file__).parent / "configs"
# these change where a run lies and what it tells, never what comes out
_LARGEST_FILE, _MOST_PARTS = 2**20, 32
_NOT_IN_FINGERPRINT = {"out", "save_every", "keep", "sheet_every", "sheet_prompts"}
Count = Annotated[int, Field(ge=1)]
Rate = Annotated[float, Field(gt=0, lt=1)]
Share = Annotated[float, Field(ge=0, le=1)]
Decay = Annotated[float, Field(ge=0, lt=1)]
Steps = Annotated[int, Field(ge=1, le=1000)]
Weight = Annotated[float, Field(gt=0, le=1000)]
Weights = tuple[Weight, ...]
Dtype = Literal["float32", "tf32", "bfloat16"]
SATURATED_AFTER = 1000  # iterations in a row that D is right about every clip: then it is told
_FAKE_RATE = 2.0  # times the student's
_RULES = "rules"  # the type of pydantic's error that holds the problems of a table
# keys of a phase that its critic alone reads, by the loss that has one
_OF_CRITIC = {
    "adversarial": (
        "discriminator_learning_rate",
        "discriminator_steps",
        "discriminator_head_start",
        "renoise_weights",
        "fresh_learning_rate",
    ),
    "distribution": ("fake_learning_rate", "fake_steps", "fake_head_start"),
}
# keys of a stage that one loss alone reads
_OF_STAGE = {
    "adversarial": ("renoise",),
    "distribution": ("real_cfg", "fake_start", "noise_above", "noise_floor", "normaliser_floor"),
    "consistency": ("target",),
}
_WHAT_IS_MISSING = {
    "adversarial": "a discriminator",
    "distribution": "a fake motion module",
    "consistency": "the loss consistency",
}


class ConfigError(ValueError):
    """All that is wrong with a config, one sentence each in `problems`."""

    def __init__(self, problems: list[str]) -> None:
        super().__init__(" ".join(problems))
        self.problems = problems


class _Table(BaseModel):
    """A table of the file: no key but the known ones, and no change once it is read."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    @model_validator(mode="after")
    def _check_rules(self) -> "_Table":
        problems = list(self._problems())
        if problems:
            raise PydanticCustomError(_RULES, "{problems}", {"problems": problems})
        return self

    def _problems(self) -> Iterator[str]:
        """Yield how the table's values contradict each other; what follows the table's name."""
        yield from ()


class Pool(_Table):
    """Clips that base models draw from: shards as ClipPool takes them, and whether to flip.

    shape_weights: how often clips of a shape are drawn, such as {"16x4x64x64" = 2.0}; 1 for as
    often as there are clips; prompts: a text file with a caption in each line, in place of shards;
    enough for distribution.
    """

    shards: str | None = None
    prompts: Path | None = None
    flip: bool = True
    shape_weights: dict[str, Weight] = {}

    def _problems(self) -> Iterator[str]:
        if (self.shards is None) == (self.prompts is None):
            yield " needs shards or prompts, and only one of them."
        if self.prompts is not None and self.shape_weights:
            yield " has prompts, whose clips have one shape; remove shape_weights."


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

    head_channels, head_blocks: width and depth of the 3D-conv head [open]; pairing: None as in the
    papers, "relativistic" compares teacher's and student's landing from the same x_t, which
    differ far less from each other than clips do.
    """

    base: str | None = None
    motion_module: str | None = None
    head_channels: Count = 256
    head_blocks: Count = 3
    pairing: Literal["relativistic"] | None = None


class Phase(_Table):
    """A phase of a stage: one critic (D, or the fake) and one pair of optimisers, all fresh.

    loss: "mse" before the phases with D, None: the stage's [open: None]; conditional: D sees x_t
    too, else it is D'; teacher_steps: of a teacher that skips a level, None: the stage's;
    discriminator_steps: updates of D for one of the student [open: 1];
    discriminator_head_start: the first iterations, in which D alone learns [open: 0];
    renoise_weights: relative frequency of each t*; fresh_learning_rate: of D's head and base-model
    embedding, which start from nothing, None: that of the rest of D [open]; mse_weight: of the
    landings' MSE, which is added to the loss of a student that follows a critic [open: 0];
    fake_learning_rate: None: twice the student's; fake_steps: updates of the fake motion module for
    one of the student (DMD2, arXiv 2405.14867, has 5); fake_head_start: the first iterations, in
    which the fake alone learns [open].
    """

    iterations: Count
    loss: Literal["mse"] | None = None
    conditional: bool = True
    learning_rate: Rate = 5e-7
    discriminator_learning_rate: Rate | None = None
    teacher_steps: Steps | None = None
    discriminator_steps: Count = 1
    discriminator_head_start: Annotated[int, Field(ge=0)] = 0
    renoise_weights: Weights = ()
    fresh_learning_rate: Rate | None = None
    mse_weight: Annotated[float, Field(ge=0)] = 0.0
    fake_learning_rate: Rate | None = None
    fake_steps: Count = 2
    fake_head_start: Annotated[int, Field(ge=0)] = 0

    def _problems(self) -> Iterator[str]:
        for key in ("discriminator_head_start", "fake_head_start"):
            if getattr(self, key) >= self.iterations:
                yield (
                    f" has {self.iterations} iterations and a {key} of {getattr(self, key)}, so "
                    "the student would learn nothing; lower the head start."
                )


class ValidationTable(_Table):
    """What a student is measured on while it trains: base models and captions that it never sees.

    bases: files, diffusers folders or "miniature:STYLE"; prompts: a text file with a caption in
    each line, None: those that the miniature keeps for it; every: updates between two measurements;
    clips: for each base model; steps, cfg: of the undistilled teacher, whose clips are compared
    with where no true clips are known, cfg None: the largest guidance of a stage; i3d: weights of
    the Kinetics I3D, None: the miniature's probe; keep_best: whether the stage's result is the
    student that measured best in its last phase, else the last.
    """

    bases: Annotated[tuple[str, ...], Field(min_length=1)]
    every: Count
    prompts: Path | None = None
    clips: Annotated[int, Field(ge=2)] = 48
    steps: Steps = 32
    cfg: Annotated[float, Field(ge=0, le=30)] | None = None
    i3d: Path | None = None
    keep_best: bool = True


class CriticPlan(NamedTuple):
    """How a phase's critic learns: its rate, updates for one of the student, and head start."""

    learning_rate: float
    steps: int
    head_start: int


NO_CRITIC = CriticPlan(0.0, 1, 0)


def _given(table: BaseModel, keys: Sequence[str]) -> list[str]:
    """Return those of some keys of a table that differ from their defaults."""
    fields = type(table).model_fields
    return [key for key in keys if getattr(table, key) != fields[key].default]


class Stage(_Table):
    """teacher_steps -> student_steps by one loss; the student is the next stage's teacher.

    start: file of the motion module that the student starts as, such as a distilled one that is to
    be trained further, None: its teacher; cfg: guidance of the teacher; timesteps: 1 .. 1000 that
    the student trains on, None: its own grid; timestep_weights: relative frequency of each of them,
    in the order of timesteps, of the own grid from T down [open: equal]; dtype: None: the run's
    [open]; renoise: t* that teacher's and student's results are noised to before D sees them;
    betas: of Adam, None: (0.9, 0.999) for mse and (0, 0.99) for adversarial; ema: decay of the
    averaged weights that are the result, 0: none [open]; clip: largest norm of a gradient, 0: any
    [open]; no_caption: share of samples without their caption.

    Of "distribution" (distribution.py) [all open]: real_cfg: guidance of the undistilled teacher,
    whose score is the real one, None: cfg; fake_start: what the fake motion module starts
    from; noise_above: how far above its landing a student's clip is noised at least, and
    noise_floor the same where it lands clean, of 1000; normaliser_floor: the least that a gradient
    is divided by. Of "consistency": target: whose x0 the student's is drawn to, its own or that of
    its average (ema).
    """

    teacher_steps: Steps
    student_steps: Steps
    loss: Literal["mse", "adversarial", "consistency", "distribution"]
    phases: Annotated[tuple[Phase, ...], Field(min_length=1)]
    start: Path | None = None
    cfg: Annotated[float, Field(ge=0, le=30)] = 1.0
    timesteps: Annotated[tuple[Steps, ...], Field(min_length=1)] | None = None
    timestep_weights: Weights = ()
    dtype: Dtype | None = None
    renoise: tuple[Steps, ...] = ()
    betas: tuple[Decay, Decay] | None = None
    weight_decay: Share = 0.0
    warmup: Annotated[int, Field(ge=0)] = 0
    ema: Decay = 0.0
    clip: Annotated[float, Field(ge=0)] = 0.0
    no_caption: Share = 0.0
    real_cfg: Annotated[float, Field(ge=0, le=30)] | None = None
    fake_start: Literal["student", "teacher"] = "student"
    noise_above: Steps = 50
    noise_floor: Steps = 20
    normaliser_floor: Annotated[float, Field(gt=0)] = 0.02
    target: Literal["student", "average"] = "student"

    def loss_of(self, phase: Phase) -> str:
        return phase.loss or self.loss

    def adam_betas(self, phase: Phase) -> tuple[float, float]:
        """Return the betas of a phase's optimisers."""
        return self.betas or ((0.0, 0.99) if self.loss_of(phase) in _OF_CRITIC else (0.9, 0.999))

    @property
    def guidance_of_real(self) -> float:
        return self.cfg if self.real_cfg is None else self.real_cfg

    def critic_of(self, phase: Phase) -> CriticPlan:
        """Return how the critic of a phase learns; NO_CRITIC where its loss has none."""
        loss = self.loss_of(phase)
        if loss == "adversarial":
            return CriticPlan(
                phase.discriminator_learning_rate or phase.learning_rate,
                phase.discriminator_steps,
                phase.discriminator_head_start,
            )
        if loss == "distribution":
            rate = phase.fake_learning_rate or _FAKE_RATE * phase.learning_rate
            return CriticPlan(rate, phase.fake_steps, phase.fake_head_start)
        return NO_CRITIC

    @property
    def name(self) -> str:
        """How the stage's student is called: 4step, or consistency."""
        return self.loss if self.loss == "consistency" else f"{self.student_steps}step"

    def teacher_steps_of(self, phase: Phase) -> int:
        return phase.teacher_steps or self.teacher_steps

    def all_teacher_steps(self) -> list[int]:
        """Return the steps of every teacher that the stage has, its own first."""
        return list(dict.fromkeys([self.teacher_steps, *map(self.teacher_steps_of, self.phases)]))

    def _problems(self) -> Iterator[str]:
        for steps in self.all_teacher_steps():
            if steps % self.student_steps or steps == self.student_steps:
                yield (
                    f" goes from {steps} to {self.student_steps} steps; the teacher's steps must "
                    "be a multiple of the student's."
                )
        for loss, keys in _OF_STAGE.items():
            ignored = _given(self, keys)
            if ignored and self.loss != loss:
                keys_set, one = " and ".join(ignored), len(ignored) == 1
                yield (
                    f" sets {keys_set}, which need{'s' * one} {_WHAT_IS_MISSING[loss]}; remove "
                    f"{'it' if one else 'them'}."
                )
        if self.target == "average" and not self.ema:
            yield " has the average as its target, but no ema; add ema, such as 0.95."
        steps = self.teacher_steps if self.loss == "consistency" else self.student_steps
        starts = len(self.timesteps or range(steps))
        if self.timestep_weights and len(self.timestep_weights) != starts:
            yield (
                f" has {len(self.timestep_weights)} timestep_weights for {starts} timesteps; give "
                "one for each."
            )
        yield from self._problems_of_losses()
        for number, phase in enumerate(self.phases):
            for problem in self._problems_of_phase(phase):
                yield f".phases.{number}{problem}"

    def _problems_of_losses(self) -> Iterator[str]:
        if self.loss not in _OF_CRITIC and len(self.phases) > 1:
            yield (
                f" has {len(self.phases)} phases, but only adversarial and distribution stages may "
                "have several; keep one."
            )
        losses = [self.loss_of(phase) for phase in self.phases]
        in_order = sorted(losses, key=lambda loss: loss == self.loss)
        if losses[-1] != self.loss or losses != in_order:
            yield (
                f" has phases with the losses {', '.join(losses)}; put the phases with mse before "
                f"those with the stage's {self.loss}."
            )

    def _problems_of_phase(self, phase: Phase) -> Iterator[str]:
        if phase.renoise_weights and len(phase.renoise_weights) != len(self.renoise):
            yield (
                f" has {len(phase.renoise_weights)} renoise_weights for {len(self.renoise)} values "
                "of renoise; give one for each."
            )
        if phase.mse_weight and self.loss_of(phase) not in _OF_CRITIC:
            yield " sets mse_weight, which needs a critic beside the MSE; remove it."
        for loss, keys in _OF_CRITIC.items():
            ignored = _given(phase, keys)
            if ignored and self.loss_of(phase) != loss:
                missing = _WHAT_IS_MISSING[loss].removeprefix("a ")
                yield f" has no {missing}; remove {' and '.join(ignored)}."


class TrainConfig(_Table):
    """A whole distillation.

    teacher: the undistilled motion module's file, or "miniature"; global_batch: clips a step on
    all processes; clips_per_rank: clips in one forward; dtype: of autocast and of frozen weights,
    what is trained stays float32; tf32: float32 whose products a GPU shortens; save_every: seconds
    between checkpoints, of which `keep` are kept; sheet_every: iterations between contact sheets of
    `sheet_prompts`, 0: none; collapse_after: iterations in a row that D may be right about every
    clip of a student that learns, None: any, with a warning; validation: None: none.
    """

    out: Path
    teacher: str
    pools: dict[str, Pool]
    slots: Annotated[tuple[Slot, ...], Field(min_length=1)]
    stages: Annotated[tuple[Stage, ...], Field(min_length=1)]
    discriminator: DiscriminatorTable = DiscriminatorTable()
    validation: ValidationTable | None = None
    global_batch: Count = 256
    clips_per_rank: Count = 1
    frames: Annotated[int, Field(ge=2)] = 16
    width: Count = 512
    height: Count = 512
    dtype: Dtype = "bfloat16"
    gradient_checkpointing: bool = True
    seed: Annotated[int, Field(ge=0, lt=2**40)] = 0
    save_every: Annotated[float, Field(ge=0)] = 600.0
    keep: Count = 3
    sheet_every: Annotated[int, Field(ge=0)] = 500
    sheet_prompts: tuple[str, ...] = ()
    collapse_after: Count | None = None

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

    @property
    def frozen_dtype(self) -> Literal["float32", "bfloat16"]:
        """The dtype of weights that are not trained: float32 where any stage computes in it."""
        dtypes = {self.dtype_of(stage) for stage in self.stages}
        return "bfloat16" if dtypes == {"bfloat16"} else "float32"

    def dtype_of(self, stage: Stage) -> Dtype:
        return stage.dtype or self.dtype

    @property
    def motion_modules(self) -> list[str]:
        """Every motion module's file, or "miniature", that the run reads: the teacher's first."""
        starts = [str(stage.start) for stage in self.stages if stage.start is not None]
        return list(dict.fromkeys([self.teacher, self.discriminator_motion_module, *starts]))

    @property
    def unseen_bases(self) -> tuple[str, ...]:
        """The base models of the validation."""
        return self.validation.bases if self.validation is not None else ()

    def slot_of(self, base: str) -> Slot | None:
        """Return the first slot that has a base model, None where no slot has it."""
        return next((s for s in self.slots if s.base == base), None)

    def base_index(self, slot: int) -> int:
        return self.bases.index(self.slots[slot].base)

    def fingerprint(self) -> dict[str, object]:
        """Return what the trained weights depend on, as JSON has it.

        Without keys that are newer than the first runs where they change nothing, and with
        collapse_after, which changes nothing either, as the first runs had it, so that those runs
        are known again.
        """
        values = self.model_dump(mode="json", exclude=_NOT_IN_FINGERPRINT)
        values["collapse_after"] = SATURATED_AFTER
        if self.validation is None or not self.validation.keep_best:  # it changes no weight
            del values["validation"]
        for pool in values["pools"].values():
            _leave_out_defaults(pool, Pool, ("prompts", "shape_weights"))
        _leave_out_defaults(values["discriminator"], DiscriminatorTable, ("pairing",))
        for stage in values["stages"]:
            newer = ("start", "timestep_weights", "dtype", "target", *_OF_STAGE["distribution"])
            _leave_out_defaults(stage, Stage, newer)
            for phase in stage["phases"]:
                newer = ("discriminator_head_start", "loss", "mse_weight", "fresh_learning_rate")
                _leave_out_defaults(phase, Phase, (*newer, *_OF_CRITIC["distribution"]))
        return values

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

    def _problems(self) -> Iterator[str]:
        yield from self._problems_of_teachers()
        names = [stage.name for stage in self.stages]
        for name in sorted({n for n in names if names.count(n) > 1}):
            yield (
                f"two stages make a student named {name!r}; keep one of them, or train the other "
                "with another config and out."
            )
        for pool in dict.fromkeys(slot.pool for slot in self.slots):
            if pool not in self.pools:
                pools = ", ".join(self.pools) or "none"
                yield f"slots name the pool {pool!r}, which is not in pools ({pools}); add it."
        yield from self._problems_of_prompts()
        yield from self._problems_of_validation()
        for base in self.bases:
            options = {
                (s.tokenizer, s.config, s.prediction_type) for s in self.slots if s.base == base
            }
            if len(options) > 1:
                yield (
                    f"the slots with the base {base} differ in tokenizer, config or "
                    "prediction_type; the base is loaded once, so use the same values in all of "
                    "them."
                )

    def _problems_of_prompts(self) -> Iterator[str]:
        losses = {s.loss_of(p) for s in self.stages for p in s.phases} - {"distribution"}
        for name, pool in self.pools.items():
            if pool.prompts is not None and losses:
                yield (
                    f"pools.{name} has prompts and no clips, but {' and '.join(sorted(losses))} "
                    "needs clips; give it shards, or train by distribution alone."
                )

    def _problems_of_validation(self) -> Iterator[str]:
        table = self.validation
        if table is None:
            return
        for base in table.bases:
            if base in self.bases:
                yield (
                    f"validation.bases names {base}, which a slot trains with; measure on a base "
                    "model that no slot has."
                )
        missing = [k for k in ("prompts", "i3d") if getattr(table, k) is None]
        others = [b for b in table.bases if not is_miniature(b)]
        if others and missing:
            yield (
                f"validation.bases names {others[0]}, which is none of the miniature's; add "
                f"{' and '.join(missing)} to validation."
            )

    def _problems_of_teachers(self) -> Iterator[str]:
        made: list[int] = []
        for index, stage in enumerate(self.stages):
            if stage.loss == "consistency":
                continue
            for steps in stage.all_teacher_steps():
                if made and steps not in made:
                    yield (
                        f"stages.{index} needs a teacher with {steps} steps, but no earlier stage "
                        f"makes one; earlier stages make {', '.join(map(str, made))}."
                    )
            made.append(stage.student_steps)


def _leave_out_defaults(values: dict, table: type[BaseModel], keys: Sequence[str]) -> None:
    for key in keys:
        default = table.model_fields[key].default
        if values[key] == (list(default) if isinstance(default, tuple) else default):  # as JSON
            del values[key]


def find_config(name: str) -> Path:
    """Return the file of a config: a path, or the name of a bundled one; ValueError if neither."""
    if Path(name).is_file():
        return Path(name)
    bundled = BUNDLED / f"{name}.toml"
    if bundled.is_file():
        return bundled
    names = ", ".join(sorted(p.stem for p in BUNDLED.glob("*.toml")))
    raise ValueError(f"the config {name} was not found; give a .toml file, or one of: {names}.")


def read_config(file: Path) -> TrainConfig:
    """Read and validate a config; ConfigError holds every problem, each with what to do."""
    if file.stat().st_size > _LARGEST_FILE:
        raise ConfigError(
            [f"{file.name} is larger than {_LARGEST_FILE} bytes, so it is no config."]
        )
    try:
        text = file.read_text(encoding="utf-8")
        _check_keys(text)
        table = tomllib.loads(text)
    except (ValueError, RecursionError) as error:
        raise ConfigError(
            [f"{file.name} is not valid TOML: {error}; correct that line."]
        ) from error
    return validate_table(table)


def _check_keys(text: str) -> None:
    """Raise ValueError for a key of many parts, for each of which tomllib makes a table."""
    for number, line in enumerate(text.splitlines(), 1):
        key = line.lstrip().partition("=")[0]
        if not key.startswith(("#", '"', "'")) and key.partition("#")[0].count(".") > _MOST_PARTS:
            raise ValueError(f"a key of more than {_MOST_PARTS} parts (at line {number})")


def validate_table(table: dict) -> TrainConfig:
    """Return the config of a file's table; ConfigError holds every problem."""
    try:
        return TrainConfig.model_validate(table)
    except ValidationError as error:
        problems = [s for e in _innermost(error.errors()) for s in _sentences(e)]
        raise ConfigError(problems) from error


def _innermost(errors: list[ErrorDetails]) -> list[ErrorDetails]:
    """Return the errors without those that only repeat what is wrong deeper inside."""
    places = [e["loc"] for e in errors]
    return [
        e
        for e in errors
        if not any(p != e["loc"] and p[: len(e["loc"])] == e["loc"] for p in places)
    ]


def _sentences(error: ErrorDetails) -> list[str]:
    where = ".".join(str(key) for key in error["loc"])
    if error["type"] == _RULES:
        return [f"{where}{problem}" for problem in error["ctx"]["problems"]]
    if error["type"] == "extra_forbidden":
        keys = _keys_of_table(error["loc"][:-1])
        near = difflib.get_close_matches(str(error["loc"][-1]), keys, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"the known keys are {', '.join(keys)}."
        return [f"{where} is not a known key; {hint}"]
    if error["type"] == "missing":
        return [f"{where} is missing; add it to the config."]
    return [f"{where} is {error['input']!r}: {error['msg']}."]


def _keys_of_table(location: tuple) -> list[str]:
    """Return the keys of the table at a place of the file; indices and pool names lead nowhere."""
    tables: dict[str, type[BaseModel]] = {
        "pools": Pool,
        "slots": Slot,
        "stages": Stage,
        "phases": Phase,
        "discriminator": DiscriminatorTable,
        "validation": ValidationTable,
    }
    table: type[BaseModel] = TrainConfig
    for key in location:
        table = tables.get(key, table)
    return list(table.model_fields)
