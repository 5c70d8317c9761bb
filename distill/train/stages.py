"""The `train` command: every stage of a distillation, one after the other, resumable anywhere.

AnimateDiff-Lightning section 3: 128 -> 32 with MSE, then 32 -> 8 -> 4 -> 2 -> 1 adversarially, each
stage's student being the next one's teacher. Works in each of torchrun's processes.
"""

import contextlib
import functools
import time
from dataclasses import dataclass

import torch
from tqdm import tqdm

from ...motion_module import checkpoint
from ...motion_module.module import MotionModule
from ..data.latent_pool import ClipPool
from ..engine import distributed, gradient_checkpointing, loop
from ..engine.peak_memory import peak_gib, reset_peak
from ..engine.read_ahead import ReadAhead
from ..files.digest import digest
from ..miniature.names import base_path, motion_module_path
from ..models import student_files
from ..models.base_model import BaseModel, load_base, quiet_libraries
from . import batches, checks, phase, sheets
from .batches import Batch, Moment
from .config import Stage, TrainConfig
from .curves import Curves
from .discriminator import Discriminator, Encoder
from .phase import CollapsedError, PhaseRun
from .run_folder import Place, RunFolder
from .student import MovingBase, Student
from .updates import Networks


@dataclass(frozen=True)
class Loaded:
    """What a process holds through all stages: its share, its base models by slot, the clips.

    judge_base: the base model that D starts from and whose text encoder it hears.
    """

    config: TrainConfig
    device: torch.device
    folder: RunFolder
    parts: list[tuple[int, range]]
    pools: dict[str, ClipPool]
    bases: dict[int, BaseModel]
    judge_base: BaseModel


def run(config: TrainConfig, device: torch.device, resume: bool = True) -> None:
    """Train what is missing, stage by stage, and leave each student in the run's folder.

    Raises ConfigError before any training for all that cannot work, ValueError where the folder
    holds another run (or, not `resume`, any), CollapsedError where training went wrong and Stopped
    on SIGTERM or Ctrl-C, once a checkpoint is written.
    """
    quiet_libraries()
    distributed.start(device)
    try:
        loaded = load(config, device, resume)
        for index in range(len(config.stages)):
            run_stage(loaded, index)
    finally:
        distributed.stop()


def load(config: TrainConfig, device: torch.device, resume: bool) -> Loaded:
    """Check a config, load this process's base models, frozen, and claim the folder."""
    pools = checks.check(config, distributed.world_size())
    folder = RunFolder(config.out)
    if not resume and (folder.is_claimed or student_files.files(folder.root)):
        raise ValueError(f"{config.out} holds a run; choose another --out, or --resume auto.")
    parts = batches.parts(config, distributed.rank(), distributed.world_size())
    load_once = functools.cache(functools.partial(_load_base, config, device))
    slots = sorted({slot for slot, _ in parts})
    bases = {slot: load_once(config.slots[slot].base) for slot in slots}
    judge_base = load_once(config.discriminator_base)
    distributed.barrier()  # nothing is written before every process has all that it needs
    clips = {name: pool.digest() for name, pool in pools.items()}
    _check_alike(config, clips)
    if distributed.rank() == 0:
        folder.claim(config, clips)
    distributed.barrier()
    if not distributed.agree(
        (folder.is_claimed, folder.newest(), student_files.files(folder.root))
    ):
        raise ValueError(
            f"the processes see different files in {config.out}; give an --out that all machines "
            "share."
        )
    return Loaded(config, device, folder, parts, pools, bases, judge_base)


def run_stage(loaded: Loaded, index: int) -> None:
    """Train a stage's student from where its checkpoints are; does nothing where it is finished."""
    config, folder, stage = loaded.config, loaded.folder, loaded.config.stages[index]
    file, newest = folder.student(stage.name), folder.newest()
    if file.is_file():
        return
    if newest is not None and newest.stage > index:
        raise ValueError(
            f"{file} is missing, though later stages have begun; put it back, or choose another "
            "--out."
        )
    teacher_file = checks.teacher_file(config, index, stage.teacher_steps)
    student = checkpoint.load(teacher_file).build(dtype=torch.float32).to(loaded.device)
    student.requires_grad_(True)
    by_unet = {id(b.unet): MovingBase(b, student) for b in loaded.bases.values()}
    moving = {slot: by_unet[id(base.unet)] for slot, base in loaded.bases.items()}
    judge = None
    try:
        for number in range(len(stage.phases)):
            judge = run_phase(loaded, Moment(index, number, 0), student, moving, judge)
    finally:
        for base in by_unet.values():
            base.close()
    if distributed.rank() == 0:
        file = folder.save_student(stage.name, student, metadata(config, stage))
        print(f"wrote {file} ({stage.teacher_steps} -> {stage.student_steps} steps, {stage.loss}).")
    distributed.barrier()


