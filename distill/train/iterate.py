"""The loop of a phase: it owns iterations, checkpoints, curves, contact sheets and signals."""

import contextlib
import logging
import time
from collections.abc import Mapping
from dataclasses import replace

import torch
from tqdm import tqdm

from ..engine import distributed, gradient_checkpointing, loop
from ..engine.peak_memory import peak_gib, reset_peak
from ..engine.read_ahead import ReadAhead
from . import batches, sheets, validation
from .batches import Batch
from .config import SATURATED_AFTER
from .curves import Curves
from .losses import Networks
from .phase import CollapsedError, Means, PhaseTrainer, batches_of
from .run_folder import Place
from .setup import Setup
from .validation import Record

logger = logging.getLogger(__name__)


def train_phase(setup: Setup, trainer: PhaseTrainer, place: Place) -> None:
    """Iterate from a place to the phase's end.

    Raises Stopped on SIGTERM or Ctrl-C, once a checkpoint is written, and CollapsedError where
    gradients are not finite again and again, or D was right about every clip for too long.
    """
    config, phase = setup.config, trainer.networks.phase
    if place.count >= phase.iterations:
        return
    report = Report(setup, trainer.networks, place)
    saved = time.monotonic()
    with (
        _recomputing(setup, trainer.networks),
        contextlib.closing(read_ahead(setup, place)) as batch,
        loop.stop_signal() as signals,
        report,
    ):
        if place.count == 0:
            validate(setup, trainer, place, report)
        while place.count < phase.iterations:
            reset_peak(setup.device)
            began = time.monotonic()
            samples = [
                batch(number) for number in batches_of(trainer.networks.stage, phase, place.count)
            ]
            try:
                figures = trainer.train_step(place.count, samples)
                check_saturation(config.collapse_after, trainer, place)
            except CollapsedError as error:
                raise _with_checkpoint(error, setup, _next(place), trainer) from error
            figures["seconds"] = time.monotonic() - began
            report.add(place, figures, trainer.by_base)
            place = _next(place)
            validate(setup, trainer, place, report)
            stop = distributed.any_rank(bool(signals))
            due = time.monotonic() - saved >= config.save_every
            if stop or due or place.count == phase.iterations:
                save_checkpoint(setup, trainer, place)
                saved = time.monotonic()
            if stop:
                distributed.barrier()  # torchrun kills those that write when the others have left
                raise loop.Stopped
            report.draw_sheets(place)
    distributed.barrier()


def validate(setup: Setup, trainer: PhaseTrainer, place: Place, report: "Report") -> None:
    """Measure the student where that is due, and at the phase's start and end.

    While the critic alone learns, nothing is.
    """
    validator, phase = setup.validator, trainer.networks.phase
    if validator is None:
        return
    updates = place.count - trainer.networks.stage.critic_of(phase).head_start
    if place.count not in (0, phase.iterations) and (updates <= 0 or updates % validator.every):
        return
    report.add_validation(place, validator.validate(trainer, place))


class Report:
    """What the first process shows of a phase: a bar, curves and contact sheets; others nothing."""

    def __init__(self, setup: Setup, networks: Networks, place: Place) -> None:
        self._setup, self._networks = setup, networks
        self._first = distributed.rank() == 0
        stage, phase = networks.stage, networks.phase
        label = stage.name
        if networks.stage.loss_of(phase) == "adversarial":
            label += ", D" if phase.conditional else ", D'"
        self._curves = Curves(setup.folder.root, place) if self._first else None
        self._record = _record_of(setup, place) if self._first else None
        self._bar = tqdm(
            total=phase.iterations,
            initial=place.count,
            desc=label,
            disable=None if self._first else True,
            mininterval=2,
        )

    def __enter__(self) -> "Report":
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.close()
        if self._curves is not None:
            self._curves.close()

    def add(self, place: Place, figures: Means, by_base: Means) -> None:
        """Write an iteration's figures, and the student's loss on each base model."""
        if self._curves is not None:
            figures = figures | {"peak_gib": peak_gib(self._setup.device)}
            self._curves.add(place, figures, by_base)
            shown = {
                n: f"{figures[n]:.3g}"
                for n in ("loss_g", "loss_d", "d_gap", "loss_fake")
                if n in figures
            }
            self._bar.set_postfix(shown, refresh=False)
        self._bar.update()

    def add_validation(self, place: Place, found: Mapping[str, validation.Figures]) -> None:
        """Write and show what a student reached on each base model of the validation."""
        if self._record is None or self._curves is None:
            return
        self._record.add(place, found)
        for base, figures in found.items():
            self._curves.add_scalar(f"{base}/moved", figures.moved)
            self._curves.add_scalar(f"{base}/frechet", figures.frechet)
            for step, value in enumerate(figures.guidance, 1):
                self._curves.add_scalar(f"{base}/guidance of step {step}", value)
            for step, value in enumerate(figures.landing, 1):
                self._curves.add_scalar(f"{base}/landing of step {step}", value)

    def draw_sheets(self, place: Place) -> None:
        """Draw and write a contact sheet of each base model where they are due.

        Every process draws those of its own base models; the first one writes them.
        """
        config = self._setup.config
        due = config.sheet_prompts and config.sheet_every and place.count % config.sheet_every == 0
        if not due:
            return
        name = self._networks.stage.name
        drawn = sheets.draw_sheets(config, self._networks)
        for base, picture in sheets.of_all_processes(drawn).items():
            if self._curves is not None:
                at = f"{name}-{place.phase}-{place.count:08d}-{sheets.short_name(base)}.png"
                sheets.write_sheet(self._setup.folder.sheets / at, picture)
                self._curves.picture(f"{base}/{name}", picture)


