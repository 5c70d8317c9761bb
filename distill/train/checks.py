"""What can be wrong with a distillation, found before the first step and all at once.

What only the config tells is checked where its keys stand (config.py); here are the number of
processes, the files, and how clips, motion modules and base models fit each other.
"""

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from ...motion_module import checkpoint
from ...motion_module.checkpoint import MotionCheckpoint
from ..data.latent_pool import ClipPool
from ..data.prompt_pool import PromptPool
from ..evaluate import i3d
from ..miniature import world
from ..miniature.names import base_path, is_miniature, motion_module_path
from ..models.headers import check_configs, check_fit, empty_unet, latent_factor
from ..models.latent_size import check_size
from ..models.tokenizer import load_tokenizer
from ..sampling.request import read_prompts
from . import batches
from .batches import Pools
from .config import ConfigError, TrainConfig
from .run_folder import RunFolder


def check(config: TrainConfig, world_size: int) -> Pools:
    """Return a config's pools, opened; ConfigError with every problem on so many processes."""
    opened = {n: _attempt(lambda n=n: _open_pool(config, n)) for n in config.pools}
    pools = {name: pool for name, (pool, _) in opened.items() if pool is not None}
    problems = [
        *problems_of_layout(config, world_size),
        *(problem for _, problems in opened.values() for problem in problems),
        *problems_of_files(config, pools),
    ]
    if problems:
        raise ConfigError(problems)
    return pools


