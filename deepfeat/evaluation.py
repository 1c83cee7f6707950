"""Predictions become metrics; scikit-learn computes them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from sklearn import metrics as sk

from deepfeat.bootstrap import (
    PER_CLASS,
    calibration_error,
    confusion_metrics,
    count_independent,
    draw_counts,
    number_values,
    overall_metrics,
    percentile_interval,
    rate_denominators,
    resampled_metrics,
    row_losses,
    split_strata,
    standardised_within,
    widen_certain,
)
from deepfeat.errors import DataError


@dataclass(frozen=True)
class Evaluation:
    """What a set of predictions is worth.

    Attributes
    ----------
    metrics : pandas.DataFrame
        Indexed by metric: value, and low and high, the ends of its 95 % interval.
    per_class : pandas.DataFrame
        Indexed by class: precision, recall, f1, specificity, auroc, average_precision, support, and the ends of the
        intervals as precision_low, precision_high and so on.
    confusion : pandas.DataFrame
        Counts; rows are true classes and columns predicted ones.
    """

    metrics: pd.DataFrame
    per_class: pd.DataFrame
    confusion: pd.DataFrame


def evaluate(
    labels: Sequence[Any],
    predicted: Sequence[Any],
    decision: np.ndarray,
    classes: Sequence[Any],
    positive: Any = None,
    *,
    groups: Sequence[Any] | None = None,
    probabilities: np.ndarray | None = None,
    strata: Sequence[Any] | np.ndarray | None = None,
    n_folds: int = 1,
    n_resamples: int = 1000,
    seed: int = 0,
) -> Evaluation:
    """Score predictions.

    Parameters
    ----------
    labels, predicted : sequence of n class labels
    decision : ndarray of shape (n, n_classes), float
        The greater, the more of that class.
    classes : sequence of n_classes labels
        Order of the columns of ``decision``.
    positive : label, optional
        For two classes: also report precision, recall, F1, specificity, AUROC
        and average precision of this one.
    groups : sequence of n values, optional
        Images with equal values are not independent, and are resampled together; if None, each image by itself.
    probabilities : ndarray of shape (n, n_classes), optional
        Adds the Brier score and the calibration error, see `deepfeat.bootstrap.calibration_error`; the latter has no
        interval.
    strata : sequence of n values, optional
        Images whose decision values are of one classifier. Values of classifiers with different parameters have
        different scales, and ranked together they would seem worse than they are. AUROC is therefore the share of
        pairs of one stratum in the right order, and average precision, which is no mean over pairs, that of the
        values standardised within them, see `deepfeat.bootstrap.standardised_within`. Its mean over the strata would
        flatter: by chance, the average precision of few images is greater than that of many (Bestgen 2015, Exact
        expected average precision of the random baseline for system evaluation, Prague Bull. Math. Linguist. 103).
    n_folds : int
        Folds of a cross-validation whose predictions these are, which makes intervals wider; 1 for a test.
    n_resamples : int
        Resamples of the bootstrap; 0 for no intervals.
    seed : int
        Of the bootstrap.

    Returns
    -------
    Evaluation
        A metric that is not defined is NaN: precision of a class never
        predicted, AUROC of a class without images. Macro averages leave such
        classes out only where no image has the class; a precision without
        predictions counts as 0 there, as in scikit-learn.

    Raises
    ------
    DataError
        If a label or a prediction is none of the classes, or a group or a stratum is missing.

    Notes
    -----
    The intervals are the middle 95 % of a bootstrap that draws whole groups, see `deepfeat.bootstrap`. For a test they
    tell what other images of the same kind would do to the number, with the classifier as it is. Folds teach one
    another, and the number of groups drawn makes up for it as Nadeau and Bengio (2003) have it. Accuracy, recall,
    specificity and precision that are 0 or 1 have the exact interval, see `deepfeat.bootstrap.widen_certain`: a
    resample of images that are all right is all right.
    """
    names = list(classes)
    truth, guess = _number_labels(labels, names, "labels"), _number_labels(predicted, names, "predicted")
    chosen = None if positive is None else names.index(positive)
    confusion = sk.confusion_matrix(truth, guess, labels=np.arange(len(names)))
    each = confusion_metrics(confusion)
    ranked_in = None if strata is None else number_values(strata, "strata")[0]
    each["auroc"] = _rankings(sk.roc_auc_score, truth, decision, split_strata(ranked_in, len(truth)))
    comparable, everything = standardised_within(decision, ranked_in), np.arange(len(truth))
    each["average_precision"] = _rankings(sk.average_precision_score, truth, comparable, [everything])
    values = overall_metrics(confusion, each, chosen)
    values.update({name: loss.mean() for name, loss in row_losses(truth, decision, probabilities).items()})
    if probabilities is not None:
        values["calibration_error"] = np.asarray(calibration_error(truth, probabilities))
    metrics = pd.DataFrame({"value": values}).astype(float).rename_axis("metric")
    per_class = pd.DataFrame(each, index=pd.Index(names, name="class"))
    per_class["support"] = confusion.sum(axis=1)
    if n_resamples:
        together = everything if groups is None else number_values(groups, "groups")[0]
        counts = draw_counts(together, n_resamples, seed, n_folds)
        overall, replicates = resampled_metrics(truth, guess, decision, counts, chosen, probabilities, ranked_in)
        drawn = overall.reindex(columns=metrics.index)
        metrics["low"], metrics["high"] = percentile_interval(drawn.to_numpy())
        for name in PER_CLASS:
            per_class[f"{name}_low"], per_class[f"{name}_high"] = percentile_interval(replicates[name])
        _widen_rates(metrics, per_class, truth, guess, together, n_folds, chosen)
    named = {"index": pd.Index(names, name="true"), "columns": pd.Index(names, name="predicted")}
    return Evaluation(metrics, per_class, pd.DataFrame(confusion, **named))


def class_scores(decision: np.ndarray) -> np.ndarray:
    """Give a binary decision function the two columns that a multi-class one has."""
    return np.column_stack([-decision, decision]) if decision.ndim == 1 else decision


def _number_labels(labels: Sequence[Any], classes: list[Any], what: str) -> np.ndarray:
    """Numbers of the classes of labels."""
    numbers = {name: number for number, name in enumerate(classes)}
    strange = [label for label in labels if label not in numbers]
    if strange:
        msg = f"{what} has {strange[0]!r}, which is none of the classes: use {', '.join(map(repr, classes))}"
        raise DataError(msg)
    return np.array([numbers[label] for label in labels], int)


def _widen_rates(
    metrics: pd.DataFrame,
    per_class: pd.DataFrame,
    truth: np.ndarray,
    guess: np.ndarray,
    groups: np.ndarray,
    n_folds: int,
    chosen: int | None,
) -> None:
    """Give rates of 0 or 1 the interval that their number of groups allows."""

    def count(inside: np.ndarray) -> int:
        return count_independent(len(np.unique(groups[inside])), n_folds)

    for name, inside in rate_denominators(truth, guess, len(per_class)).items():
        values, *ends = (per_class[column].to_numpy() for column in (name, f"{name}_low", f"{name}_high"))
        low, high = widen_certain(values, ends[0], ends[1], np.array([count(column) for column in inside.T]))
        per_class[f"{name}_low"], per_class[f"{name}_high"] = low, high
        if chosen is not None:
            metrics.loc[name, ["low", "high"]] = low[chosen], high[chosen]
    value, low, high = metrics.loc["accuracy", ["value", "low", "high"]].to_numpy()
    everything = np.full(len(truth), True)
    metrics.loc["accuracy", ["low", "high"]] = widen_certain(value, low, high, np.array(count(everything)))


def _rankings(
    score: Callable[..., float], truth: np.ndarray, decision: np.ndarray, parts: Sequence[np.ndarray]
) -> np.ndarray:
    """A ranking metric of each class, over parts of the rows by their pairs; NaN where all images are of a kind."""
    found = np.full(decision.shape[1], np.nan)
    for k in range(decision.shape[1]):
        values, pairs = [], []
        for rows in parts:
            here = truth[rows] == k
            if 0 < here.sum() < len(rows):
                values.append(score(here, decision[rows, k]))
                pairs.append(here.sum() * (~here).sum())
        if values:
            found[k] = np.average(values, weights=pairs)
    return found


def evaluate_predictions(
    predictions: pd.DataFrame,
    classes: Sequence[Any],
    positive: Any,
    evaluated_on: str,
    *,
    n_folds: int | None = None,
    n_resamples: int = 1000,
    seed: int = 0,
) -> Evaluation:
    """Score the rows of a table such as ``SVMResult.predictions`` that are to be scored; see `evaluate`.

    ``n_folds`` is that of the table if None.
    """
    scored = scored_rows(predictions, evaluated_on)
    return evaluate(
        scored["label"].tolist(),
        scored["predicted"].tolist(),
        scored[list(classes)].to_numpy(float),
        classes,
        positive,
        groups=scored["group"].to_numpy(),
        strata=strata_of(scored, evaluated_on),
        probabilities=probabilities_of(scored, classes),
        n_folds=count_folds(scored) if n_folds is None else n_folds,
        n_resamples=n_resamples,
        seed=seed,
    )


def scored_rows(predictions: pd.DataFrame, evaluated_on: str) -> pd.DataFrame:
    """The predictions that the metrics are of: those of the test, or those that a fold tested."""
    tested = predictions["fold"] == "test"
    return predictions[tested if evaluated_on == "test" else ~tested & (predictions["fold"] != -1)]


def strata_of(scored: pd.DataFrame, evaluated_on: str) -> np.ndarray | None:
    """Fold of each image where each fold's classifier has its own parameters, see `evaluate`."""
    return scored["fold"].to_numpy() if evaluated_on == "nested" else None


def count_folds(scored: pd.DataFrame) -> int:
    """Number of classifiers that the predictions are of: one, for a test."""
    return int(scored["fold"].nunique())


def probabilities_of(scored: pd.DataFrame, classes: Sequence[Any]) -> np.ndarray | None:
    """Probabilities of shape (n, n_classes), where the classifier is calibrated."""
    columns = [f"probability {name}" for name in classes]
    return scored[columns].to_numpy(float) if columns[0] in scored else None
