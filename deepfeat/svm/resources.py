"""What a fit may use of the machine: memory, threads, and products that were computed before."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TypeVar

from joblib import Parallel, delayed, effective_n_jobs
from sklearn.svm import SVC, LinearSVC
from threadpoolctl import threadpool_limits

from deepfeat.errors import UsageError
from deepfeat.svm.gram import Products

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
    n_jobs : int or None
        Threads, as in joblib.
    """

    products: Products
    widths: Sequence[int]
    n_jobs: int | None


_PRODUCTS = Products(0)


def take_products(max_memory: float | None) -> Products:
    """Return the products of this process, bounded by a part of the memory."""
    _PRODUCTS.limit = _KEPT_SHARE * (_half_of_memory() if max_memory is None else max_memory)
    return _PRODUCTS


def check_memory(svm: LinearSVC | SVC, n: int, d: int, itemsize: int, max_memory: float | None) -> None:
    """Refuse a fit whose matrices do not fit into memory, and say what would.

    Parameters
    ----------
    svm : LinearSVC or SVC
    n, d : int
        Rows and columns of the features.
    itemsize : int
        Bytes of one feature.
    max_memory : float or None
        Bytes; half of the machine's memory if None.

    Raises
    ------
    UsageError
        Naming both numbers of gigabytes, and the ways out.
    """
    bound = _half_of_memory() if max_memory is None else max_memory
    if not bound > 0:
        msg = f"max_memory is {max_memory!r}: use a number of bytes above 0"
        raise UsageError(msg)
    # Rows scaled, with the intercept, and turned; products of columns, their copy and a factor. Or squared distances
    # or products, the kernel in float64, and libsvm's cache.
    linear = (3 * n * d + 4 * min(n, d) ** 2) * itemsize
    kernel = n * n * (itemsize + 8) + n * d * itemsize
    needed = linear if isinstance(svm, LinearSVC) else kernel
    if needed <= bound:
        return
    ways = "a larger max_memory, fewer rows, or engine='sklearn', which is slow"
    if needed == kernel and linear <= bound:
        ways = f"kernel='linear', which needs {linear / 1e9:.1f} GB, {ways}"
    msg = f"{n:,} rows of {d:,} features need {needed / 1e9:.1f} GB and max_memory is {bound / 1e9:.1f} GB: use {ways}"
    raise UsageError(msg)


def in_threads(tasks: Iterable[Callable[[], T]], n_jobs: int | None) -> list[T]:
    """Call functions in threads that share memory, each with one BLAS thread; BLAS has all cores where there is one."""
    several = effective_n_jobs(n_jobs) > 1
    with threadpool_limits(1, "blas") if several else contextlib.nullcontext():
        return list(Parallel(n_jobs=n_jobs, require="sharedmem")(delayed(task)() for task in tasks))


def _half_of_memory() -> float:
    try:
        return 0.5 * os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (ValueError, OSError, AttributeError):
        return float("inf")
