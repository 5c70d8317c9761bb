"""Reads what a training step needs in threads, and already the next step's."""

from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Generic, TypeVar

Item = TypeVar("Item")


class ReadAhead(Generic[Item]):
    """Calls `read(step, sample)` in threads, one step ahead; what comes out is unchanged."""

    def __init__(
        self, read: Callable[[int, int], Item], samples: Sequence[int], steps: int, threads: int
    ) -> None:
        self._read, self._samples, self._steps = read, samples, steps
        self._pool = ThreadPoolExecutor(threads)
        self._waiting: dict[int, list[Future]] = {}

    def __call__(self, step: int) -> list[Item]:
        """Return what was read for a step, one a sample."""
        for n in range(step, min(step + 2, self._steps)):
            if n not in self._waiting:
                self._waiting[n] = [self._pool.submit(self._read, n, i) for i in self._samples]
        return [item.result() for item in self._waiting.pop(step)]

    def close(self) -> None:
        self._pool.shutdown(cancel_futures=True)