def _open_pool(config: TrainConfig, name: str) -> ClipPool | PromptPool:
    pool = config.pools[name]
    if pool.shards is not None:
        return ClipPool(pool.shards, pool.shape_weights)
    base = next((s.base for s in config.slots if s.pool == name), config.slots[0].base)
    factor = _factor_of(config, base)
    channels = empty_unet(base_path(base)).config["in_channels"]
    assert pool.prompts is not None, "the config has been checked"
    shape = (config.frames, channels, config.height // factor, config.width // factor)
    return PromptPool(pool.prompts, shape)


def _factor_of(config: TrainConfig, base: str) -> int:
    slot = config.slot_of(base)
    return latent_factor(base_path(base), slot.config if slot else None)


def teacher_file(config: TrainConfig, stage: int, steps: int) -> Path:
    """Return the file of the teacher of `steps` for a stage: an earlier student's, or the first."""
    students = {s.student_steps: s.name for s in config.stages[:stage] if s.loss != "consistency"}
    if config.stages[stage].loss == "consistency" or steps not in students:
        return motion_module_path(config.teacher)
    return RunFolder(config.out).student(students[steps])


def problems_of_layout(config: TrainConfig, world_size: int) -> list[str]:
    """Return why clips cannot be shared out over so many processes."""
    _, problems = _attempt(lambda: batches.share_out(config, 0, world_size))
    return problems


def problems_of_files(config: TrainConfig, pools: Pools) -> Iterator[str]:
    """Yield what is wrong with the motion modules and base models, and how the clips fit them."""
    channels: dict[str, int] = {}
    modules: dict[str, MotionCheckpoint] = {}
    for name in config.motion_modules:
        module, problems = _attempt(lambda n=name: checkpoint.load(motion_module_path(n)))
        yield from problems
        if module is not None:
            modules[name] = module.without_tensors()
    yield from _problems_of_starts(config, modules)
    for name in dict.fromkeys([*config.bases, config.discriminator_base, *config.unseen_bases]):
        unet, problems = _attempt(lambda n=name: empty_unet(base_path(n)))
        yield from problems
        if unet is None:
            continue
        channels[name] = unet.config.in_channels
        yield from _problems_of_size(config, name)
        for module_name in _modules_within(config, name) & modules.keys():
            module = modules[module_name]
            _, problems = _attempt(lambda m=module, u=unet: check_fit(m, u, config.frames))
            yield from problems
    yield from _problems_of_slots(config)
    yield from _problems_of_validation(config)
    clips = max(1, config.clips_per_slot)
    for name, pool in pools.items():
        yield from _problems_of_shapes(config, name, pool, channels)
        _, problems = _attempt(lambda p=pool: p.group(0, clips, (0,)))
        yield from problems


def _problems_of_starts(
    config: TrainConfig, modules: Mapping[str, MotionCheckpoint]
) -> Iterator[str]:
    """Yield which student would start as a motion module that is built unlike its teacher."""
    teacher = modules.get(config.teacher)
    for number, stage in enumerate(config.stages):
        start = modules.get(str(stage.start))
        if teacher is not None and start is not None and start.config != teacher.config:
            yield (
                f"stages.{number}.start names {stage.start}, which is built unlike the teacher; "
                "start from a motion module that was distilled from it."
            )


def _modules_within(config: TrainConfig, base: str) -> set[str]:
    """Return the names of the motion modules that a base model must have places for."""
    names = set()
    if base in (*config.bases, *config.unseen_bases):
        names = {config.teacher, *(str(s.start) for s in config.stages if s.start is not None)}
    if base == config.discriminator_base and any(s.loss == "adversarial" for s in config.stages):
        names.add(config.discriminator_motion_module)
    return names


def _problems_of_size(config: TrainConfig, base: str) -> Iterator[str]:
    factor, problems = _attempt(lambda: _factor_of(config, base))
    yield from problems
    if factor is not None:
        _, problems = _attempt(lambda: check_size(config.width, config.height, factor))
        yield from problems


def _problems_of_slots(config: TrainConfig) -> Iterator[str]:
    """Yield which files are missing that slots name beside their base model."""
    for folder in sorted({s.tokenizer for s in config.slots if s.tokenizer}):
        _, problems = _attempt(lambda f=folder: load_tokenizer(f))
        yield from problems
    for folder in sorted({s.config for s in config.slots if s.config}):
        _, problems = _attempt(lambda f=folder: check_configs(f, "config in slots"))
        yield from problems


def _problems_of_validation(config: TrainConfig) -> Iterator[str]:
    table = config.validation
    if table is None:
        return
    captions: list[str] = []
    if table.prompts is not None:
        prompts = table.prompts
        found, problems = _attempt(lambda: read_prompts(prompts))
        yield from problems
        captions = found or []
    if table.i3d is not None:
        if not table.i3d.is_file():
            yield f"validation.i3d names {table.i3d}, which was not found; put the weights there."
        if config.frames < i3d.FEWEST_FRAMES:
            yield (
                f"validation.i3d needs clips of at least {i3d.FEWEST_FRAMES} frames, not "
                f"{config.frames}; raise frames, or leave validation out."
            )
    if not any(map(is_miniature, table.bases)):
        return
    strange = next((c for c in captions if not world.tells_scene(c)), None)
    if strange is not None:
        yield (
            f"validation.prompts has the caption {strange!r}, which names no colour, animal and "
            "direction of the miniature; leave it out."
        )
    size = (config.frames, config.height, config.width)
    if table.i3d is None and size != (world.FRAMES, world.SIZE, world.SIZE):
        yield (
            f"validation measures clips of the miniature, which have {world.FRAMES} frames of "
            f"{world.SIZE} x {world.SIZE}; set frames, width and height to that."
        )


def _problems_of_shapes(
    config: TrainConfig, name: str, pool: ClipPool | PromptPool, channels: dict[str, int]
) -> Iterator[str]:
    for shape in pool.shapes:
        frames, depth = shape[:2]
        if frames > config.frames:
            yield (
                f"pools.{name} holds clips of {frames} frames; raise frames from {config.frames}."
            )
        for slot in config.slots:
            expected = channels.get(slot.base, depth)
            if slot.pool == name and expected != depth:
                yield (
                    f"pools.{name} holds latents with {depth} channels, but {slot.base} needs "
                    f"{expected}; make the clips with a base model of the same family."
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
