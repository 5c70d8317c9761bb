"""A phase of a distillation: its networks and optimisers, and one training step.

All of it can be written to a checkpoint and read back; with the number of the next iteration it
determines everything that follows.
"""

import contextlib
import copy
import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ...motion_module.module import MotionModule
from ..engine import distributed
from ..engine.average import copy_average, start_average, update_average
from ..library_errors import one_sentence
from .batches import Batch
from .config import Phase, Stage
from .discriminator import Discriminator
from .distribution import distribution_of_batch, fake_of_batch
from .losses import (
    LossOfBatch,
    Networks,
    consistency_of_batch,
    discriminator_of_batch,
    generator_of_batch,
    mse_of_batch,
)

Means = dict[str, float]  # of an iteration, by name
STUDENT_LOSSES: dict[str, LossOfBatch] = {
    "mse": mse_of_batch,
    "consistency": consistency_of_batch,
    "adversarial": generator_of_batch,
    "distribution": distribution_of_batch,
}
# with how its figures are called
CRITIC_LOSSES: dict[str, tuple[LossOfBatch, str]] = {
    "adversarial": (discriminator_of_batch, "d"),
    "distribution": (fake_of_batch, "fake"),
}
_ALL_RIGHT = 1 - 1e-6  # a mean of ones, which rounding may leave below one
MOST_SKIPPED = 10  # updates in a row


class CollapsedError(ValueError):
    """Gradients are not finite again and again, or D was right about every clip for too long."""


class Best(NamedTuple):
    """The student that measured best in a phase, after so many iterations."""

    distance: float
    iteration: int
    weights: dict[str, Tensor]