def _record_of(setup: Setup, place: Place) -> Record | None:
    if setup.validator is None:
        return None
    record = Record(setup.folder.root, place)
    record.begin(setup.config, setup.device)
    return record


def read_ahead(setup: Setup, place: Place) -> ReadAhead:
    """Return the batches of this process by their number in the phase, read in threads."""
    stage = setup.config.stages[place.stage]
    phase = stage.phases[place.phase]

    def read(number: int, index: int) -> Batch:
        slot, samples = setup.share[index]
        of_batch = replace(place, count=number)
        batch = batches.make_batch(setup.config, setup.pools, of_batch, slot, samples)
        return batch.to(setup.device)

    total = phase.iterations * stage.critic_of(phase).steps
    return ReadAhead(read, range(len(setup.share)), total, threads=2)


def save_checkpoint(setup: Setup, trainer: PhaseTrainer, place: Place) -> None:
    """Write where the run is, once for all processes."""
    if distributed.rank() == 0:
        last = _last_unsaturated(place, trainer)
        setup.folder.save(place, trainer.state_dict(), setup.config.keep, last)


def check_saturation(limit: int | None, trainer: PhaseTrainer, place: Place) -> None:
    """Warn, or from `limit` on raise CollapsedError, where D is right about every clip."""
    told = (
        "the discriminator was right about every clip in the last "
        f"{trainer.saturated_iterations} iterations up to {place.count}"
    )
    if limit is not None and trainer.saturated_iterations >= limit:
        raise CollapsedError(f"{told}, so the student learns nothing")
    if trainer.saturated_iterations == SATURATED_AFTER and distributed.rank() == 0:
        logger.warning("%s, so the student may learn little from it.", told)


def _next(place: Place) -> Place:
    return replace(place, count=place.count + 1)


def _last_unsaturated(place: Place, trainer: PhaseTrainer) -> Place:
    """Return the last place, this one at most, at which D was wrong about a clip."""
    return replace(place, count=max(0, place.count - trainer.saturated_iterations))


def _with_checkpoint(
    error: CollapsedError, setup: Setup, place: Place, trainer: PhaseTrainer
) -> CollapsedError:
    good = setup.folder.newest(_last_unsaturated(place, trainer))
    file = setup.folder.file(good) if good is not None else "none yet"
    return CollapsedError(
        f"{error}; lower the learning rates and start a new --out (last good checkpoint: {file})."
    )


def _recomputing(setup: Setup, networks: Networks) -> contextlib.AbstractContextManager:
    """Checkpoint activations where the config says so."""
    if not setup.config.gradient_checkpointing:
        return contextlib.nullcontext()
    trained: list[torch.nn.Module] = [networks.plain_student.motion_module]
    if networks.plain_discriminator is not None:
        trained.append(networks.plain_discriminator)
    if networks.plain_fake is not None:
        trained.append(networks.plain_fake.motion_module)
    return gradient_checkpointing.checkpointed(
        *(base.unet for base in setup.bases.values()), *trained
    )
