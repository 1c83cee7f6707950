"""The scored rows of a result as arrays, and the curves that reports and plots draw of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pandas as pd

from deepfeat.bootstrap import N_BINS, draw_counts, percentile_interval, standardised_within
from deepfeat.evaluation import count_folds, probabilities_of, scored_rows, strata_of

if TYPE_CHECKING:
    from deepfeat.svm import SVMResult

#: Resamples behind the bands of curves, which need fewer than the numbers in tables.
N_RESAMPLES = 200

#: Classes that get a curve.
MOST_CLASSES = 12

#: Where the bands of curves are computed.
_GRID = np.linspace(0, 1, 101)


@dataclass(frozen=True)
class Scores:
    """The rows that the metrics of a result are of.

    Attributes
    ----------
    rows : pandas.DataFrame
        Those of ``result.predictions``.
    classes : list
    truth, guess : ndarray of shape (n,), int
        Numbers of the classes.
    decision : ndarray of shape (n, n_classes)
    probabilities : ndarray of shape (n, n_classes) or None
    counts : ndarray of shape (N_RESAMPLES, n)
        How often each row is in each resample of whole groups.
    strata : ndarray of shape (n,) or None
        Rows whose decision values are of one classifier. Curves are of values standardised within them, as the average
        precision of `deepfeat.evaluation.evaluate` is.
    """

    rows: pd.DataFrame
    classes: list[Any]
    truth: np.ndarray
    guess: np.ndarray
    decision: np.ndarray
    probabilities: np.ndarray | None
    counts: np.ndarray
    strata: np.ndarray | None = None


class Curve(NamedTuple):
    """A line from (0, .) to (1, .) with a 95 % band: y, and low and high at the points of x of the band."""

    x: np.ndarray
    y: np.ndarray
    band_x: np.ndarray
    low: np.ndarray
    high: np.ndarray


class Reliability(NamedTuple):
    """Bins of predicted probability that hold images.

    Attributes
    ----------
    predicted, observed, low, high : ndarray of shape (n_bins,)
        Mean probability, share of images it was right for, and the ends of its 95 % interval.
    n_images : ndarray of shape (N_BINS,)
        Of all bins.
    """

    predicted: np.ndarray
    observed: np.ndarray
    low: np.ndarray
    high: np.ndarray
    n_images: np.ndarray


def take_scores(result: SVMResult) -> Scores:
    """Take the rows that the metrics are of out of the predictions."""
    rows, classes = scored_rows(result.predictions, result.evaluated_on), list(result.classes)
    return Scores(
        rows=rows,
        classes=classes,
        truth=pd.Categorical(rows["label"], classes).codes.astype(int),
        guess=pd.Categorical(rows["predicted"], classes).codes.astype(int),
        decision=rows[classes].to_numpy(float),
        probabilities=probabilities_of(rows, classes),
        counts=draw_counts(rows["group"].to_numpy(), N_RESAMPLES, n_folds=count_folds(rows)),
        strata=strata_of(rows, result.evaluated_on),
    )


def shown_classes(result: SVMResult, scores: Scores) -> list[int]:
    """Numbers of the classes that get a curve: the positive one, or those with the most images."""
    if result.positive is not None:
        return [1]
    support = np.bincount(scores.truth, minlength=len(scores.classes))
    return sorted(np.argsort(-support, kind="stable")[:MOST_CLASSES].tolist())


def roc(scores: Scores, number: int) -> Curve | None:
    """Recall over the share of false alarms, of one class against the rest; None where all or no images have it.

    The band is vertical: the middle 95 % of the recalls that the resamples reach at a share of false alarms (Fawcett
    2006, An introduction to ROC analysis, Pattern Recognition Letters 27, section 9).
    """
    hits, alarms = _rates(scores, number, np.ones((1, len(scores.truth))))
    if np.isnan([hits, alarms]).any():
        return None
    drawn = zip(*_rates(scores, number, scores.counts), strict=True)
    replicates = np.array([np.interp(_GRID, x, y) for y, x in drawn])
    low, high = percentile_interval(replicates)
    x, y = _thin(alarms[0], hits[0])
    return Curve(x, y, _GRID, low, high)


def precision_recall(scores: Scores, number: int) -> Curve | None:
    """Precision over recall, of one class against the rest; None where all or no images have it."""
    ones = np.ones((1, len(scores.truth)))
    hits, alarms = _rates(scores, number, ones)
    if np.isnan([hits, alarms]).any():
        return None
    recall, precision = _precisions(scores, number, ones)
    drawn = zip(*_precisions(scores, number, scores.counts), strict=True)
    wanted = _GRID[1:]
    replicates = [y[np.minimum(np.searchsorted(x, wanted - 1e-9), len(x) - 1)] for x, y in drawn]
    low, high = percentile_interval(np.array(replicates))
    # From one decision value to the next, precision is a step and no line (Davis and Goadrich 2006, section 4).
    x, y = _thin(np.repeat(recall[0], 2)[:-1], np.repeat(precision[0], 2)[1:])
    return Curve(x, y, wanted, low, high)


def reliability(scores: Scores) -> Reliability:
    """Predicted probabilities against what came true, in the bins of `deepfeat.bootstrap.calibration_error`.

    Of two classes, the second's probability; of more, that of the class with the greatest.
    """
    chances = scores.probabilities
    assert chances is not None
    binary = chances.shape[1] == 2
    confidence = chances[:, 1] if binary else chances.max(axis=1)
    right = scores.truth == 1 if binary else chances.argmax(axis=1) == scores.truth
    bins = np.minimum((confidence * N_BINS).astype(int), N_BINS - 1)
    n_images = np.bincount(bins, minlength=N_BINS)
    filled = np.flatnonzero(n_images)
    inside = (bins[:, None] == filled).astype(float)
    with np.errstate(invalid="ignore"):
        replicates = (scores.counts @ (inside * right[:, None])) / (scores.counts @ inside)
    low, high = percentile_interval(replicates)
    observed, predicted = (
        np.bincount(bins, values, N_BINS)[filled] / n_images[filled] for values in (right, confidence)
    )
    return Reliability(predicted, observed, low, high, n_images)


def _counts_above(scores: Scores, number: int, counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Positive and other images from each decision value on, by decreasing value, from none to all."""
    values = standardised_within(scores.decision[:, [number]], scores.strata)[:, 0]
    order = np.argsort(-values, kind="stable")
    ends = np.append(np.flatnonzero(np.diff(values[order])), len(values) - 1)
    positive = scores.truth[order] == number
    ordered = counts[:, order].astype(float)
    found = np.cumsum(ordered * positive, axis=1)[:, ends]
    alarms = np.cumsum(ordered * ~positive, axis=1)[:, ends]
    nothing = np.zeros((len(counts), 1))
    return np.hstack([nothing, found]), np.hstack([nothing, alarms])


def _rates(scores: Scores, number: int, counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    found, alarms = _counts_above(scores, number, counts)
    with np.errstate(invalid="ignore"):
        return found / found[:, -1:], alarms / alarms[:, -1:]


def _precisions(scores: Scores, number: int, counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Recall and precision; the first point, of no image, has the precision of the second."""
    found, alarms = _counts_above(scores, number, counts)
    with np.errstate(invalid="ignore"):
        recall, precision = found / found[:, -1:], found / (found + alarms)
    precision[:, 0] = precision[:, 1]
    # Without an image of the class there is neither, and 0 is no precision.
    precision[np.isnan(recall[:, -1])] = np.nan
    return recall, precision


def _thin(x: np.ndarray, y: np.ndarray, step: float = 0.002) -> tuple[np.ndarray, np.ndarray]:
    """Leave out points that nobody can tell from the one before."""
    kept = [0]
    for i in range(1, len(x) - 1):
        if abs(x[i] - x[kept[-1]]) > step or abs(y[i] - y[kept[-1]]) > step:
            kept.append(i)
    kept.append(len(x) - 1)
    return x[kept], y[kept]
