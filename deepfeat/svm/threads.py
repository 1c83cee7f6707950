"""Threads that share memory, and each other's work."""

from __future__ import annotations

import threading
from collections import deque
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
        Begin so many functions at a time: if there are more threads, the others take over parts of them; if there are
        fewer, functions take turns, see `give_way`.
    """
    tasks = list(tasks)
    team: _Team | None = getattr(_MINE, "team", None)
    if team is not None:
        return team.share(tasks)
    with threadpool_limits(1, "blas"):
        if n_threads == 1:
            return [task() for task in tasks]
        return _Team(n_threads, at_once or n_threads).call(tasks)


def give_way() -> None:
    """Let another function go on that has begun and waits for its turn.

    Five functions that give way now and then keep two threads busy to the end; one after the other, the fifth would
    leave a thread with nothing to do.

    Raises
    ------
    concurrent.futures.CancelledError
        If another function has failed.
    """
    team: _Team | None = getattr(_MINE, "team", None)
    if team is not None:
        team.give_way()


class _Team:
    def __init__(self, n_threads: int, at_once: int) -> None:
        self._at_once, self._turns, self._stopped = at_once, _Turns(n_threads), False
        most = max(n_threads, at_once)
        self._pool = ThreadPoolExecutor(most, initializer=lambda: setattr(_MINE, "team", self))

    def call(self, tasks: Sequence[Callable[[], T]]) -> list[T]:
        """Call functions, which begin in order."""
        futures: list[Future[T]] = []
        with self._pool:
            try:
                for task in tasks:
                    self._wait(futures, self._at_once - 1)
                    futures.append(self._pool.submit(self._run_in_turn, task))
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
        try:
            futures = [self._pool.submit(self._run_in_turn, task) for task in tasks]
        except RuntimeError:
            # The pool takes no more, since another function has failed.
            self._check()
            raise
        found = [self._run(task) if future.cancel() else future for task, future in zip(tasks, futures, strict=True)]
        elsewhere = [each for each in found if isinstance(each, Future)]
        if elsewhere:
            # What another has begun may wait for this turn.
            self._turns.give()
            wait(elsewhere)
            self._turns.take()
        return [each.result() if isinstance(each, Future) else each for each in found]

    def give_way(self) -> None:
        self._turns.pass_on()
        self._check()

    def _run_in_turn(self, task: Callable[[], T]) -> T:
        self._turns.take()
        try:
            return self._run(task)
        finally:
            self._turns.give()

    def _run(self, task: Callable[[], T]) -> T:
        """Call a function, unless another has failed."""
        self._check()
        return task()

    def _check(self) -> None:
        if self._stopped:
            raise CancelledError


class _Turns:
    """Permission for so many threads to go on; whoever asks first gets it first."""

    def __init__(self, number: int) -> None:
        self._free, self._lock = number, threading.Lock()
        self._waiting: deque[threading.Event] = deque()

    def take(self) -> None:
        with self._lock:
            if self._free:
                self._free -= 1
                return
            mine = threading.Event()
            self._waiting.append(mine)
        mine.wait()

    def give(self) -> None:
        with self._lock:
            if self._waiting:
                self._waiting.popleft().set()
            else:
                self._free += 1

    def pass_on(self) -> None:
        """Wait behind those that wait, if any does."""
        if self._waiting:
            self.give()
            self.take()
