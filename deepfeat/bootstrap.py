"""Metrics of resampled images: whole groups are drawn, since the images of one group are not independent.

The cluster bootstrap of Field and Welsh (2007), Bootstrapping clustered data, J. R. Statist. Soc. B 69: as many groups
as there are, drawn with replacement, each with all its images. A resample is a row of counts, one for each image, and
every metric is computed for many rows at once, as scikit-learn computes it with the counts as sample weights.

Predictions of cross-validation are not independent, since each fold's classifier was taught by the other folds. Of k
folds, Nadeau and Bengio (2003), Inference for the generalization error, Machine Learning 52 (the corrected resampled
t statistic), give the mean score a variance of 1 + k / (k - 1) times that of independent images. A resample of so many
times fewer groups has just that variance, and stays within the bounds of each metric (Bickel, Götze and van Zwet 1997,
Statistica Sinica 7, on resamples that are smaller than the sample).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pandas as pd

from deepfeat.errors import DataError

#: Counts that are in work at a time, so that memory does not grow with the number of resamples.
_AT_A_TIME = 1_000_000

#: Bins of equal width of the calibration error.
N_BINS = 15

#: Metrics of each class, in the order of their tables.
PER_CLASS = ("precision", "recall", "f1", "specificity", "auroc", "average_precision")


def draw_counts(
    groups: Sequence[Any] | np.ndarray, n_resamples: int = 1000, seed: int = 0, n_folds: int = 1
) -> np.ndarray:
    """Draw groups with replacement.

    Parameters
    ----------
    groups : sequence of n values
        Equal for images that stay together.
    n_resamples : int
    seed : int
    n_folds : int
        Folds whose predictions are put together: of two or more, fewer groups are drawn than there are, see above.

    Returns
    -------
    ndarray of shape (n_resamples, n), uint16
        How often each image is in each resample.
    """
    codes, n_groups = number_values(groups, "groups")
    rng = np.random.default_rng(seed)
    n_drawn = count_independent(n_groups, n_folds)
    counts = np.empty((n_resamples, len(codes)), np.uint16)
    for row in counts:
        drawn = rng.integers(n_groups, size=n_drawn)
        row[:] = np.bincount(drawn, minlength=n_groups)[codes]
    return counts


def number_values(values: Sequence[Any] | np.ndarray, what: str) -> tuple[np.ndarray, int]:
    """Numbers of the different values from 0 on, in the order of their first images, and how many there are.

    Raises
    ------
    DataError
        If a value is missing: which images it stands with is not known.
    """
    # Not np.asarray, which makes a missing value among text the text "nan".
    codes, names = pd.factorize(pd.Series(values))
    if (codes < 0).any():
        msg = f"{what} are missing for {(codes < 0).sum()} of {len(codes)} images: give each image a value"
        raise DataError(msg)
    return codes, len(names)


def count_independent(n_groups: int, n_folds: int = 1) -> int:
    """Groups that tell as much as these do, whose predictions are of folds that teach one another, see above."""
    excess = n_folds / (n_folds - 1) if n_folds > 1 else 0
    return max(1, round(n_groups / (1 + excess)))


def percentile_interval(replicates: np.ndarray, level: float = 0.95) -> tuple[np.ndarray, np.ndarray]:
    """Interval that holds the middle of the replicates.

    Parameters
    ----------
    replicates : ndarray of shape (n_resamples, ...)
        NaN where a metric is not defined; such resamples are left out.
    level : float
        Share of the replicates between the two ends.

    Returns
    -------
    low, high : ndarray of shape (...)
        NaN where the metric is defined in no resample.
    """
    undefined = np.isnan(replicates).all(axis=0)
    tails = [(1 - level) / 2, (1 + level) / 2]
    low, high = np.nanquantile(np.where(undefined, 0.0, replicates), tails, axis=0)
    return np.where(undefined, np.nan, low), np.where(undefined, np.nan, high)


def widen_certain(
    values: np.ndarray, low: np.ndarray, high: np.ndarray, n_independent: np.ndarray, level: float = 0.95
) -> tuple[np.ndarray, np.ndarray]:
    """Replace the interval of a rate that is 0 or 1, in which all resamples agree, by the exact one of a binomial.

    Of n trials that all succeeded, the lower end is the rate that makes this as likely as half of what the interval
    leaves out: (1 - level) / 2 = low ** n (Clopper and Pearson 1934, The use of confidence or fiducial limits
    illustrated in the case of the binomial, Biometrika 26). Of n that all failed, the upper end is its mirror image.

    Parameters
    ----------
    values, low, high : ndarray of shape (...)
        Rates, and the ends of their intervals.
    n_independent : ndarray of shape (...), int
        Trials that each rate is of: independent groups that count in its denominator, see `count_independent`.
    level : float

    Returns
    -------
    low, high : ndarray of shape (...)
    """
    reach = ((1 - level) / 2) ** (1 / n_independent)
    return np.where(values == 1, reach, low), np.where(values == 0, 1 - reach, high)


def rate_denominators(truth: np.ndarray, guess: np.ndarray, n_classes: int) -> dict[str, np.ndarray]:
    """Images that count in the denominator of the rates of each class, of shape (n, n_classes), bool."""
    is_true, is_guess = (side[:, None] == np.arange(n_classes) for side in (truth, guess))
    return {"precision": is_guess, "recall": is_true, "specificity": ~is_true}


def standardised_within(decision: np.ndarray, strata: np.ndarray | None) -> np.ndarray:
    """Decision values by which images of different strata may be compared.

    Parameters
    ----------
    decision : ndarray of shape (n, n_classes), float
    strata : ndarray of shape (n,), optional

    Returns
    -------
    ndarray of shape (n, n_classes), float
        Of each column, how many standard deviations of its stratum a value lies above the stratum's mean; the decision
        values as they are, where there are no strata.
    """
    if strata is None:
        return decision
    values = pd.DataFrame(decision)
    within = values.groupby(strata)
    spread = within.transform("std", ddof=0)
    return np.asarray((values - within.transform("mean")) / spread.where(spread > 0, 1))


def resampled_metrics(
    truth: np.ndarray,
    guess: np.ndarray,
    decision: np.ndarray,
    counts: np.ndarray,
    positive: int | None = None,
    probabilities: np.ndarray | None = None,
    strata: np.ndarray | None = None,
) -> tuple[pd.DataFrame, dict[str, np.ndarray]]:
    """Every metric of every resample.

    Parameters
    ----------
    truth, guess : ndarray of shape (n,), int
        Numbers of the classes.
    decision : ndarray of shape (n, n_classes), float
    counts : ndarray of shape (n_resamples, n)
        From `draw_counts`; ones give the metrics of the images themselves.
    positive : int, optional
        Also report the metrics of this class by themselves.
    probabilities : ndarray of shape (n, n_classes), optional
        Adds ``brier``. The calibration error is not resampled, see `calibration_error`.
    strata : ndarray of shape (n,), optional
        Decision values are compared within a stratum alone: AUROC is the share of pairs of one stratum in the right
        order, and average precision is that of `standardised_within`, the same values in every resample.

    Returns
    -------
    overall : pandas.DataFrame of shape (n_resamples, n_metrics)
        Columns as the index of `deepfeat.evaluation.Evaluation.metrics`.
    per_class : dict of str to ndarray of shape (n_resamples, n_classes)
    """
    n_classes = decision.shape[1]
    cells = np.eye(n_classes**2, dtype=np.float32)[truth * n_classes + guess]
    losses = row_losses(truth, decision, probabilities)
    rankings = [_Rankings(truth == k, decision[:, k], strata) for k in range(n_classes)]
    overall, per_class = [], []
    for block in _blocks(counts):
        drawn = block.astype(np.float32)
        confusion = (drawn @ cells).astype(float).reshape(-1, n_classes, n_classes)
        table = confusion_metrics(confusion)
        ranked = [ranking.areas(block) for ranking in rankings]
        table["auroc"], table["average_precision"] = (np.column_stack(part) for part in zip(*ranked, strict=True))
        values = overall_metrics(confusion, table, positive)
        total = drawn.sum(axis=1, dtype=float)
        values.update({name: drawn @ loss / total for name, loss in losses.items()})
        overall.append(pd.DataFrame(values))
        per_class.append(table)
    joined = {name: np.concatenate([table[name] for table in per_class]) for name in PER_CLASS}
    return pd.concat(overall, ignore_index=True), joined


def confusion_metrics(confusion: np.ndarray) -> dict[str, np.ndarray]:
    """Metrics of each class that follow from confusion matrices of shape (..., n_classes, n_classes); NaN for 0/0."""
    hits = np.diagonal(confusion, axis1=-2, axis2=-1)
    support, claimed = confusion.sum(axis=-1), confusion.sum(axis=-2)
    total = support.sum(axis=-1, keepdims=True)
    with np.errstate(invalid="ignore", divide="ignore"):
        return {
            "precision": hits / claimed,
            "recall": hits / support,
            "f1": 2 * hits / (support + claimed),
            "specificity": (total - support - claimed + hits) / (total - support),
        }


def overall_metrics(
    confusion: np.ndarray, per_class: dict[str, np.ndarray], positive: int | None
) -> dict[str, np.ndarray]:
    """Metrics over all classes that are present; a precision without predictions counts as 0 there."""
    support = confusion.sum(axis=-1)
    absent = support == 0

    def macro(name: str) -> np.ndarray:
        values = np.nan_to_num(per_class[name]) if name == "precision" else per_class[name]
        kept = np.where(absent, np.nan, values)
        known = ~np.isnan(kept)
        with np.errstate(invalid="ignore"):
            return np.asarray(np.where(known, kept, 0).sum(axis=-1) / known.sum(axis=-1))

    hits = np.diagonal(confusion, axis1=-2, axis2=-1)
    values = {
        "accuracy": hits.sum(axis=-1) / support.sum(axis=-1),
        "balanced_accuracy": macro("recall"),
        **{f"{name}_macro": macro(name) for name in PER_CLASS if name != "specificity"},
    }
    if positive is not None:
        values.update({name: per_class[name][..., positive] for name in PER_CLASS})
    return values


def row_losses(truth: np.ndarray, decision: np.ndarray, probabilities: np.ndarray | None) -> dict[str, np.ndarray]:
    """What each image adds to the mean hinge loss and, where there are probabilities, to the Brier score.

    The hinge loss for several classes is that of Crammer and Singer (2001), and the Brier score for two classes
    counts one of the two alone, both as in scikit-learn.
    """
    rows = np.arange(len(truth))
    if decision.shape[1] == 2:
        hinge = 1 - np.where(truth == 1, 1, -1) * decision[:, 1]
    else:
        others = decision.copy()
        others[rows, truth] = -np.inf
        hinge = 1 - decision[rows, truth] + others.max(axis=1)
    losses = {"hinge_loss": np.maximum(0, hinge)}
    if probabilities is not None:
        wanted = np.zeros(probabilities.shape)
        wanted[rows, truth] = 1
        squares = ((probabilities - wanted) ** 2).sum(axis=1)
        losses["brier"] = squares / 2 if probabilities.shape[1] == 2 else squares
    return losses


def calibration_error(truth: np.ndarray, probabilities: np.ndarray) -> float:
    """Expected calibration error.

    The mean distance, over the images, between the probability of what is predicted and the share of right
    predictions in bins of equal width (Guo et al. 2017, On calibration of modern neural networks, section 2); for two
    classes that of the second class's probability and its share.

    It is not resampled: distances have no sign, so that the chance of each bin adds to their sum, and a resample adds
    its own to that of the images.

    Parameters
    ----------
    truth : ndarray of shape (n,), int
    probabilities : ndarray of shape (n, n_classes)

    Returns
    -------
    float
    """
    if probabilities.shape[1] == 2:
        confidence, right = probabilities[:, 1], truth == 1
    else:
        confidence, right = probabilities.max(axis=1), probabilities.argmax(axis=1) == truth
    bins = np.minimum((confidence * N_BINS).astype(int), N_BINS - 1)
    return float(np.abs(np.bincount(bins, confidence - right)).sum() / len(truth))


class _Ranking:
    """One class against the rest, by decreasing decision value; equal values are one step.

    All sums run over the positive images alone, which are few: what lies above an image is the images up to the end of
    its step, less the positive ones.
    """

    def __init__(self, truth: np.ndarray, values: np.ndarray, rows: np.ndarray) -> None:
        self._order = rows[np.argsort(-values[rows], kind="stable")]
        positive = np.flatnonzero(truth[self._order])
        rising = -values[self._order]
        self._positive = positive
        self._starts = np.searchsorted(rising, rising[positive], "left")
        self._ends = np.searchsorted(rising, rising[positive], "right")
        self._positive_starts = np.searchsorted(positive, self._starts)
        self._positive_ends = np.searchsorted(positive, self._ends)

    def sums(self, counts: np.ndarray) -> np.ndarray:
        """Pairs in the right order, pairs, sum of precisions of positive images, their number; 0 if all are alike."""
        ordered = counts[:, self._order]
        hits = ordered[:, self._positive].astype(float)
        images, found = _cumulated(ordered), _cumulated(hits)
        n_positive = found[:, -1].astype(float)
        n_negative = images[:, -1] - n_positive
        above = images[:, self._starts] - found[:, self._positive_starts]
        found_by_then, images_by_then = found[:, self._positive_ends], images[:, self._ends]
        above_or_equal = images_by_then - found_by_then
        below = n_negative[:, None] - (above + above_or_equal) / 2
        precision = found_by_then / np.maximum(images_by_then, 1)
        sums = [(hits * below).sum(axis=1), n_positive * n_negative, (hits * precision).sum(axis=1), n_positive]
        return np.asarray(np.array(sums) * ((n_positive > 0) & (n_negative > 0)))


class _Rankings:
    """One class against the rest: within each stratum for pairs, and standardised over all of them for precisions."""

    def __init__(self, truth: np.ndarray, values: np.ndarray, strata: np.ndarray | None) -> None:
        self._within = [_Ranking(truth, values, rows) for rows in split_strata(strata, len(truth))]
        comparable = standardised_within(values[:, None], strata)[:, 0]
        self._over_all = self._within[0] if strata is None else _Ranking(truth, comparable, np.arange(len(truth)))

    def areas(self, counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Area under the ROC curve and average precision; NaN where all images are of a kind."""
        within = [ranking.sums(counts) for ranking in self._within]
        right, pairs = np.sum(within, axis=0)[:2]
        over_all = within[0] if self._over_all is self._within[0] else self._over_all.sums(counts)
        precision, n_positive = over_all[2:]
        with np.errstate(invalid="ignore", divide="ignore"):
            return right / pairs, precision / n_positive


def split_strata(strata: np.ndarray | None, n: int) -> list[np.ndarray]:
    """Rows of each stratum; all of them, where there are none."""
    if strata is None:
        return [np.arange(n)]
    codes, n_strata = number_values(strata, "strata")
    return [np.flatnonzero(codes == number) for number in range(n_strata)]


def _cumulated(counts: np.ndarray) -> np.ndarray:
    """Sums of the first 0, 1, 2, ... columns."""
    sums = np.zeros((len(counts), counts.shape[1] + 1), np.int64)
    np.cumsum(counts, axis=1, out=sums[:, 1:], dtype=np.int64)
    return sums


def _blocks(counts: np.ndarray) -> Iterator[np.ndarray]:
    rows = max(1, _AT_A_TIME // counts.shape[1])
    for start in range(0, len(counts), rows):
        yield counts[start : start + rows]
