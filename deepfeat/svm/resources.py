"""What a fit may use of the machine: memory, threads, and products that were computed before."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeVar

from joblib import Parallel, delayed, effective_n_jobs
from threadpoolctl import threadpool_limits

from deepfeat.errors import UsageError
from deepfeat.svm.gram import Products
from deepfeat.svm.systems import remembered

T = TypeVar("T")

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
    elsewhere : callable, optional
        Calls a function of features, labels, training rows, test rows, candidates and resources on the workers of a
        cluster, for each of some (train, test, candidates), and returns what they gave.
    """

    products: Products
    widths: Sequence[int]
    n_jobs: int
    elsewhere: Callable[[Callable[..., Any], Iterable[tuple[Any, ...]]], list[Any]] | None = None


_PRODUCTS = Products(0)


def take_products(max_memory: float | None) -> Products:
    """Return the products of this process, bounded by a part of the memory."""
    _PRODUCTS.limit = _KEPT_SHARE * (_half_of_memory() if max_memory is None else max_memory)
    return _PRODUCTS


class Needs(NamedTuple):
    """Bytes that a fit takes: once, and again for each thread."""

    shared: float
    each: float

    def of(self, n_threads: int) -> float:
        """Bytes that so many threads take."""
        return self.shared + n_threads * self.each


class Size(NamedTuple):
    """What the memory of a fit depends on.

    Attributes
    ----------
    n, d : int
        Rows and columns of the features.
    itemsize : int
        Bytes of one feature.
    n_classes : int
        Threads take a fold each where there are two, and else a class each.
    """

    n: int
    d: int
    itemsize: int
    n_classes: int

    def linear(self) -> Needs:
        """Bytes for LinearSVC: rows scaled, with the intercept, and turned; products of columns, copies, factors.

        And a copy of the rows for the passes that are shared, with products of columns in both precisions and factors,
        and products of rows.
        """
        rows, square = self.n * self.d * self.itemsize, min(self.n, self.d) ** 2 * self.itemsize
        shared = rows + 6 * square + remembered(self.n, self.d) ** 2 * self.itemsize
        if self.n_classes == 2:
            return Needs(shared, 3 * rows + 4 * square)
        return Needs(shared + 3 * rows + square, 3 * square)

    def kernel(self) -> Needs:
        """Bytes for SVC: squared distances or products, the kernel in float64, and the features."""
        needed = self.n**2 * (self.itemsize + 8) + self.n * self.d * self.itemsize
        return Needs(0, needed) if self.n_classes == 2 else Needs(needed, 0)

    def streamed(self, n_folds: int) -> Needs:
        """Bytes for LinearSVC in blocks of rows: decision values and weights twice, products of columns, factors."""
        problems, square = n_folds * (1 if self.n_classes == 2 else self.n_classes), (self.d + 1) ** 2
        return Needs(16 * self.n * problems + 32 * square, 4 * square)


def fits_memory(needs: Needs, max_memory: float | None) -> bool:
    """Whether there is memory for one thread."""
    return needs.of(1) <= _bound(max_memory)


def count_threads(
    n_jobs: int | None, needs: Needs, n_tasks: int, max_memory: float | None, instead: Mapping[str, Needs]
) -> int:
    """Threads that a fit has, or a refusal if its matrices do not fit into memory.

    Parameters
    ----------
    n_jobs : int or None
        Taken at its word where it is above 0, as joblib takes it. Else as many as there are cores and memory for, or
        as many as ``joblib.parallel_config`` says.
    needs : Needs
    n_tasks : int
        More threads than that are of no use.
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
    told = effective_n_jobs(n_jobs)
    threads: int = min(n_tasks, effective_n_jobs(-1) if n_jobs is None and told == 1 else told)
    if n_jobs is None or n_jobs < 0:
        threads = next((fewer for fewer in range(threads, 1, -1) if needs.of(fewer) <= bound), 1)
    if needs.of(threads) <= bound:
        return threads
    ways = ["a larger max_memory", "fewer rows", "engine='sklearn', which is slow"]
    for argument, other in instead.items():
        if other.of(1) <= bound:
            ways.insert(0, f"{argument}, which needs {other.of(1) / 1e9:.1f} GB")
    if needs.of(1) <= bound:
        ways.insert(0, "a smaller n_jobs")
    msg = (
        f"the engine needs {needs.of(threads) / 1e9:.1f} GB in {threads} thread(s), and max_memory is "
        f"{bound / 1e9:.1f} GB: use {', '.join(ways[:-1])} or {ways[-1]}"
    )
    raise UsageError(msg)


def in_threads(tasks: Iterable[Callable[[], T]], n_jobs: int | None) -> list[T]:
    """Call functions in threads that share memory, each with one BLAS thread.

    More BLAS threads wait for one another in products as small as these (docs/selection.md).
    """
    with threadpool_limits(1, "blas"):
        return list(Parallel(n_jobs=n_jobs, require="sharedmem")(delayed(task)() for task in tasks))


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
