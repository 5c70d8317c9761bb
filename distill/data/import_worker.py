"""The decoding processes of `data import`; they need no torch, and so start at once."""

import multiprocessing
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ...video.reader import ClipShape, read_clip
from .video_folder import NO_CAPTION

KILLED = "its decoder crashed, or took too much memory"


@dataclass(frozen=True)
class Task:
    """A video to read: everything that a worker needs."""

    file: Path
    caption: str
    shape: ClipShape
    where: float
    name: str  # in warnings


@dataclass(frozen=True)
class Result:
    """A video's clip, uint8 (frames, h, w, 3), or why there is none; and what was changed in it."""

    clip: np.ndarray | str
    warnings: tuple[str, ...] = ()


def read_task(task: Task) -> Result:
    """Read a video; runs in a worker."""
    if not task.caption:
        return Result(NO_CAPTION)
    warnings: list[str] = []
    try:
        clip = read_clip(task.file, task.shape, task.where, warnings.append, task.name)
    except Exception as error:  # whatever a decoder meets in this file, the others are read
        return Result(str(error) or type(error).__name__)
    return Result(clip, tuple(warnings))


class Readers:
    """Processes that read videos; one that a video kills is replaced, and the video told as bad."""

    def __init__(self, count: int) -> None:
        self._count = count
        self._pool = _processes(count)

    def in_order(self, tasks: Sequence[Task]) -> Iterator[Result]:
        """Yield the result of `read_task` for each task; at most two clips a process are held."""
        waiting: deque[tuple[Task, Future]] = deque()
        for task in tasks:
            waiting.append((task, self._submit(task)))
            if len(waiting) >= 2 * self._count:
                yield self._result(*waiting.popleft())
        while waiting:
            yield self._result(*waiting.popleft())

    def close(self) -> None:
        """End the processes."""
        self._pool.shutdown(cancel_futures=True)

    def _submit(self, task: Task) -> Future:
        try:
            return self._pool.submit(read_task, task)
        except BrokenProcessPool:
            self.close()
            self._pool = _processes(self._count)
            return self._pool.submit(read_task, task)

    def _result(self, task: Task, future: Future) -> Result:
        try:
            return future.result()
        except BrokenProcessPool:  # by this video, or by another that was read beside it
            with _processes(1) as alone:
                try:
                    return alone.submit(read_task, task).result()
                except BrokenProcessPool:
                    return Result(KILLED)


def _processes(count: int) -> ProcessPoolExecutor:
    # a fork of a process with a GPU may hang
    return ProcessPoolExecutor(count, mp_context=multiprocessing.get_context("spawn"))
