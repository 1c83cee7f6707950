"""Predictions become metrics; scikit-learn computes them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from sklearn import metrics as sk


@dataclass(frozen=True)
class Evaluation:
    """What a set of predictions is worth.

    Attributes
    ----------
    metrics : pandas.DataFrame
        Indexed by metric, column ``value``.
    per_class : pandas.DataFrame
        Indexed by class: precision, recall, f1, specificity, auroc, average_precision, support.
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

    Returns
    -------
    Evaluation
        A metric that is not defined is NaN: precision of a class never
        predicted, AUROC of a class without images. Macro averages leave such
        classes out only where no image has the class; a precision without
        predictions counts as 0 there, as in scikit-learn.
    """
    names = list(classes)
    truth = pd.Categorical(list(labels), names).codes
    guess = pd.Categorical(list(predicted), names).codes
    numbers = np.arange(len(names))
    confusion = sk.confusion_matrix(truth, guess, labels=numbers)
    per_class = _per_class(truth, decision, confusion, names)
    present = per_class[per_class["support"] > 0]
    values = {
        "accuracy": sk.accuracy_score(truth, guess),
        "balanced_accuracy": present["recall"].mean(),
        "precision_macro": present["precision"].fillna(0).mean(),
        "recall_macro": present["recall"].mean(),
        "f1_macro": present["f1"].mean(),
        "auroc_macro": present["auroc"].mean(),
        "average_precision_macro": present["average_precision"].mean(),
        "hinge_loss": _hinge_loss(truth, decision, numbers),
    }
    if positive is not None:
        row = per_class.loc[positive]
        values.update({name: row[name] for name in per_class.columns if name != "support"})
    return Evaluation(
        pd.DataFrame({"value": values}).rename_axis("metric"),
        per_class,
        pd.DataFrame(confusion, index=pd.Index(names, name="true"), columns=pd.Index(names, name="predicted")),
    )


def class_scores(decision: np.ndarray) -> np.ndarray:
    """Give a binary decision function the two columns that a multi-class one has."""
    return np.column_stack([-decision, decision]) if decision.ndim == 1 else decision


def _per_class(truth: np.ndarray, decision: np.ndarray, confusion: np.ndarray, names: list[Any]) -> pd.DataFrame:
    hits = np.diag(confusion)
    support, claimed = confusion.sum(axis=1), confusion.sum(axis=0)
    rejected = confusion.sum() - support - claimed + hits
    with np.errstate(invalid="ignore", divide="ignore"):
        table = pd.DataFrame(
            {
                "precision": hits / claimed,
                "recall": hits / support,
                "f1": 2 * hits / (support + claimed),
                "specificity": rejected / (confusion.sum() - support),
                "auroc": [_ranking(sk.roc_auc_score, truth == k, decision[:, k]) for k in range(len(names))],
                "average_precision": [
                    _ranking(sk.average_precision_score, truth == k, decision[:, k]) for k in range(len(names))
                ],
                "support": support,
            },
            index=pd.Index(names, name="class"),
        )
    return table


def _ranking(score: Any, truth: np.ndarray, values: np.ndarray) -> float:
    """A ranking metric, NaN where all or none are positive."""
    return float(score(truth, values)) if 0 < truth.sum() < len(truth) else float("nan")


def _hinge_loss(truth: np.ndarray, decision: np.ndarray, numbers: np.ndarray) -> float:
    """Mean hinge loss; for several classes that of Crammer and Singer (2001), as in scikit-learn."""
    if len(numbers) == 2:
        return float(np.maximum(0, 1 - np.where(truth == 1, 1, -1) * decision[:, 1]).mean())
    return float(sk.hinge_loss(truth, decision, labels=numbers))
