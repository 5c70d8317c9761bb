"""The `train` command: every stage of a distillation, one after the other, resumable anywhere.

AnimateDiff-Lightning section 3: 128 -> 32 with MSE, then 32 -> 8 -> 4 -> 2 -> 1 adversarially, each
stage's student being the next one's teacher. Works in each of torchrun's processes.
"""

import contextlib
import copy
import functools
import logging
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

from ...motion_module import checkpoint
from ...motion_module.module import MotionModule
from ..engine import distributed
from ..miniature.names import base_path, motion_module_path
from ..models.base_model import quiet_libraries
from ..models.devices import computing_in
from . import checks, validation
from .config import Stage, TrainConfig
from .discriminator import Discriminator, Encoder
from .iterate import train_phase
from .losses import Networks
from .phase import PhaseTrainer
from .run_folder import Place, RunFolder
from .setup import Setup, load_setup
from .student import MovingBase, Student

logger = logging.getLogger(__name__)


def run_stages(config: TrainConfig, device: torch.device, resume: bool = True) -> None:
    """Train what is missing, stage by stage, and leave each student in the run's folder.

    Raises ConfigError before any training for all that cannot work, ValueError where the folder
    holds another run (or, not `resume`, any), CollapsedError where training went wrong and Stopped
    on SIGTERM or Ctrl-C, once a checkpoint is written.
    """
    quiet_libraries()
    distributed.start(device)
    try:
        setup = load_setup(config, device, resume)
        for number, stage in enumerate(config.stages):
            if is_finished(setup, number):
                continue
            with start_stage(setup, number) as training:
                for place in training.places():
                    trainer = training.start_phase(place)
                    if trainer is not None:
                        with computing_in(config.dtype_of(stage)):
                            train_phase(setup, trainer, place)
                        training.finish_phase(place, trainer)
            save_student(setup, stage, training.student)
            tell_stage(setup, number)
    finally:
        distributed.stop()


def is_finished(setup: Setup, number: int) -> bool:
    """Tell whether a stage's student is made; ValueError where it should be and is not."""
    stage, folder = setup.config.stages[number], setup.folder
    file, newest = folder.student(stage.name), folder.newest()
    if not file.is_file() and newest is not None and newest.stage > number:
        raise ValueError(
            f"{file} is missing, but later stages have begun; restore it, or choose another --out."
        )
    return file.is_file()


@dataclass
class StageTraining:
    """A stage while it is trained: its student within the base models, and the discriminator.

    bases: by slot; several slots may share a base model. discriminator: of the last phase that had
    one, whose backbone the next one keeps; fake: of the phase, where it has one; resumed: the
    newest checkpoint of the stage, until its phase goes on from it.
    """

    setup: Setup
    number: int
    student: MotionModule
    bases: dict[int, MovingBase]
    discriminator: Discriminator | None = None
    fake: Student | None = None
    resumed: dict | None = None

    @property
    def stage(self) -> Stage:
        return self.setup.config.stages[self.number]

    def places(self) -> list[Place]:
        """Return where each phase of the stage goes on: at its newest checkpoint, or at 0."""
        newest = self.setup.folder.newest()
        starts = [Place(self.number, phase, 0) for phase in range(len(self.stage.phases))]
        return [newest if newest and newest.in_phase == s.in_phase else s for s in starts]

    def start_phase(self, place: Place) -> PhaseTrainer | None:
        """Return a phase's trainer, at a place in it; None where a later phase has begun.

        That phase's checkpoint holds what this one left, but its D' is built on this one's D.
        """
        loss = self.stage.loss_of(self.stage.phases[place.phase])
        self.fake = self.make_fake() if loss == "distribution" else None
        if loss == "adversarial":
            self.discriminator = make_discriminator(self.setup, place, self.discriminator)
        newest = self.setup.folder.newest()
        if newest is not None and newest.in_phase > place.in_phase:
            return None
        trainer = PhaseTrainer(self.networks(place))
        if self.resumed is not None:
            trainer.load_state_dict(self.resumed)
            self.resumed = None  # as large as all that is trained
        return trainer

    def networks(self, place: Place) -> Networks:
        """Return everything that computes in a phase."""
        config, device = self.setup.config, self.setup.device
        phase = self.stage.phases[place.phase]
        file = checks.teacher_file(config, self.number, self.stage.teacher_steps_of(phase))
        teacher, undistilled = self._frozen(file), motion_module_path(config.teacher)
        real = None
        if self.fake is not None:
            real = teacher if file == undistilled else self._frozen(undistilled)
        student, discriminator = Student(self.student, self.bases), self.discriminator
        return Networks(
            stage=self.stage,
            phase=phase,
            bases=self.bases,
            teacher=teacher,
            real=real,
            plain_student=student,
            student=distributed.wrap(student, device),
            plain_discriminator=discriminator,
            discriminator=discriminator and distributed.wrap(discriminator, device),
            plain_fake=self.fake,
            fake=self.fake and distributed.wrap(self.fake, device),
            text_base=self.setup.discriminator_base,
            base_index={slot: config.base_index(slot) for slot in self.bases},
            base_names=config.bases,
            relativistic=config.discriminator.pairing == "relativistic",
            autocast=functools.partial(
                torch.autocast,
                device.type,
                torch.bfloat16,
                enabled=config.dtype_of(self.stage) == "bfloat16",
            ),
        )

    def make_fake(self) -> Student:
        """Return a fresh fake, trainable: the student as it is now, or the undistilled teacher."""
        module = copy.deepcopy(self.student)
        if self.stage.fake_start == "teacher":
            teacher = checkpoint.load(motion_module_path(self.setup.config.teacher))
            module.load_state_dict(teacher.build(dtype=torch.float32).state_dict())
        return Student(module.requires_grad_(True), self.bases)

    def _frozen(self, file: Path) -> MotionModule:
        dtype = getattr(torch, self.setup.config.frozen_dtype)
        module = checkpoint.load(file).build(dtype=dtype)
        return module.to(self.setup.device)

    def finish_phase(self, place: Place, trainer: PhaseTrainer) -> None:
        """Settle the student where the next phase has another loss, and at the stage's end."""
        phase, *following = self.stage.phases[place.phase : place.phase + 2]
        if all(self.stage.loss_of(f) != self.stage.loss_of(phase) for f in following):
            if trainer.best is not None and distributed.rank() == 0:
                best = trainer.best
                print(
                    f"{self.stage.name}: kept the student of iteration {best.iteration}, which "
                    f"measured best (distance {best.distance:.4g})."
                )
            trainer.use_result()