def run_phase(
    loaded: Loaded,
    moment: Moment,
    student: MotionModule,
    moving: dict[int, MovingBase],
    judge: Discriminator | None,
) -> Discriminator | None:
    """Train a phase to its end and return its discriminator, whose backbone the next one keeps."""
    config, folder = loaded.config, loaded.folder
    stage = config.stages[moment.stage]
    part = stage.phases[moment.phase]
    if stage.loss_of(part) == "adversarial":
        judge = make_judge(loaded, moment, judge)
    newest, iteration = folder.newest(), 0
    if newest is not None and (newest.stage, newest.phase) > (moment.stage, moment.phase):
        return judge  # a later phase's checkpoint holds what this one left
    under_way = PhaseRun.start(_networks(loaded, moment, student, moving, judge))
    if newest is not None and (newest.stage, newest.phase) == (moment.stage, moment.phase):
        iteration = newest.iteration
        under_way.load(folder.load(newest))
    if iteration < part.iterations:
        with _checkpointing(loaded, student, judge):
            _train(loaded, moment, under_way, iteration)
    following = stage.phases[moment.phase + 1 : moment.phase + 2]
    if all(stage.loss_of(f) != stage.loss_of(part) for f in following):  # or the stage's end
        under_way.result()
    return judge


def make_judge(loaded: Loaded, moment: Moment, before: Discriminator | None) -> Discriminator:
    """Return a stage's fresh D, or the D' that keeps D's backbone under a new head."""
    config = loaded.config
    part = config.stages[moment.stage].phases[moment.phase]
    generator = torch.Generator().manual_seed(
        1_000_003 * config.seed + 1009 * moment.stage + moment.phase
    )
    table = config.discriminator
    encoder = before.encoder if before is not None else _fresh_encoder(loaded)
    judge = Discriminator(
        encoder,
        conditional=part.conditional,
        head_channels=table.head_channels,
        head_blocks=table.head_blocks,
        generator=generator,
    )
    return judge.requires_grad_(True)  # D's last update of the student froze its backbone


def _fresh_encoder(loaded: Loaded) -> Encoder:
    config = loaded.config
    known = checkpoint.load(motion_module_path(config.discriminator_motion_module))
    motion_module = known.build(dtype=torch.float32)
    return Encoder(loaded.judge_base.unet, motion_module, len(config.bases))


def metadata(config: TrainConfig, stage: Stage) -> dict[str, object]:
    """Return what a student's file tells of itself; no path, no name that tells one."""
    return {
        "family": f"AnimateDiff-Lightning ({stage.loss})",
        "steps": stage.student_steps,
        "cfg": 1,
        "loss": stage.loss,
        "teacher_steps": stage.teacher_steps,
        "bases": ", ".join(sorted({base_path(b).stem for b in config.bases})),
        "schedule": "linear betas 0.00085 to 0.012, trailing",
        "frames": config.frames,
        "iterations": sum(p.iterations for p in stage.phases),
        "global_batch": config.global_batch,
        "seed": config.seed,
        "training": config.digest(),
    }


def _train(loaded: Loaded, moment: Moment, under_way: PhaseRun, iteration: int) -> None:
    """Iterate to the phase's end, writing checkpoints, curves and contact sheets."""
    config, folder = loaded.config, loaded.folder
    stage = config.stages[moment.stage]
    part = stage.phases[moment.phase]
    first = distributed.rank() == 0
    ahead = _read_ahead(loaded, moment)
    curves = Curves(folder.root, Place(moment.stage, moment.phase, iteration)) if first else None
    saved = time.monotonic()
    label = stage.name
    if stage.loss_of(part) == "adversarial":
        label += ", D" if part.conditional else ", D'"
    bar = tqdm(
        total=part.iterations,
        initial=iteration,
        desc=label,
        disable=None if first else True,
        mininterval=2,
    )
    with contextlib.closing(ahead), loop.stop_signal() as stop_wanted, bar:
        while iteration < part.iterations:
            began = time.monotonic()
            reset_peak(loaded.device)
            found = [ahead(n) for n in phase.batches_of(part, iteration)]
            try:
                figures = under_way.iterate(iteration, found)
                _check_doubt(config, under_way, iteration)
            except CollapsedError as error:
                sure = folder.newest(_undoubted(moment, iteration + 1, under_way))
                raise _with_checkpoint(error, folder, sure) from error
            if first:
                figures |= {
                    "seconds": time.monotonic() - began,
                    "peak_gib": peak_gib(loaded.device),
                }
                curves.add(Place(moment.stage, moment.phase, iteration), figures)
                bar.set_postfix(_shown(figures), refresh=False)
            iteration += 1
            bar.update()
            stop = distributed.any_rank(bool(stop_wanted))
            due = time.monotonic() - saved >= config.save_every
            if first and (stop or due or iteration == part.iterations):
                place = Place(moment.stage, moment.phase, iteration)
                sure = _undoubted(moment, iteration, under_way)
                folder.save(place, under_way.state(), config.keep, sure)
                saved = time.monotonic()
            if stop:
                distributed.barrier()  # torchrun kills those that write when the others have left
                raise loop.Stopped
            wanted = config.sheet_prompts and config.sheet_every
            if first and wanted and iteration % config.sheet_every == 0:
                picture = sheets.draw(config, under_way.networks)
                name = f"{stage.name}-{moment.phase}-{iteration:08d}.png"
                sheets.write(folder.sheets / name, picture)
                curves.picture(stage.name, picture)
    if first:
        curves.close()
    distributed.barrier()


