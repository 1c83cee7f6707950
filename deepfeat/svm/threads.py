"""Threads that share memory, and each other's work."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import FIRST_COMPLETED, CancelledError, Future, ThreadPoolExecutor, wait
from typing import TypeVar

from threadpoolctl import threadpool_limits

T = TypeVar("T")

#: The team that a thread is of.
_MINE = threading.local()


def in_threads(tasks: Iterable[Callable[[], T]], n_threads: int, at_once: int | None = None) -> list[T]:
    """Call functions in threads, each with one BLAS thread, and return what they gave in order.

    More BLAS threads wait for one another in products as small as these (docs/selection.md).

    A function may call this too, with parts of what it does: it takes one after the other itself, and threads with
    nothing else to do take over what it has not begun.

    Parameters
    ----------
    tasks : iterable of callable
    n_threads : int
        Not looked at within such a function.
    at_once : int, optional
        Begin no more functions at a time than that; the other threads take over parts of them.
    """
    tasks = list(tasks)
    team: _Team | None = getattr(_MINE, "team", None)
    if team is not None:
        return team.share(tasks)
    with threadpool_limits(1, "blas"):
        if n_threads == 1:
            return [task() for task in tasks]
        return _Team(n_threads).call(tasks, at_once or n_threads)


class _Team:
    def __init__(self, n_threads: int) -> None:
        self._pool = ThreadPoolExecutor(n_threads, initializer=lambda: setattr(_MINE, "team", self))
        self._stopped = False

    def call(self, tasks: Sequence[Callable[[], T]], at_once: int) -> list[T]:
        """Call functions, in order, so many at a time."""
        futures: list[Future[T]] = []
        with self._pool:
            try:
                for task in tasks:
                    self._wait(futures, at_once - 1)
                    futures.append(self._pool.submit(self._run, task))
                self._wait(futures, 0)
            except BaseException:
                self._stopped = True
                raise
        return [future.result() for future in futures]

    def _wait(self, futures: Sequence[Future[T]], going: int) -> None:
        """Wait until no more than so many are going on, or one has failed."""
        while True:
            for future in futures:
                if future.done():
                    future.result()
            left = [future for future in futures if not future.done()]
            if len(left) <= going:
                return
            wait(left, return_when=FIRST_COMPLETED)

    def share(self, tasks: Sequence[Callable[[], T]]) -> list[T]:
        """Call functions from a thread of the team, but for those that another has begun."""
        futures = [self._pool.submit(self._run, task) for task in tasks]
        found = [self._run(task) if future.cancel() else future for task, future in zip(tasks, futures, strict=True)]
        return [each.result() if isinstance(each, Future) else each for each in found]

    def _run(self, task: Callable[[], T]) -> T:
        """Call a function, unless another has failed."""
        if self._stopped:
            raise CancelledError
        return task()
