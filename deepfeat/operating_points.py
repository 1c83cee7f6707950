"""A threshold on the decision values of one class, chosen for a wish."""

from __future__ import annotations

import math
import re
from numbers import Real
from typing import Any, NamedTuple

import numpy as np

from deepfeat.bootstrap import confusion_metrics
from deepfeat.errors import DataError, UsageError

#: What can be asked for at least, and what is then made as large as possible.
_TRADED = {"recall": "specificity", "specificity": "recall", "precision": "recall"}
_MAXIMISED = ("f1", "balanced_accuracy", "accuracy")
_WISH = re.compile(r"(\w+)\s*>=\s*([0-9]+\.?[0-9]*|\.[0-9]+)")


class Wish(NamedTuple):
    """What a threshold is to reach.

    Attributes
    ----------
    metric : str
        Of the positive class.
    least : float or None
        Reach this much of it; as much as possible if None.
    """

    metric: str
    least: float | None

    def __str__(self) -> str:
        return self.metric if self.least is None else f"{self.metric}>={self.least:g}"


def read_wish(threshold: Any) -> Wish | float | None:
    """Read what a caller asks for: a wish, a decision value, or nothing.

    Parameters
    ----------
    threshold : str, float or None
        "recall>=0.9", "specificity>=0.9" or "precision>=0.5"; "f1", "balanced_accuracy" or "accuracy", which are made
        as large as possible; or a decision value.

    Raises
    ------
    UsageError
        For anything else.
    """
    if threshold is None:
        return None
    if isinstance(threshold, Real) and not isinstance(threshold, bool) and math.isfinite(threshold):
        return float(threshold)
    found = _WISH.fullmatch(threshold.strip()) if isinstance(threshold, str) else None
    if found is not None and found[1] in _TRADED and 0 < float(found[2]) <= 1:
        return Wish(found[1], float(found[2]))
    if threshold in _MAXIMISED:
        return Wish(threshold, None)
    msg = (
        f"threshold is {threshold!r}: use 'METRIC>=SHARE' with {', '.join(_TRADED)}, one of {', '.join(_MAXIMISED)}, "
        "or a decision value"
    )
    raise UsageError(msg)


def choose_threshold(truth: np.ndarray, values: np.ndarray, wish: Wish) -> float:
    """Choose the decision value from which on images are called positive.

    Parameters
    ----------
    truth : ndarray of shape (n,), bool
    values : ndarray of shape (n,), float
        Decision values of the positive class.
    wish : Wish

    Returns
    -------
    float
        Halfway between two decision values, or the least of them. Of those that grant the wish, the one with the
        greatest specificity for a recall, and with the greatest recall for a specificity or a precision. Where the
        accuracy is greatest with nobody called positive, or a specificity is granted by no other threshold that finds
        anyone, the next number above all decision values.

    Raises
    ------
    DataError
        If no threshold grants the wish, or all images are of one class.
    """
    if truth.all() or not truth.any():
        raise DataError("the images by which a threshold is to be chosen are of one class: use stratified folds")
    order = np.argsort(-values, kind="stable")
    ordered = values[order]
    ends = np.append(np.flatnonzero(np.diff(ordered)), len(ordered) - 1)
    hits = np.cumsum(truth[order])[ends].astype(float)
    alarms = ends + 1 - hits
    metrics = _metrics_of_counts(hits, alarms, float(truth.sum()), float((~truth).sum()))
    if _is_best_for_nobody(wish, metrics, (~truth).mean()):
        return float(np.nextafter(ordered[0], np.inf))
    best = _choose_cut(wish, metrics)
    following = ordered[ends[best] + 1] if best + 1 < len(ends) else ordered[ends[best]]
    middle = (ordered[ends[best]] + following) / 2
    # There is nothing between adjacent numbers, and their mean may be the lower one.
    return float(middle if middle > following else ordered[ends[best]])


def _choose_cut(wish: Wish, metrics: dict[str, np.ndarray]) -> int:
    """Number of the best of the thresholds that call someone positive."""
    if wish.least is None:
        return int(np.argmax(metrics[wish.metric]))
    granted = _grants(wish, metrics)
    if not granted.any():
        msg = f"no threshold reaches {wish}: the most is {np.nanmax(metrics[wish.metric]):.3f}; wish for less"
        raise DataError(msg)
    return int(np.argmax(np.where(granted, metrics[_TRADED[wish.metric]], -1)))


def _grants(wish: Wish, metrics: dict[str, np.ndarray]) -> np.ndarray:
    return metrics[wish.metric] >= (wish.least or 0) - 1e-12


def _is_best_for_nobody(wish: Wish, metrics: dict[str, np.ndarray], negative: float) -> bool:
    """Whether the wish is granted best where nobody is called positive, which is right for this share of the images."""
    if wish.metric == "accuracy":
        return bool(metrics["accuracy"].max() < negative)
    return wish.metric == "specificity" and not metrics["recall"][_grants(wish, metrics)].any()


def _metrics_of_counts(hits: np.ndarray, alarms: np.ndarray, positive: float, negative: float) -> dict[str, np.ndarray]:
    """Metrics of the positive class at each threshold."""
    confusion = np.stack([negative - alarms, alarms, positive - hits, hits], axis=-1).reshape(-1, 2, 2)
    each = {name: values[:, 1] for name, values in confusion_metrics(confusion).items()}
    each["balanced_accuracy"] = (each["recall"] + each["specificity"]) / 2
    each["accuracy"] = (hits + negative - alarms) / (positive + negative)
    return each