def _read_ahead(loaded: Loaded, moment: Moment) -> ReadAhead:
    """Return the batches of this process by their number in the phase, read in threads."""
    config, pools = loaded.config, loaded.pools
    part = config.stages[moment.stage].phases[moment.phase]

    def read(number: int, index: int) -> Batch:
        slot, places = loaded.parts[index]
        at = Moment(moment.stage, moment.phase, number)
        clips = batches.refs(config, pools, at, slot)
        batch = batches.make(config, pools, at, slot, places, clips)
        return batch.to(loaded.device)

    total = part.iterations * part.discriminator_steps
    return ReadAhead(read, range(len(loaded.parts)), total, threads=2)


def _networks(
    loaded: Loaded,
    moment: Moment,
    student: MotionModule,
    moving: dict[int, MovingBase],
    judge: Discriminator | None,
) -> Networks:
    config, stage = loaded.config, loaded.config.stages[moment.stage]
    part = stage.phases[moment.phase]
    steps = part.teacher_steps or stage.teacher_steps
    teacher_file = checks.teacher_file(config, moment.stage, steps)
    teacher = checkpoint.load(teacher_file).build(dtype=_frozen_dtype(config))
    return Networks(
        stage,
        part,
        moving,
        teacher.to(loaded.device),
        distributed.wrap(Student(student, moving), loaded.device),
        distributed.wrap(judge, loaded.device) if judge is not None else None,
        loaded.judge_base,
        {slot: config.base_index(slot) for slot in moving},
        functools.partial(
            torch.autocast, loaded.device.type, torch.bfloat16, enabled=config.dtype == "bfloat16"
        ),
    )


def _load_base(config: TrainConfig, device: torch.device, name: str) -> BaseModel:
    slot = next((s for s in config.slots if s.base == name), None)
    return load_base(
        base_path(name),
        device=device,
        dtype=_frozen_dtype(config),
        config=slot and slot.config,
        tokenizer=slot and slot.tokenizer,
        prediction_type=slot and slot.prediction_type,
    )


def _check_alike(config: TrainConfig, clips: dict[str, str]) -> None:
    """Raise ValueError where processes differ in config, pools (by digest) or motion modules."""
    if distributed.world_size() == 1:  # a large file takes seconds to digest
        return
    names = dict.fromkeys([config.teacher, config.discriminator_motion_module])
    modules = [digest(motion_module_path(name)) for name in names]
    if not distributed.agree((config.fingerprint(), clips, modules)):
        raise ValueError(
            "the processes have different configs, clips or motion modules; copy the same ones to "
            "all machines."
        )


def _frozen_dtype(config: TrainConfig) -> torch.dtype:
    return getattr(torch, config.dtype)


def _checkpointing(
    loaded: Loaded, *trained: torch.nn.Module | None
) -> contextlib.AbstractContextManager:
    if not loaded.config.gradient_checkpointing:
        return contextlib.nullcontext()
    unets = [base.unet for base in loaded.bases.values()]
    return gradient_checkpointing.checkpointed(*unets, *(m for m in trained if m is not None))


def _check_doubt(config: TrainConfig, under_way: PhaseRun, iteration: int) -> None:
    if under_way.doubtless >= config.collapse_after:
        raise CollapsedError(
            f"the discriminator has told teacher from student without any doubt for "
            f"{under_way.doubtless} iterations up to {iteration}, so the student learns nothing"
        )


def _undoubted(moment: Moment, iteration: int, under_way: PhaseRun) -> Place:
    """Return the last place, iteration at most, at which D still had a doubt."""
    return Place(moment.stage, moment.phase, max(0, iteration - under_way.doubtless))


def _with_checkpoint(
    error: CollapsedError, folder: RunFolder, good: Place | None
) -> CollapsedError:
    last = folder.file(good) if good is not None else "none yet"
    return CollapsedError(
        f"{error}; lower the learning rates and start a new --out (last good checkpoint: {last})."
    )


def _shown(figures: dict[str, float]) -> dict[str, str]:
    names = ("loss_g", "loss_d", "d_gap")
    return {name: f"{figures[name]:.3g}" for name in names if name in figures}