class PhaseTrainer:
    """Trains the student of a phase, and its critic where it has one: a discriminator or a fake.

    average: of the student's weights, empty without ema; best: the student that measured best,
    where that is kept; by_base: the student's loss of the last iteration on each base model, empty
    where it was held still; saturated_iterations: for how many iterations in a row D was right
    about every clip, so that the student learned nothing; skipped: updates that were left out since
    a gradient was not finite; skipped_in_a_row: of student and critic, since the last made one.
    """

    def __init__(self, networks: Networks) -> None:
        stage, phase = networks.stage, networks.phase
        self.networks = networks
        self.optimizer = _adam([_Group(networks.plain_student.parameters())], stage, phase)
        self.critic_optimizer: torch.optim.Optimizer | None = None
        if networks.plain_critic is not None:
            self.critic_optimizer = _adam(
                _groups(networks.plain_critic, stage, phase), stage, phase
            )
        self._weights = dict(networks.plain_student.motion_module.named_parameters())
        self.average: dict[str, Tensor] = start_average(self._weights) if stage.ema else {}
        if stage.target == "average":
            networks.averaged = copy.deepcopy(networks.plain_student.motion_module)
            networks.averaged.requires_grad_(False)
            # the same storage, which every update of the average then reaches
            self.average = {k: w.detach() for k, w in networks.averaged.named_parameters()}
        self.best: Best | None = None
        self.by_base: Means = {}
        self.saturated_iterations = self.skipped = 0
        self.skipped_in_a_row = {"student": 0, "critic": 0}

    def train_step(self, iteration: int, batches: Sequence[Sequence[Batch]]) -> Means:
        """Update the critic once for each list of batches, and the student on the last of them.

        While the critic has its head start, it alone. Returns the figures of all processes
        together. An update whose gradient is not finite is left out, and so never reaches a weight;
        raises CollapsedError where that happens again and again.
        """
        networks, stage, phase = self.networks, self.networks.stage, self.networks.phase
        plan = stage.critic_of(phase)
        figures: Means = {}
        if networks.critic is not None and self.critic_optimizer is not None:
            loss, name = CRITIC_LOSSES[stage.loss_of(phase)]
            networks.critic.requires_grad_(True)
            for batch in batches:
                with networks.critic_learns():
                    figures |= self._backward(networks.critic, batch, loss)[0]
                figures[f"loss_{name}"] = figures.pop("loss")
                rate = plan.learning_rate * _warm_up(stage, iteration)
                figures[f"norm_{name}"] = self._optimize("critic", iteration, rate)
            networks.critic.requires_grad_(False)
        update = iteration - plan.head_start
        losses: list[float] = []
        if update >= 0:
            loss = STUDENT_LOSSES[stage.loss_of(phase)]
            of_student, losses = self._backward(networks.student, batches[-1], loss)
            figures |= of_student
            figures["loss_g"] = figures.pop("loss")
            rate = phase.learning_rate * _warm_up(stage, update)
            figures["norm_g"] = self._optimize("student", iteration, rate)
            if math.isfinite(figures["norm_g"]):
                update_average(self.average, self._weights, stage.ema, update)
        figures["skipped"] = self.skipped
        figures = self._averaged_over_processes(figures, batches[-1], losses)
        self._count_saturation(figures)
        return figures

    def remember(self, distance: float, iteration: int, module: MotionModule) -> None:
        """Keep a student that measured better than all before it."""
        if self.best is None or distance < self.best.distance:
            weights = {name: w.detach().clone() for name, w in module.named_parameters()}
            self.best = Best(distance, iteration, weights)

    def use_result(self) -> None:
        """Give the student what it has learned by one loss: its average, or its best weights."""
        copy_average(self.average if self.best is None else self.best.weights, self._weights)

    def state_dict(self) -> dict:
        """Return everything that a checkpoint must hold."""
        networks = self.networks
        state = {
            "student": networks.plain_student.motion_module.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "average": self.average,
            "best": self.best and self.best._asdict(),
            "saturated_iterations": self.saturated_iterations,
            "skipped": self.skipped,
            "skipped_in_a_row": dict(self.skipped_in_a_row),
            "critic": None,
            "critic_optimizer": None,
        }
        if networks.plain_critic is not None and self.critic_optimizer is not None:
            state["critic"] = networks.plain_critic.state_dict()
            state["critic_optimizer"] = self.critic_optimizer.state_dict()
        return state

    def load_state_dict(self, state: dict) -> None:
        """Go on from what `state_dict` returned; ValueError where that does not fit."""
        with one_sentence("the newest checkpoint of the run", "delete it, and train again"):
            self._load(state)

    def _load(self, state: dict) -> None:
        networks = self.networks
        networks.plain_student.motion_module.load_state_dict(state["student"])
        self.optimizer.load_state_dict(state["optimizer"])
        if networks.plain_critic is not None and self.critic_optimizer is not None:
            networks.plain_critic.load_state_dict(state["critic"])
            self.critic_optimizer.load_state_dict(state["critic_optimizer"])
        device = self._device
        copy_average(_on(device, state["average"]), self.average)
        if state["best"] is not None:
            best = Best(**state["best"])
            self.best = best._replace(weights=_on(device, best.weights))
        self.saturated_iterations = state["saturated_iterations"]
        self.skipped, self.skipped_in_a_row = state["skipped"], dict(state["skipped_in_a_row"])

    def _backward(
        self, module: nn.Module, batches: Sequence[Batch], loss: LossOfBatch
    ) -> tuple[Means, list[float]]:
        """Add up the gradients of the batches' mean loss; processes meet once, in the last batch.

        Returns the loss and its figures, this process's means, and the loss of each batch.
        """
        found = []
        for number, batch in enumerate(batches):
            last = number == len(batches) - 1
            with contextlib.nullcontext() if last else distributed.no_sync(module):
                with self.networks.autocast():
                    value, figures = loss(self.networks, batch)
                (value / len(batches)).backward()
            found.append(figures | {"loss": value.detach()})
        names = list(found[0])
        rows = torch.stack([torch.stack([f[name].float() for name in names]) for f in found])
        columns = list(zip(*rows.tolist(), strict=True))  # the processor waits for a GPU here
        means = {n: sum(v / len(found) for v in c) for n, c in zip(names, columns, strict=True)}
        return means, list(columns[names.index("loss")])

    def _optimize(self, who: str, iteration: int, rate: float) -> float:
        """Update the student or the critic at a learning rate, and return the gradient's norm.

        The norm is the same on all processes, and so is whether the update is left out.
        """
        optimizer = self.optimizer if who == "student" else self.critic_optimizer
        assert optimizer is not None, "a critic that learns has one"
        weights = [w for group in optimizer.param_groups for w in group["params"]]
        norm = nn.utils.clip_grad_norm_(weights, self.networks.stage.clip or math.inf)
        if torch.isfinite(norm):
            for group in optimizer.param_groups:
                group["lr"] = rate * group["scale"]
            optimizer.step()
            self.skipped_in_a_row[who] = 0
        else:
            self.skipped += 1
            self.skipped_in_a_row[who] += 1
        optimizer.zero_grad(set_to_none=True)
        if self.skipped_in_a_row[who] >= MOST_SKIPPED:
            raise CollapsedError(
                f"the {who}'s gradient is not finite in {MOST_SKIPPED} updates in a row up to "
                f"iteration {iteration}"
            )
        return norm.item()

    def _averaged_over_processes(
        self, figures: Means, batches: Sequence[Batch], losses: Sequence[float]
    ) -> Means:
        """Return the mean of every process's figures, and keep the losses of each base model.

        Norms are the same on all processes. A base model may be held by several of them.
        """
        names = self.networks.base_names
        sums, counts = [0.0] * len(names), [0.0] * len(names)
        for batch, loss in zip(batches, losses, strict=False):  # none: the student was held still
            index = self.networks.base_index[batch.slot]
            sums[index], counts[index] = sums[index] + loss, counts[index] + 1
        means = distributed.mean([*figures.values(), *sums, *counts], self._device)
        of_sums, of_counts = means[len(figures) : -len(names)], means[-len(names) :]
        by_name = zip(names, of_sums, of_counts, strict=True)
        self.by_base = {name: total / count for name, total, count in by_name if count}
        return dict(zip(figures, means, strict=False))

    def _count_saturation(self, figures: Means) -> None:
        if "loss_g" not in figures:  # D alone learns, and may well be right about every clip
            return
        right = min(figures.get("d_on_teacher", 0.0), figures.get("d_on_student", 0.0))
        self.saturated_iterations = self.saturated_iterations + 1 if right > _ALL_RIGHT else 0

    @property
    def _device(self) -> torch.device:
        return next(self.networks.plain_student.parameters()).device


