"""One resumable optimisation loop for everything that is trained with a plain loss.

A step's loss is a pure function of the weights and of the step's number, so a run that is killed
and started again ends with the same weights, bit for bit on one machine and number of threads.
"""

import contextlib
import math
import signal
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from tqdm import tqdm

from ...motion_module.files import atomic_path
from ..library_errors import one_sentence
from . import distributed
from .average import copy_average, start_average, update_average

# a scalar, or several that add up to the loss and are made one after the other, to save memory
LossOfStep = Callable[[int], Tensor | Iterable[Tensor]]
CHECKPOINT = "checkpoint.pt"


class Stopped(KeyboardInterrupt):
    """SIGTERM or Ctrl-C came; the checkpoint is written and the same command goes on from it."""


@dataclass(frozen=True)
class LoopOptions:
    """How long and how fast to train; AdamW with a warm-up and a cosine decay of the rate.

    ema: decay of the averaged weights that are the result, 0 for none; clip: largest norm of the
    gradient; save_every: seconds between checkpoints.
    """

    iterations: int
    learning_rate: float
    warmup: int = 50
    ema: float = 0.999
    weight_decay: float = 0.01
    clip: float = 1.0
    save_every: float = 60.0

    def __post_init__(self) -> None:
        if self.iterations < 1:
            raise ValueError(f"iterations must be at least 1, not {self.iterations}.")
        if not 0 <= self.ema < 1:
            raise ValueError(f"ema must be from 0 to below 1, not {self.ema}.")

    def rate(self, step: int) -> float:
        """Return the learning rate of a step, 0-based."""
        decay = 0.5 * (1 + math.cos(math.pi * step / self.iterations))
        return self.learning_rate * min(1, (step + 1) / self.warmup) * decay


def train_weights(
    name: str,
    weights: Mapping[str, nn.Parameter],
    loss_of_step: LossOfStep,
    options: LoopOptions,
    folder: Path,
) -> list[float]:
    """Train `weights` in place, to their moving average in the end, and return recent losses.

    Under torchrun each process's loss is of its share, and gradients are averaged. The checkpoint
    lies in `folder`, and stays there when the training is done. Raises Stopped on SIGTERM or
    Ctrl-C, once a checkpoint is written, and ValueError where the loss is no longer finite.
    """
    optimizer = torch.optim.AdamW(
        weights.values(), betas=(0.9, 0.99), weight_decay=options.weight_decay
    )
    average = start_average(weights)
    file = folder / CHECKPOINT
    step, losses, seconds = _resume(file, weights, average, optimizer, options)
    began = saved = time.monotonic()
    bar = tqdm(
        total=options.iterations,
        initial=step,
        desc=name,
        unit="step",
        disable=None,
        position=0,
        mininterval=2,
    )
    with stop_signal() as stop_wanted, bar:
        while step < options.iterations:
            losses = [*losses[-99:], _optimise(weights, optimizer, loss_of_step, step, options)]
            update_average(average, weights, options.ema, step)
            step += 1
            bar.update()
            bar.set_postfix(loss=f"{sum(losses) / len(losses):.4f}", refresh=False)
            asked = step % 10 == 0 or distributed.world_size() == 1  # asking others takes time
            stop = asked and distributed.any_rank(bool(stop_wanted))
            if stop or step == options.iterations or time.monotonic() - saved > options.save_every:
                saved = time.monotonic()
                told = {"step": step, "losses": losses, "seconds": seconds + saved - began}
                _save(file, told, weights, average, optimizer)
            if stop and step < options.iterations:
                distributed.barrier()  # torchrun kills a process that writes once others have left
                raise Stopped
    copy_average(average, weights)
    return losses


def _optimise(
    weights: Mapping[str, nn.Parameter],
    optimizer: torch.optim.Optimizer,
    loss_of_step: LossOfStep,
    step: int,
    options: LoopOptions,
) -> float:
    optimizer.zero_grad(set_to_none=True)
    terms, loss = loss_of_step(step), 0.0
    for term in (terms,) if isinstance(terms, Tensor) else terms:
        term.backward()
        loss += term.item()
    distributed.average_gradients(weights.values())
    norm = nn.utils.clip_grad_norm_(weights.values(), options.clip)
    if not torch.isfinite(norm):
        raise ValueError(
            f"the loss is not finite at step {step}; lower the learning rate and start again from "
            "the last checkpoint."
        )
    for group in optimizer.param_groups:
        group["lr"] = options.rate(step)
    optimizer.step()
    return loss


def _resume(
    file: Path,
    weights: Mapping[str, nn.Parameter],
    average: dict[str, Tensor],
    optimizer: torch.optim.Optimizer,
    options: LoopOptions,
) -> tuple[int, list[float], float]:
    if not file.is_file():
        return 0, [], 0.0
    advice = "delete it, and training begins again from the first step"
    with one_sentence(str(file), advice):
        state = torch.load(file, map_location="cpu", weights_only=True)
        _check_content(state)
    if state["weights"].keys() != weights.keys() or state["step"] > options.iterations:
        raise ValueError(
            f"{file} belongs to another run; choose another folder, or delete the file."
        )
    with one_sentence(str(file), advice), torch.no_grad():
        for key, parameter in weights.items():
            for target, part in ((parameter, "weights"), (average[key], "average")):
                target.copy_(state[part][key].reshape(target.shape))
        optimizer.load_state_dict(state["optimizer"])
        return state["step"], list(map(float, state["losses"])), float(state.get("seconds", 0.0))


def _check_content(state: object) -> None:
    """Raise ValueError for what `_save` has not written."""
    kinds = {"step": int, "losses": list, "weights": dict, "average": dict, "optimizer": dict}
    content = state if isinstance(state, dict) else {}
    wrong = [key for key, kind in kinds.items() if not isinstance(content.get(key), kind)]
    if wrong:
        raise ValueError(f"it lacks {', '.join(wrong)} of a training")


def _save(
    file: Path,
    told: Mapping[str, object],
    weights: Mapping[str, nn.Parameter],
    average: dict[str, Tensor],
    optimizer: torch.optim.Optimizer,
) -> None:
    if distributed.rank() == 0:
        content = {
            **told,
            "average": average,
            "optimizer": optimizer.state_dict(),
            "weights": {k: p.detach() for k, p in weights.items()},
        }
        with atomic_path(file) as temporary:
            torch.save(content, temporary)


def training_minutes(folder: Path) -> float | None:
    """Return how long the training in a folder ran, over all its starts; None if it did not."""
    file = folder / CHECKPOINT
    if not file.is_file():
        return None
    with one_sentence(str(file), "train it again"):
        return torch.load(file, map_location="cpu", weights_only=True, mmap=True)["seconds"] / 60


@contextlib.contextmanager
def stop_signal() -> Iterator[list[int]]:
    """Collect SIGTERM and SIGINT, instead of dying of them, while the loop runs."""
    came: list[int] = []
    watched = (signal.SIGTERM, signal.SIGINT)
    try:
        before = {s: signal.signal(s, lambda number, _frame: came.append(number)) for s in watched}
    except ValueError:  # not the main thread: signals are not ours to take
        before = {}
    try:
        yield came
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
