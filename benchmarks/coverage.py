"""Do the intervals cover, and is chance called chance? Simulated lesions, without a signal and with one.

    python benchmarks/coverage.py --table docs/results/coverage.md

Each repeat draws lesions with random features and a random class; each lesion has several images, which are the
lesion's features with a little noise. Four protocols are scored on the same data: images split as if each were a
lesion of its own; lesions kept whole; the same with the nested estimate; and a third of the lesions held out as a test.
An interval covers if the truth is in it. Without a signal the truth is 0.5. With one, the truth of a held-out test is
the score of the same classifier on fresh lesions. That of cross-validation is what the procedure gives on average, and
the mean of the nested estimates over all repeats is it, since no image that is scored had a say in anything.
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
from deepfeat.evaluation import class_scores, evaluate

GRID = {"C": [1e-4, 1e-3, 1e-2, 1e-1, 1.0]}
METRICS = ("balanced_accuracy", "auroc_macro")
BEST = "best score of the grid"
NESTED, HELD_OUT = "lesions whole, nested", "lesions whole, held out"

#: Lesions, features, and how far apart the classes are in the first feature, in standard deviations.
SIZES = ((100, 5, 0.0), (100, 40, 0.0), (300, 40, 0.0), (300, 40, 1.5))
N_FRESH = 5000


def draw(seed: int, n_lesions: int, dim: int, signal: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Features, classes and lesions of images: one to five of each lesion."""
    rng = np.random.default_rng(seed)
    lesion = np.repeat(np.arange(n_lesions), rng.integers(1, 6, n_lesions))
    label = rng.permutation(np.arange(n_lesions) % 2)[lesion]
    X = rng.normal(size=(n_lesions, dim))[lesion] + 0.3 * rng.normal(size=(len(lesion), dim))
    X[:, 0] += signal * label
    return X, np.array(["benign", "malignant"])[label], lesion


def score_fresh(result: deepfeat.SVMResult, seed: int, dim: int, signal: float) -> dict[str, float]:
    """Score a classifier on lesions that neither it nor its test has seen."""
    X, y, _ = draw(1_000_000 + seed, N_FRESH, dim, signal)
    decision = class_scores(result.pipeline.decision_function(X))
    return evaluate(y, result.pipeline.predict(X), decision, result.classes, n_resamples=0).metrics["value"].to_dict()


def repeat(seed: int, n_lesions: int, dim: int, signal: float) -> list[dict]:
    """Score one data set by each protocol."""
    X, y, lesion = draw(seed, n_lesions, dim, signal)
    images, lesions = (X, y), (X, y, lesion)
    options = {"param_grid": GRID, "seed": seed}
    fits = {
        "images split at random": deepfeat.fit_svm(images, test=None, **options),
        "lesions whole": deepfeat.fit_svm(lesions, test=None, **options),
        NESTED: deepfeat.fit_svm(lesions, test=None, nested=True, **options),
        HELD_OUT: deepfeat.fit_svm(lesions, test=1 / 3, **options),
    }
    fresh = score_fresh(fits[HELD_OUT], seed, dim, signal)
    rows = []
    for protocol, result in fits.items():
        for metric in METRICS:
            value, low, high = result.metrics.loc[metric, ["value", "low", "high"]]
            truth = fresh[metric] if protocol == HELD_OUT else np.nan
            rows.append(
                {"protocol": protocol, "metric": metric, "value": value, "low": low, "high": high, "truth": truth}
            )
        if result.nested is None:
            rows.append({"protocol": protocol, "metric": BEST, "value": result.cv_results["mean"].max()})
    return rows


def summarise(rows: pd.DataFrame, signal: float) -> pd.DataFrame:
    """Mean, its standard error, and how many intervals hold the truth."""
    if signal:
        expected = rows[rows["protocol"] == NESTED].groupby("metric")["value"].mean()
        rows["truth"] = rows["truth"].fillna(rows["metric"].map(expected))
    else:
        rows["truth"] = 0.5
    rows["covers"] = (rows["low"] <= rows["truth"]) & (rows["high"] >= rows["truth"])
    rows["width"] = rows["high"] - rows["low"]
    groups = rows.groupby(["metric", "protocol"], sort=False)
    table = groups["value"].agg(["mean", "sem"])
    for column in ("truth", "covers", "width"):
        table[column] = groups[column].mean()
    return table.reset_index().sort_values("metric", key=lambda m: m.map(_order), kind="stable")


def _order(metric: str) -> int:
    return [*METRICS, BEST].index(metric)


def as_markdown(table: pd.DataFrame) -> str:
    """Format the summary."""
    lines = ["| metric | protocol | mean | truth | intervals that hold it | mean width |", "|" + " --- |" * 6]
    for row in table.itertuples():
        known = (f"{row.truth:.3f}", f"{row.covers:.1%}", f"{row.width:.3f}")
        cells = ("–", "–", "–") if np.isnan(row.width) else known
        lines.append(f"| {row.metric} | {row.protocol} | {row.mean:.3f} ± {row.sem:.3f} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Run all repeats and write the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=200)
    parser.add_argument("--jobs", type=int, default=-1)
    parser.add_argument("--table", type=Path)
    arguments = parser.parse_args()
    started, parts = time.perf_counter(), []
    for n_lesions, dim, signal in SIZES:
        tasks = (delayed(repeat)(seed, n_lesions, dim, signal) for seed in range(arguments.repeats))
        rows = [row for rows in Parallel(n_jobs=arguments.jobs)(tasks) for row in rows]
        apart = f"classes {signal} standard deviations apart in one of them" if signal else "no signal"
        title = f"## {n_lesions} lesions, {dim} features, {apart}\n"
        parts += [title, as_markdown(summarise(pd.DataFrame(rows), signal))]
        print("\n".join(parts[-2:]), flush=True)
    seconds = time.perf_counter() - started
    head = (
        "# Coverage of the intervals on simulated data\n\n"
        f"Made by `python benchmarks/coverage.py --table {arguments.table}`: {arguments.repeats} repeats of each size, "
        f"one to five images a lesion, {len(GRID['C'])} values of C; {seconds:.0f} s, {platform.machine()}, "
        f"Python {platform.python_version()}. Without a signal the truth is 0.5. With one, it is the classifier's "
        f"score on {N_FRESH} fresh lesions where lesions were held out, here as a mean, and else the mean of the "
        "nested estimates.\n"
    )
    if arguments.table:
        arguments.table.write_text("\n".join([head, *parts]), encoding="utf-8")


if __name__ == "__main__":
    main()