def batches_of(stage: Stage, phase: Phase, iteration: int) -> range:
    """Return the numbers of the batches that an iteration consumes."""
    count = stage.critic_of(phase).steps
    return range(iteration * count, (iteration + 1) * count)


def _on(device: torch.device, weights: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: weight.to(device) for name, weight in weights.items()}


class _Group(NamedTuple):
    """Weights that share a learning rate, which is `scale` times the module's."""

    weights: Iterable[nn.Parameter]
    scale: float = 1.0


def _groups(critic: nn.Module, stage: Stage, phase: Phase) -> list[_Group]:
    """Return a critic's weights: of D, what is fresh may have a learning rate of its own."""
    if not isinstance(critic, Discriminator) or phase.fresh_learning_rate is None:
        return [_Group(critic.parameters())]
    fresh = {id(w) for w in critic.fresh_weights()}
    others = [w for w in critic.parameters() if id(w) not in fresh]
    scale = phase.fresh_learning_rate / stage.critic_of(phase).learning_rate
    return [_Group(others), _Group(critic.fresh_weights(), scale)]


def _adam(groups: Sequence[_Group], stage: Stage, phase: Phase) -> torch.optim.Optimizer:
    """Return an optimiser, whose learning rate each update sets."""
    return torch.optim.AdamW(
        [{"params": list(g.weights), "scale": g.scale} for g in groups],
        phase.learning_rate,
        betas=stage.adam_betas(phase),
        weight_decay=stage.weight_decay,
    )


def _warm_up(stage: Stage, update: int) -> float:
    """Return the share of the learning rate at an update, 0-based."""
    return min(1.0, (update + 1) / (stage.warmup + 1))
