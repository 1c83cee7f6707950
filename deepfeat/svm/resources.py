"""What a fit may use of the machine: memory, threads, and products that were computed before."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from joblib import effective_n_jobs

from deepfeat.errors import UsageError
from deepfeat.svm.gram import Products
from deepfeat.svm.systems import remembered

#: Part of the memory that products kept from one fit to the next may take.
_KEPT_SHARE = 0.25


@dataclass(frozen=True)
class Resources:
    """What a fit may use.

    Attributes
    ----------
    products : Products
    widths : sequence of int
        Columns of each feature block.
    n_jobs : int
        Threads.
    n_folds : int
        Folds to work on beside one another, where there is memory for more than one.
    elsewhere : callable, optional
        Calls a function of features, labels, training rows, test rows, candidates and resources on the workers of a
        cluster, for each of some (train, test, candidates), and returns what they gave.
    """

    products: Products
    widths: Sequence[int]
    n_jobs: int
    n_folds: int = 1
    elsewhere: Callable[[Callable[..., Any], Iterable[tuple[Any, ...]]], list[Any]] | None = None


_PRODUCTS = Products(0)


def take_products(max_memory: float | None) -> Products:
    """Return the products of this process, bounded by a part of the memory."""
    _PRODUCTS.limit = _KEPT_SHARE * (_half_of_memory() if max_memory is None else max_memory)
    return _PRODUCTS


class Needs(NamedTuple):
    """Bytes that a fit takes: once, again for each fold that is worked on, and again for each thread."""

    shared: float
    fold: float
    thread: float

    def of(self, n_threads: int, n_folds: int = 1) -> float:
        """Bytes for so many folds beside one another, in so many threads."""
        return self.shared + n_folds * self.fold + n_threads * self.thread


class Size(NamedTuple):
    """What the memory of a fit depends on.

    Attributes
    ----------
    n, d : int
        Rows and columns of the features.
    itemsize : int
        Bytes of one feature.
    """

    n: int
    d: int
    itemsize: int

    def linear(self) -> Needs:
        """Bytes for LinearSVC: rows scaled, with the intercept, and turned; products of columns, copies, factors.

        And a copy of the rows for the passes that are shared, with products of columns in both precisions and factors,
        and products of rows.
        """
        rows, square = self.n * self.d * self.itemsize, min(self.n, self.d) ** 2 * self.itemsize
        shared = rows + 6 * square + remembered(self.n, self.d) ** 2 * self.itemsize
        return Needs(shared, 3 * rows + square, 3 * square)

    def kernel(self) -> Needs:
        """Bytes for SVC: squared distances or products, the kernel in float64, and the features."""
        return Needs(0, self.n**2 * (self.itemsize + 8) + self.n * self.d * self.itemsize, 0)

    def streamed(self, n_problems: int) -> Needs:
        """Bytes for LinearSVC in blocks of rows: decision values and weights twice, products of columns, factors."""
        square = (self.d + 1) ** 2
        return Needs(16 * self.n * n_problems + 32 * square, 0, 4 * square)


def fits_memory(needs: Needs, max_memory: float | None) -> bool:
    """Whether there is memory for one thread."""
    return needs.of(1) <= _bound(max_memory)


class Threads(NamedTuple):
    """Threads that a fit has, and folds that it works on beside one another.

    With more threads than folds, threads help one another; with more folds than threads, folds take turns.
    """

    number: int
    n_folds: int


def count_threads(
    n_jobs: int | None, needs: Needs, n_folds: int, n_parts: int, max_memory: float | None, instead: Mapping[str, Needs]
) -> Threads:
    """Threads that a fit has, or a refusal if its matrices do not fit into memory.

    Parameters
    ----------
    n_jobs : int or None
        Taken at its word where it is above 0, as joblib takes it. Else as many as there are cores and memory for, or
        as many as ``joblib.parallel_config`` says.
    needs : Needs
    n_folds, n_parts : int
        Folds, and parts of each that threads can share; more threads than parts of all folds are of no use.
    max_memory : float or None
        Bytes; half of the machine's memory if None.
    instead : mapping of str to Needs
        Other arguments, of which a refusal names those that there is memory for.

    Raises
    ------
    UsageError
        Naming both numbers of gigabytes, and the ways out.
    """
    bound = _bound(max_memory)
    if n_jobs == 0:
        raise UsageError("n_jobs is 0: use a number of threads, or -1 for one per core")

    def needed(threads: int) -> float:
        return needs.of(threads, math.ceil(threads / n_parts))

    told = effective_n_jobs(n_jobs)
    threads: int = min(n_folds * n_parts, effective_n_jobs(-1) if n_jobs is None and told == 1 else told)
    if n_jobs is None or n_jobs < 0:
        threads = next((fewer for fewer in range(threads, 1, -1) if needed(fewer) <= bound), 1)
    if needed(threads) <= bound:
        # Folds that have parts need not take turns.
        most = n_folds if n_parts == 1 < threads else min(n_folds, threads)
        beside = next(n for n in range(most, 0, -1) if n == 1 or needs.of(max(threads, n), n) <= bound)
        return Threads(threads, beside)
    ways = ["a larger max_memory", "fewer rows", "engine='sklearn', which is slow"]
    for argument, other in instead.items():
        if other.of(1) <= bound:
            ways.insert(0, f"{argument}, which needs {other.of(1) / 1e9:.1f} GB")
    if needs.of(1) <= bound:
        ways.insert(0, "a smaller n_jobs")
    msg = (
        f"the engine needs {needed(threads) / 1e9:.1f} GB in {threads} thread(s), and max_memory is "
        f"{bound / 1e9:.1f} GB: use {', '.join(ways[:-1])} or {ways[-1]}"
    )
    raise UsageError(msg)


def _bound(max_memory: float | None) -> float:
    bound = _half_of_memory() if max_memory is None else max_memory
    if not bound > 0:
        msg = f"max_memory is {max_memory!r}: use a number of bytes above 0"
        raise UsageError(msg)
    return bound


def _half_of_memory() -> float:
    try:
        return 0.5 * os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (ValueError, OSError, AttributeError):  # pragma: no cover - not on Linux
        return float("inf")
