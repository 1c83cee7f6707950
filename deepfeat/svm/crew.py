"""Workers of a Dask cluster that fit parts of an experiment."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import cached_property, partial
from typing import Any

import numpy as np
from joblib.parallel import get_active_backend

from deepfeat import __version__
from deepfeat.cluster import ask_worker, check_client, check_version, clear_failures, watch_workers
from deepfeat.svm.resources import Resources, take_products
from deepfeat.svm.samples import Samples

#: Part of a worker's memory in which products of blocks may be computed.
_MEMORY_SHARE = 0.5


def joblib_client() -> Any:
    """The client that ``joblib.parallel_config("dask")`` has set, or None."""
    return getattr(get_active_backend()[0], "client", None)


class Crew:
    """Workers that hold the samples of an experiment, which each of them gets once.

    Parameters
    ----------
    client : distributed.Client
    samples : Samples
    """

    def __init__(self, client: Any, samples: Samples) -> None:
        check_client(client)
        self.client, self._samples = client, samples

    @cached_property
    def _held(self) -> Any:
        # Before the samples are on their way: another version may not be able to read them.
        ask_worker(self.client, _check, __version__)
        return self.client.scatter(self._samples, broadcast=True)

    def call(self, function: Callable[..., Any], items: Iterable[tuple[Any, ...]]) -> list[Any]:
        """Call a function of the samples and each item on the workers, and return the results in order."""
        with self._clear_failures():
            given = __version__, function, self._held
            with watch_workers(self.client):
                futures = [self.client.submit(_call, *given, *item, pure=False) for item in items]
                return list(self.client.gather(futures))

    def score(
        self, names: Sequence[str], rows: np.ndarray, score: Callable[..., Any], cells: Iterable[tuple[Any, ...]]
    ) -> list[Any]:
        """Score candidates on folds of some blocks and rows.

        Parameters
        ----------
        names : sequence of str
            Of the blocks.
        rows : ndarray of int
        score : callable
            Of features, labels, training rows, test rows, candidates and `Resources`.
        cells : iterable of (train, test, candidates)
            Numbers within ``rows``.
        """
        return self.call(partial(_score, score, list(names), rows), cells)

    def _clear_failures(self) -> Any:
        cancelled = (
            "the workers that held the samples died, mostly for lack of memory, or the work was cancelled: see their "
            "logs, and give each worker more"
        )
        return clear_failures(self.client, "fold", "nothing was written, so fit again", cancelled)


# What follows runs on the workers


def _check(version: str) -> None:
    """Refuse work of a caller with another deepfeat."""
    from distributed import get_worker

    check_version(version, get_worker().address)


def _call(version: str, function: Callable[..., Any], samples: Samples, *item: Any) -> Any:
    """Call a function; each time on a worker that may have come late."""
    _check(version)
    return function(samples, *item)


def _score(
    score: Callable[..., Any],
    names: list[str],
    rows: np.ndarray,
    samples: Samples,
    train: np.ndarray,
    test: np.ndarray,
    candidates: Sequence[Any],
) -> Any:  # pragma: no cover - on workers
    chosen = samples if names == list(samples.blocks) else samples.select(names)
    use = Resources(take_products(_memory()), list(chosen.blocks.values()), 1)
    return score(chosen.X, samples.target, rows[train], rows[test], candidates, use)


def _memory() -> float | None:  # pragma: no cover - on workers
    """Bytes that this worker may use for what it computes, if it has a limit."""
    from distributed import get_worker

    limit = get_worker().memory_manager.memory_limit
    return _MEMORY_SHARE * limit if limit else None
