"""Do the intervals cover, and is chance called chance? Simulated data on which no classifier can be better than 0.5.

    python benchmarks/coverage.py --table docs/results/coverage.md

Each repeat draws lesions with random features and a random class; each lesion has several images, which are the
lesion's features with a little noise. Four protocols are scored on the same data: images split as if each were a
lesion of its own; lesions kept whole; the same with the nested estimate; and a third of the lesions held out as a test.
An interval covers if 0.5 is in it.
"""

from __future__ import annotations

import argparse
import platform
import time
from pathlib import Path

import numpy as np
import pandas as pd
from joblib import Parallel, delayed

import deepfeat

GRID = {"C": [1e-4, 1e-3, 1e-2, 1e-1, 1.0]}
METRICS = ("balanced_accuracy", "auroc_macro")
BEST = "best score of the grid"

#: Lesions and features.
SIZES = ((100, 5), (100, 40), (300, 40))


def draw(seed: int, n_lesions: int, dim: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Features, classes and lesions of images: one to five of each lesion."""
    rng = np.random.default_rng(seed)
    lesion = np.repeat(np.arange(n_lesions), rng.integers(1, 6, n_lesions))
    label = rng.permutation(np.arange(n_lesions) % 2)[lesion]
    X = rng.normal(size=(n_lesions, dim))[lesion] + 0.3 * rng.normal(size=(len(lesion), dim))
    return X, np.array(["benign", "malignant"])[label], lesion


def repeat(seed: int, n_lesions: int, dim: int) -> list[dict]:
    """Score one data set by each protocol."""
    X, y, lesion = draw(seed, n_lesions, dim)
    images, lesions = (X, y), (X, y, lesion)
    options = {"param_grid": GRID, "seed": seed}
    fits = {
        "images split at random": deepfeat.fit_svm(images, test=None, **options),
        "lesions whole": deepfeat.fit_svm(lesions, test=None, **options),
        "lesions whole, nested": deepfeat.fit_svm(lesions, test=None, nested=True, **options),
        "lesions whole, held out": deepfeat.fit_svm(lesions, test=1 / 3, **options),
    }
    rows = []
    for protocol, result in fits.items():
        for metric in METRICS:
            value, low, high = result.metrics.loc[metric, ["value", "low", "high"]]
            rows.append({"protocol": protocol, "metric": metric, "value": value, "low": low, "high": high})
        if result.nested is None:
            rows.append({"protocol": protocol, "metric": BEST, "value": result.cv_results["mean"].max()})
    return rows


def summarise(rows: pd.DataFrame) -> pd.DataFrame:
    """Mean, its standard error, and how many intervals hold 0.5."""
    rows["covers"] = (rows["low"] <= 0.5) & (rows["high"] >= 0.5)
    rows["width"] = rows["high"] - rows["low"]
    groups = rows.groupby(["metric", "protocol"], sort=False)
    table = groups["value"].agg(["mean", "sem"])
    table["covers"], table["width"] = groups["covers"].mean(), groups["width"].mean()
    return table.reset_index().sort_values("metric", key=lambda m: m.map(_order), kind="stable")


def _order(metric: str) -> int:
    return [*METRICS, BEST].index(metric)


def as_markdown(table: pd.DataFrame) -> str:
    """Format the summary."""
    lines = ["| metric | protocol | mean | intervals that hold 0.5 | mean width |", "| --- | --- | --- | --- | --- |"]
    for row in table.itertuples():
        covers = "–" if np.isnan(row.width) else f"{row.covers:.1%}"
        width = "–" if np.isnan(row.width) else f"{row.width:.3f}"
        lines.append(f"| {row.metric} | {row.protocol} | {row.mean:.3f} ± {row.sem:.3f} | {covers} | {width} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Run all repeats and write the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=200)
    parser.add_argument("--jobs", type=int, default=-1)
    parser.add_argument("--table", type=Path)
    arguments = parser.parse_args()
    started, parts = time.perf_counter(), []
    for n_lesions, dim in SIZES:
        tasks = (delayed(repeat)(seed, n_lesions, dim) for seed in range(arguments.repeats))
        rows = [row for rows in Parallel(n_jobs=arguments.jobs)(tasks) for row in rows]
        parts += [f"## {n_lesions} lesions, {dim} features\n", as_markdown(summarise(pd.DataFrame(rows)))]
        print("\n".join(parts[-2:]), flush=True)
    seconds = time.perf_counter() - started
    head = (
        "# Coverage on data without a signal\n\n"
        f"Made by `python benchmarks/coverage.py --table {arguments.table}`: {arguments.repeats} repeats of each size, "
        f"one to five images a lesion, {len(GRID['C'])} values of C; {seconds:.0f} s, {platform.machine()}, "
        f"Python {platform.python_version()}. The truth is 0.5 in every row.\n"
    )
    if arguments.table:
        arguments.table.write_text("\n".join([head, *parts]), encoding="utf-8")


if __name__ == "__main__":
    main()
