"""What can be wrong with a distillation, found before the first step and all at once."""

from collections.abc import Callable, Iterator
from pathlib import Path

from ...motion_module import checkpoint
from ...motion_module.checkpoint import MotionCheckpoint
from ..data.latent_pool import ClipPool
from ..miniature.names import base_path, motion_module_path
from ..models.headers import check_configs, check_fit, empty_unet, latent_factor
from ..models.latent_size import check_size
from ..models.tokenizer import load_tokenizer
from . import batches
from .config import ConfigError, Phase, Stage, TrainConfig
from .run_folder import RunFolder

# keys of a phase that its discriminator alone reads
_OF_DISCRIMINATOR = (
    "discriminator_learning_rate",
    "discriminator_steps",
    "discriminator_head_start",
    "renoise_weights",
)


def check(config: TrainConfig, world_size: int) -> dict[str, ClipPool]:
    """Return a config's pools, opened; ConfigError with every problem on so many processes."""
    opened = {n: _attempt(lambda p=p: ClipPool(p.shards)) for n, p in config.pools.items()}
    pools = {name: pool for name, (pool, _) in opened.items() if pool is not None}
    problems = [
        *of_schedule(config),
        *of_layout(config, world_size),
        *(problem for _, problems in opened.values() for problem in problems),
        *of_files(config, pools),
    ]
    if problems:
        raise ConfigError(problems)
    return pools


def teacher_file(config: TrainConfig, index: int, steps: int) -> Path:
    """Return the file of the teacher of `steps` for a stage: an earlier student's, or the first."""
    made = {s.student_steps: s.name for s in config.stages[:index] if s.loss != "consistency"}
    if config.stages[index].loss == "consistency" or steps not in made:
        return motion_module_path(config.teacher)
    return RunFolder(config.out).student(made[steps])


def of_schedule(config: TrainConfig) -> Iterator[str]:
    """Yield what is impossible or in vain in the stages."""
    made: list[int] = []
    for index, stage in enumerate(config.stages):
        where = f"stages.{index}"
        yield from _of_steps(where, stage)
        if stage.loss == "consistency":
            continue
        for steps in _teachers(stage):
            if made and steps not in made:
                yield (
                    f"{where} is taught by a student of {steps} steps, which no earlier stage "
                    f"makes; they make {', '.join(map(str, made))}."
                )
        made.append(stage.student_steps)
    names = [stage.name for stage in config.stages]
    for name in sorted({n for n in names if names.count(n) > 1}):
        yield f"two stages make the student {name!r}; keep one, or write the other to its own out."


def of_layout(config: TrainConfig, world_size: int) -> Iterator[str]:
    """Yield why clips cannot be shared out over slots and processes."""
    for slot in config.slots:
        if slot.pool not in config.pools:
            known = ", ".join(config.pools) or "none"
            yield f"slots name the pool {slot.pool!r}, which is not in pools ({known}); add it."
    for base in config.bases:
        options = {
            (s.tokenizer, s.config, s.prediction_type) for s in config.slots if s.base == base
        }
        if len(options) > 1:
            yield (
                f"slots give {base} different tokenizer, config or prediction_type; it is loaded "
                "once, so give all of them the same."
            )
    try:
        batches.parts(config, 0, world_size)
    except ValueError as error:
        yield str(error)


def of_files(config: TrainConfig, pools: dict[str, ClipPool]) -> Iterator[str]:
    """Yield what is wrong with the motion modules and base models, and how the clips fit them."""
    channels: dict[str, int] = {}
    modules: dict[str, MotionCheckpoint] = {}
    for name in dict.fromkeys([config.teacher, config.discriminator_motion_module]):
        found, problem = _attempt(lambda n=name: checkpoint.load(motion_module_path(n)))
        yield from problem
        if found is not None:
            modules[name] = found.without_tensors()
    for name in dict.fromkeys([*config.bases, config.discriminator_base]):
        unet, problem = _attempt(lambda n=name: empty_unet(base_path(n)))
        yield from problem
        if unet is None:
            continue
        channels[name] = unet.config.in_channels
        yield from _of_size(config, name)
        for wanted in _wanted_in(config, name) & modules.keys():
            module = modules[wanted]
            _, problem = _attempt(lambda m=module, u=unet: check_fit(m, u, config.frames))
            yield from problem
    yield from _of_slots(config)
    size = max(1, config.clips_per_slot)
    for name, pool in pools.items():
        yield from _of_shapes(config, name, pool, channels)
        _, problem = _attempt(lambda p=pool: p.group(0, size, (0,)))
        yield from problem