@contextlib.contextmanager
def start_stage(setup: Setup, number: int) -> Iterator[StageTraining]:
    """Begin a stage at `start` or its teacher's weights, and leave the base models as they were."""
    stage = setup.config.stages[number]
    file = checks.teacher_file(setup.config, number, stage.teacher_steps)
    resumed = load_newest(setup.folder, number)
    if stage.start is not None:
        file = motion_module_path(str(stage.start))
    student = checkpoint.load(file).build(dtype=torch.float32).to(setup.device)
    student.requires_grad_(True)
    if setup.validator is not None:
        setup.validator.begin(student)
    by_unet = {id(b.unet): MovingBase(b, student) for b in setup.bases.values()}
    bases = {slot: by_unet[id(base.unet)] for slot, base in setup.bases.items()}
    try:
        yield StageTraining(setup, number, student, bases, resumed=resumed)
    finally:
        for base in by_unet.values():
            base.close()


def load_newest(folder: RunFolder, number: int) -> dict | None:
    """Return what the newest checkpoint of a stage holds, None where there is none.

    A damaged one is set aside with a warning, and the one before is taken. Raises ValueError where
    no other checkpoint of the run is left.
    """
    while (newest := folder.newest()) is not None and newest.stage == number:
        content, problem = None, None
        try:
            content = folder.load(newest)
        except ValueError as error:
            problem = error
        if not distributed.any_rank(problem is not None):
            return content
        if len(folder.places()) == 1:
            raise problem or ValueError(f"another process could not read {folder.file(newest)}.")
        distributed.barrier()  # nobody reads any longer
        if distributed.rank() == 0:
            aside = folder.set_aside(newest)
            logger.warning(
                "%s could not be read and is now %s; training goes on from the checkpoint before.",
                folder.file(newest),
                aside.name,
            )
        distributed.barrier()
    return None


def make_discriminator(setup: Setup, place: Place, previous: Discriminator | None) -> Discriminator:
    """Return a stage's fresh D, or the D' that keeps D's backbone under a new head."""
    config, table = setup.config, setup.config.discriminator
    phase = config.stages[place.stage].phases[place.phase]
    generator = torch.Generator().manual_seed(
        1_000_003 * config.seed + 1009 * place.stage + place.phase
    )
    discriminator = Discriminator(
        previous.encoder if previous is not None else _fresh_encoder(setup, generator),
        conditional=phase.conditional,
        head_channels=table.head_channels,
        head_blocks=table.head_blocks,
        generator=generator,
    )
    return discriminator.requires_grad_(True)  # the last update of the student froze D's backbone


def save_student(setup: Setup, stage: Stage, student: MotionModule) -> None:
    """Write a finished student, once for all processes."""
    if distributed.rank() == 0:
        file = setup.folder.save_student(stage.name, student, metadata(setup.config, stage))
        print(f"wrote {file} ({stage.teacher_steps} -> {stage.student_steps} steps, {stage.loss}).")
    distributed.barrier()


def tell_stage(setup: Setup, number: int) -> None:
    """Print what a stage did on the base models of the validation, if there are any."""
    if distributed.rank() == 0 and setup.validator is not None:
        for sentence in validation.describe(setup.folder.root, setup.config, number):
            print(f"{setup.config.stages[number].name}: {sentence}")


def metadata(config: TrainConfig, stage: Stage) -> dict[str, object]:
    """Return what a student's file records of itself; no path, and no name that holds one."""
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


def _fresh_encoder(setup: Setup, generator: torch.Generator) -> Encoder:
    config = setup.config
    module = checkpoint.load(motion_module_path(config.discriminator_motion_module))
    return Encoder(
        setup.discriminator_base.unet,
        module.build(dtype=torch.float32),
        len(config.bases),
        generator,
    )
