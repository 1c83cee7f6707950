"""Threads of fit_svm against threads of BLAS, on HAM10000's features of three networks.

python benchmarks/threads.py STORE.h5
"""

from __future__ import annotations

import argparse
import contextlib
import time
from typing import Any
from unittest import mock

from svm import GRIDS, cross_validation, draw

import deepfeat
from deepfeat.svm import threads

#: Threads, and whether BLAS is held to one in each.
WAYS = {
    "n_jobs=1, BLAS with all cores": (1, False),
    "n_jobs=1, BLAS with one": (1, True),
    "n_jobs=None": (None, True),
}


def seconds(features: Any, n_jobs: int | None, held: bool, **options: Any) -> float:
    """Time one fit."""
    start = time.perf_counter()
    with contextlib.nullcontext() if held else mock.patch.object(threads, "threadpool_limits"):
        deepfeat.fit_svm(features, test=None, n_jobs=n_jobs, ledger=False, **options)
    return time.perf_counter() - start


def main() -> None:
    """Time every way on both problems."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("store", help="feature store of HAM10000, three networks")
    store = parser.parse_args().store
    X, y, groups = draw(store, 2500)
    folds = cross_validation(y, groups)
    for way, (n_jobs, held) in WAYS.items():
        small = seconds((X, y, groups), n_jobs, held, cv=folds, param_grid=GRIDS["LinearSVC"])
        large = seconds(store, n_jobs, held, positive="MEL", param_grid={"C": [1e-5, 1e-4, 1e-3, 1e-2]})
        print(f"{way}: 2,500 x 2,048 {small:.0f} s, melanoma {large:.0f} s", flush=True)


if __name__ == "__main__":
    main()
