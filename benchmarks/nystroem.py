"""Where SVC with the rbf kernel stops being sensible: seconds and scores of it and of the Nyström approximation.

    python benchmarks/nystroem.py ham10000.h5 --table docs/results/nystroem.md

Melanoma against the rest on HAM10000's features of one network, lesions whole, for more and more lesions.
"""

from __future__ import annotations

import argparse
import platform
import time
from pathlib import Path

import joblib
import numpy as np
from sklearn.kernel_approximation import Nystroem
from sklearn.preprocessing import StandardScaler

import deepfeat

SIZES = (1250, 2500, 5000, 10_015)
COMPONENTS = 1000
OPTIONS = {"positive": "MEL", "test": None}


def timed(*arguments: object, **options: object) -> tuple[float, deepfeat.SVMResult]:
    """Fit, and tell how long it took."""
    start = time.perf_counter()
    result = deepfeat.fit_svm(*arguments, **OPTIONS, **options)
    return time.perf_counter() - start, result


def approximate(X: np.ndarray, gamma: float) -> np.ndarray:
    """Features whose products are nearly the rbf kernel of some rows; from features alone, no label is looked at."""
    scaled = StandardScaler().fit_transform(X)
    return Nystroem(gamma=gamma, n_components=COMPONENTS, random_state=0).fit_transform(scaled)


def main() -> None:
    """Measure, and write the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("store", help="feature store of HAM10000")
    parser.add_argument("--backbone", default="EfficientNetLite0")
    parser.add_argument("--table", type=Path)
    arguments = parser.parse_args()
    store = deepfeat.open_features(arguments.store)
    X, table = store.features(arguments.backbone), store.table
    order = np.random.default_rng(0).permutation(table["group"].unique())
    rank = table["group"].map({group: place for place, group in enumerate(order)}).to_numpy()
    by_lesion, gamma, lines = np.argsort(rank, kind="stable"), 0.3 / X.shape[1], []
    for n in SIZES:
        rows = by_lesion[:n]
        y, groups = table["label"].to_numpy()[rows], table["group"].to_numpy()[rows]
        exact, svc = timed((X[rows], y, groups), kernel="rbf", param_grid={"C": [1.0, 10.0], "gamma": [gamma]})
        start = time.perf_counter()
        nearly = approximate(X[rows], gamma)
        spent = time.perf_counter() - start
        approximated, linear = timed((nearly, y, groups), param_grid={"C": [1e-4, 1e-3, 1e-2, 1e-1]})
        scores = [
            f"{r.metrics['value']['balanced_accuracy']:.3f}, {r.metrics['value']['auroc']:.3f}" for r in (svc, linear)
        ]
        lines.append(f"| {n:,} | {exact:.1f} | {scores[0]} | {spent + approximated:.1f} | {scores[1]} |")
        print(lines[-1], flush=True)
    text = [
        "# SVC with the rbf kernel, and the Nyström approximation",
        "",
        f"Made by `python benchmarks/nystroem.py ham10000.h5 --table {arguments.table}`: {arguments.backbone}, "
        f"melanoma against the rest, folds grouped by lesion, gamma of 0.3 over the number of features. SVC: C of 1 "
        f"and 10. Nyström: {COMPONENTS:,} components, then LinearSVC with four values of C, both by fit_svm. "
        f"{joblib.cpu_count()} cores, {platform.machine()}, Python {platform.python_version()}.",
        "",
        "| images | SVC, s | balanced accuracy, AUROC | Nyström and LinearSVC, s | balanced accuracy, AUROC |",
        "| --- | --- | --- | --- | --- |",
        *lines,
        "",
    ]
    if arguments.table:
        arguments.table.write_text("\n".join(text), encoding="utf-8")


if __name__ == "__main__":
    main()
