"""A phase of a distillation under way: its networks and optimisers, and one iteration of it.

All of it can be written to a checkpoint and read back; with the number of the next iteration it
determines everything that follows.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ...motion_module.module import MotionModule
from ..engine import distributed
from . import updates
from .batches import Batch
from .config import Phase, Stage
from .updates import Networks


class CollapsedError(ValueError):
    """A loss is no longer finite, or D tells teacher from student without any doubt for long."""


@dataclass
class PhaseRun:
    """Optimisers, averaged weights (empty without ema), and for how long D had no doubt."""

    networks: Networks
    optimizer: torch.optim.Optimizer
    judge_optimizer: torch.optim.Optimizer | None
    average: dict[str, Tensor]
    doubtless: int = 0

    @classmethod
    def start(cls, networks: Networks) -> "PhaseRun":
        """Begin a phase: fresh optimisers, the average at the student as it is."""
        stage, phase = networks.stage, networks.phase
        student = networks.plain_student.motion_module
        judge = None
        if networks.judge is not None:
            judge = _adam(networks.plain_judge, phase.rate_of_discriminator, stage, phase)
        average = {k: p.detach().clone() for k, p in student.named_parameters()}
        return cls(
            networks,
            _adam(student, phase.learning_rate, stage, phase),
            judge,
            average if stage.ema else {},
        )

    def state(self) -> dict:
        """Return everything that a checkpoint must hold."""
        networks = self.networks
        judged = networks.judge is not None
        return {
            "student": networks.plain_student.motion_module.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "judge": networks.plain_judge.state_dict() if judged else None,
            "judge_optimizer": self.judge_optimizer.state_dict() if judged else None,
            "average": self.average,
            "doubtless": self.doubtless,
        }

    def load(self, state: dict) -> None:
        """Go on from what `state` returned."""
        self.networks.plain_student.motion_module.load_state_dict(state["student"])
        self.optimizer.load_state_dict(state["optimizer"])
        if self.judge_optimizer is not None:
            self.networks.plain_judge.load_state_dict(state["judge"])
            self.judge_optimizer.load_state_dict(state["judge_optimizer"])
        device = next(self.networks.plain_student.parameters()).device
        self.average = {name: average.to(device) for name, average in state["average"].items()}
        self.doubtless = state["doubtless"]

    def iterate(self, iteration: int, batches: Sequence[Sequence[Batch]]) -> updates.Figures:
        """Update D once for each list of batches, and the student on the last of them.

        While D has its head start, D alone. Returns the figures of all processes together. Raises
        CollapsedError before a loss that is not finite can reach any weight.
        """
        networks, figures = self.networks, {}
        if networks.judge is not None:
            networks.judge.requires_grad_(True)
            for batch in batches:
                figures |= self._update_judge(iteration, batch)
            networks.judge.requires_grad_(False)
        if iteration >= networks.phase.discriminator_head_start:
            figures |= self._update_student(iteration, batches[-1])
        figures = self._shared(figures)
        self._watch(figures)
        return figures

    def result(self) -> MotionModule:
        """Return what the student has learned by one loss: the average where there is one."""
        student = self.networks.plain_student.motion_module
        with torch.no_grad():
            for name, parameter in student.named_parameters():
                parameter.copy_(self.average.get(name, parameter))
        return student

    def _update_judge(self, iteration: int, batch: Sequence[Batch]) -> updates.Figures:
        networks = self.networks
        found = updates.accumulate(networks, networks.judge, batch, updates.discriminator_loss)
        rate = networks.phase.rate_of_discriminator
        norm = self._step(self.judge_optimizer, networks.judge, iteration, rate)
        found["loss_d"] = found.pop("loss")
        return found | {"norm_d": norm}

    def _update_student(self, iteration: int, batch: Sequence[Batch]) -> updates.Figures:
        networks = self.networks
        loss = {
            "mse": updates.mse_loss,
            "consistency": updates.consistency_loss,
            "adversarial": updates.generator_loss,
        }[networks.stage.loss_of(networks.phase)]
        found = updates.accumulate(networks, networks.student, batch, loss)
        start, rate = networks.phase.discriminator_head_start, networks.phase.learning_rate
        norm = self._step(self.optimizer, networks.student, iteration, rate, start)
        self._follow(iteration - start)
        return {"loss_g": found["loss"], "norm_g": norm}

    def _step(
        self,
        optimizer: torch.optim.Optimizer,
        module: nn.Module,
        iteration: int,
        rate: float,
        start: int = 0,
    ) -> float:
        stage = self.networks.stage
        norm = nn.utils.clip_grad_norm_(module.parameters(), stage.clip or math.inf)
        if not torch.isfinite(norm):
            raise CollapsedError(f"the loss is not finite at iteration {iteration}")
        for group in optimizer.param_groups:
            group["lr"] = rate * min(1.0, (iteration - start + 1) / (stage.warmup + 1))
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return norm.item()

    @torch.no_grad()
    def _follow(self, update: int) -> None:
        if self.average:
            decay = min(self.networks.stage.ema, (update + 1) / (update + 10))
            student = dict(self.networks.plain_student.motion_module.named_parameters())
            torch._foreach_lerp_(
                list(self.average.values()), [student[k] for k in self.average], 1 - decay
            )

    def _shared(self, figures: updates.Figures) -> updates.Figures:
        """Return the mean of every process's figures; norms are the same on all."""
        device = next(self.networks.student.parameters()).device
        return dict(zip(figures, distributed.mean(figures.values(), device), strict=True))

    def _watch(self, figures: updates.Figures) -> None:
        if "loss_g" not in figures:  # D alone learns, and may well be sure of the student
            return
        right = min(figures.get("d_on_teacher", 0.0), figures.get("d_on_student", 0.0))
        sure = right > 1 - 1e-6  # a mean of ones, which rounding may leave below one
        self.doubtless = self.doubtless + 1 if sure else 0


def _adam(module: nn.Module, rate: float, stage: Stage, phase: Phase) -> torch.optim.Optimizer:
    return torch.optim.AdamW(
        module.parameters(), rate, betas=stage.adam_betas(phase), weight_decay=stage.weight_decay
    )


def batches_of(phase: Phase, iteration: int) -> range:
    """Return the numbers of the batches that an iteration consumes."""
    first = iteration * phase.discriminator_steps
    return range(first, first + phase.discriminator_steps)