def _of_steps(where: str, stage: Stage) -> Iterator[str]:
    for steps in _teachers(stage):
        if steps % stage.student_steps or steps == stage.student_steps:
            yield (
                f"{where} goes from {steps} to {stage.student_steps} steps; the teacher's must be "
                "a multiple of the student's."
            )
    if stage.loss != "adversarial" and len(stage.phases) > 1:
        count = len(stage.phases)
        yield f"{where} has {count} phases, which only adversarial stages need; keep one."
    losses = [stage.loss_of(p) for p in stage.phases]
    if losses[-1] != stage.loss or losses != sorted(losses, key=lambda loss: loss == stage.loss):
        yield (
            f"{where} has phases with the losses {', '.join(losses)}; those with mse come before "
            f"those with the stage's {stage.loss}."
        )
    for number, part in enumerate(stage.phases):
        if part.renoise_weights and len(part.renoise_weights) != len(stage.renoise):
            yield (
                f"{where}.phases.{number} has {len(part.renoise_weights)} renoise_weights for "
                f"{len(stage.renoise)} values of renoise; give one for each."
            )
        if part.discriminator_head_start >= part.iterations:
            yield (
                f"{where}.phases.{number} has {part.iterations} iterations and a "
                f"discriminator_head_start of {part.discriminator_head_start}, so that the student "
                "would learn nothing; lower it."
            )
        in_vain = [key for key in _OF_DISCRIMINATOR if getattr(part, key) != _default(key)]
        if in_vain and losses[number] != "adversarial":
            yield (
                f"{where}.phases.{number} has {' and '.join(in_vain)}, but no discriminator; "
                "remove it."
            )
    if stage.renoise and stage.loss != "adversarial":
        yield f"{where} has renoise, but no discriminator that would see it; remove it."


def _default(key: str) -> object:
    return Phase.model_fields[key].default


def _teachers(stage: Stage) -> list[int]:
    """Return the steps of every teacher that a stage has, its own first."""
    others = [p.teacher_steps for p in stage.phases if p.teacher_steps is not None]
    return list(dict.fromkeys([stage.teacher_steps, *others]))


def _wanted_in(config: TrainConfig, base: str) -> set[str]:
    """Return the names of the motion modules that a base model must have places for."""
    wanted = {config.teacher} if base in config.bases else set()
    if base == config.discriminator_base and any(s.loss == "adversarial" for s in config.stages):
        wanted.add(config.discriminator_motion_module)
    return wanted


def _of_size(config: TrainConfig, name: str) -> Iterator[str]:
    configs = next((s.config for s in config.slots if s.base == name), None)
    factor, problem = _attempt(lambda: latent_factor(base_path(name), configs))
    yield from problem
    if factor is not None:
        _, problem = _attempt(lambda: check_size(config.width, config.height, factor))
        yield from problem


def _of_slots(config: TrainConfig) -> Iterator[str]:
    """Yield which files are missing that slots name beside their base model."""
    for folder in sorted({s.tokenizer for s in config.slots if s.tokenizer}):
        _, problem = _attempt(lambda f=folder: load_tokenizer(f))
        yield from problem
    for folder in sorted({s.config for s in config.slots if s.config}):
        _, problem = _attempt(lambda f=folder: check_configs(f, "config in slots"))
        yield from problem


def _of_shapes(
    config: TrainConfig, name: str, pool: ClipPool, channels: dict[str, int]
) -> Iterator[str]:
    for shape in pool.shapes:
        frames, depth = shape[:2]
        if frames > config.frames:
            yield (
                f"pools.{name} holds clips of {frames} frames; raise frames from {config.frames}."
            )
        for slot in config.slots:
            wanted = channels.get(slot.base, depth)
            if slot.pool == name and wanted != depth:
                yield (
                    f"pools.{name} holds latents of {depth} channels and {slot.base} wants "
                    f"{wanted}; make the clips with a base model of its family."
                )
    if config.pools[name].flip and not pool.can_flip:
        yield (
            f"pools.{name} has no flipped latents; set flip = false, or make the clips with --flip."
        )


def _attempt(work: Callable) -> tuple:
    """Return what some work gives and no problem, or None and its sentence."""
    try:
        return work(), []
    except ValueError as error:
        return None, [str(error)]
